"""Gets tokens with azure-identity for C++, which pyarrow contains: its file system for Azure lists the
containers of a storage account, and the stand-in for Azure Storage returns one whose name is the
token of the request."""

import json
import os
import subprocess
import sys

import protocol

CHILD = "ARROW_CHILD"


def make(request):
    import pyarrow.fs

    # Without a client ID, it uses DefaultAzureCredential, otherwise ManagedIdentityCredential.
    identity = {"client_id": request["client_id"]} if "client_id" in request else {}
    return pyarrow.fs.AzureFileSystem("shop", **identity)


def ask(files, request):
    import pyarrow.fs

    return files.get_file_info(pyarrow.fs.FileSelector(""))[0].path, 0


def supervise():
    """Runs this program in a child process: an error of the SDK ends the process, because pyarrow does
    not catch its exceptions."""
    environment = {**os.environ, CHILD: "1", "SSL_CERT_FILE": os.environ["REQUESTS_CA_BUNDLE"]}
    child = subprocess.run([sys.executable, *sys.argv], env=environment, capture_output=True, text=True)
    sys.stdout.write(child.stdout)
    if child.returncode != 0:
        print(json.dumps({"error": f"exit code {child.returncode}", "message": child.stderr, "ms": 0}))


if CHILD in os.environ:
    protocol.run(make, ask)
else:
    supervise()
