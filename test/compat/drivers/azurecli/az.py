"""Gets tokens with the Azure CLI from PyPI: az login --identity, then az account get-access-token."""

import os
import subprocess
import sys
import tempfile

import protocol

# The options of az login since 2.69. The CLI of Debian is older and has others: see ../shell/az.sh.
SELECTORS = {"client_id": "--client-id", "object_id": "--object-id", "resource_id": "--resource-id"}


class Refused(Exception):
    """The command has failed."""


def az(environment, *arguments):
    command = [sys.executable, "-m", "azure.cli", *arguments, "--only-show-errors"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise Refused(done.stdout + done.stderr)
    return done.stdout.strip()


def make(request):
    directory = tempfile.mkdtemp(dir=os.environ["HOME"])
    environment = {**os.environ, "AZURE_CONFIG_DIR": directory, "AZURE_CORE_COLLECT_TELEMETRY": "no"}
    identity = [part for name, option in SELECTORS.items() if name in request for part in (option, request[name])]
    az(environment, "login", "--identity", *identity, "--output", "none")
    return environment


def ask(environment, request):
    token = az(environment, "account", "get-access-token", "--resource", request["resource"], "--query", "accessToken", "--output", "tsv")
    return token, 0


protocol.run(make, ask)
