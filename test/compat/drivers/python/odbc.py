"""Gets tokens with Microsoft's ODBC driver for SQL Server, whose library is in a Python package.

The driver asks for a token when it connects to a server. A stand-in for the server, in this
process, speaks as much of the TDS protocol as that takes: it answers the prelogin, says for which
resource it wants a token, and reads the token. Then it closes the connection."""

import base64
import ctypes
import glob
import importlib.util
import json
import os
import socket
import struct
import threading

import protocol

# Types of TDS packets, and the token by which a server asks for a federated login.
PRELOGIN, LOGIN, FEDAUTH_TOKEN, RESPONSE = 0x12, 0x10, 0x08, 0x04
FEDAUTHINFO = 0xEE


def packet(kind, data):
    return struct.pack(">BBHHBB", kind, 1, len(data) + 8, 0, 1, 0) + data


def prelogin():
    """The answer to the prelogin: no encryption, federated login required."""
    options = [(0, bytes([16, 0, 16, 0, 0, 0])), (1, b"\x02"), (2, b"\x00"), (3, b""), (4, b"\x00"), (6, b"\x01")]
    offset = 5 * len(options) + 1
    head, body = b"", b""
    for token, value in options:
        head += struct.pack(">BHH", token, offset + len(body), len(value))
        body += value
    return packet(RESPONSE, head + b"\xff" + body)


def fedauthinfo(resource):
    """Asks for a token for this resource."""
    sts, spn = "https://login.example.test/tenant".encode("utf-16le"), resource.encode("utf-16le")
    offset = 4 + 2 * 9
    data = struct.pack("<I", 2) + struct.pack("<BII", 1, len(sts), offset) + struct.pack("<BII", 2, len(spn), offset + len(sts)) + sts + spn
    return packet(RESPONSE, struct.pack("<BI", FEDAUTHINFO, len(data)) + data)


class Server:
    def __init__(self, resource):
        self.resource, self.token = resource, None
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            connection, _ = self.listener.accept()
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection):
        with connection, connection.makefile("rb") as stream:
            message = b""
            while header := stream.read(8):
                kind, status, length = struct.unpack(">BBH", header[:4])
                message += stream.read(length - 8)
                if not status & 1:  # more packets of this message follow
                    continue
                if kind == PRELOGIN:
                    connection.sendall(prelogin())
                elif kind == LOGIN:
                    connection.sendall(fedauthinfo(self.resource))
                elif kind == FEDAUTH_TOKEN:
                    length = struct.unpack("<I", message[4:8])[0]
                    self.token = message[8 : 8 + length].decode("utf-16le").rstrip("\0")
                    return
                message = b""


def library():
    for package in ("mssql_python_odbc", "mssql_python"):
        spec = importlib.util.find_spec(package)
        if spec:
            break
    root = os.path.join(os.path.dirname(spec.origin), "libs", "linux", "debian_ubuntu", os.uname().machine.replace("aarch64", "arm64"), "lib")
    ctypes.CDLL(os.path.join(root, "libodbcinst.so.2"), mode=ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(glob.glob(os.path.join(root, "libmsodbcsql-*.so.*"))[0])


def diagnostics(odbc, connection):
    """The driver's error messages."""
    messages = []
    for n in range(1, 10):
        state, native = ctypes.create_string_buffer(12), ctypes.c_int()
        text, length = ctypes.create_string_buffer(8000), ctypes.c_short()
        if odbc.SQLGetDiagRecW(2, connection, n, state, ctypes.byref(native), text, 3999, ctypes.byref(length)) not in (0, 1):
            break
        messages.append(text.raw[: 2 * length.value].decode("utf-16le", "replace"))
    return " ".join(messages)


def make(request):
    odbc, environment = library(), ctypes.c_void_p()
    odbc.SQLAllocHandle(1, None, ctypes.byref(environment))
    odbc.SQLSetEnvAttr(environment, 200, ctypes.c_void_p(3), 0)  # ODBC version 3
    return odbc, environment


def ask(driver, request):
    odbc, environment = driver
    server, connection = Server(request["resource"]), ctypes.c_void_p()
    odbc.SQLAllocHandle(2, environment, ctypes.byref(connection))
    settings = {"Driver": "{ODBC Driver 18 for SQL Server}", "Server": "tcp:127.0.0.1,%d" % server.port,
                "Encrypt": "no", "Authentication": "ActiveDirectoryMsi", "UID": request.get("object_id") or request.get("client_id")}
    text = ";".join("%s=%s" % (name, value) for name, value in settings.items() if value)
    odbc.SQLDriverConnectW(connection, None, text.encode("utf-16le") + b"\0\0", len(text), None, 0, None, 0)
    if not server.token:  # otherwise the error is that the stand-in has closed the connection
        raise RuntimeError(diagnostics(odbc, connection))
    payload = server.token.split(".")[1]
    return server.token, json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["exp"]


protocol.run(make, ask)
