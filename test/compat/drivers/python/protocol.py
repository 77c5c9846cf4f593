"""The arguments and the output of the Python drivers. The package documentation of test/compat
describes them."""

import json
import sys
import time

# The token of the last credential of a chain. It shows that the credentials before it returned
# no token.
FIXED_TOKEN = "fell-through"


def arguments():
    return dict(argument.split("=", 1) for argument in sys.argv[1:])


def run(make, ask):
    """Creates the credential once, calls ask as often as requested, and prints one line for each
    result. ask returns a token and its expiry in seconds."""
    request = arguments()
    credential = None
    for n in range(int(request.get("calls", 1))):
        if n > 0:
            time.sleep(float(request.get("pause", 0)))
        began = time.monotonic()
        try:
            credential = credential or make(request)
            token, expires_on = ask(credential, request)
            line = {"token": token, "expires_on": int(expires_on)}
        except Exception as error:  # whatever the library raises is the result
            line = {"error": type(error).__name__, "message": str(error)}
        line["ms"] = 1000 * (time.monotonic() - began)
        print(json.dumps(line), flush=True)
