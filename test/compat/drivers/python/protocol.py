"""How every Python driver is told what to do and how it tells what happened;
test/compat says what each word means."""

import json
import sys
import time

# What the last credential of a chain returns, so that a chain that fell through is
# seen.
FIXED_TOKEN = "fell-through"


def arguments():
    return dict(argument.split("=", 1) for argument in sys.argv[1:])


def run(make, ask):
    """Makes the credential once, asks as often as it was told, and prints one line
    for each answer: ask returns a token and when it expires, in seconds."""
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
