"""Gets tokens with MSAL Python's ManagedIdentityClient."""

import time

import msal
import requests

import protocol


class Refused(Exception):
    """MSAL returns errors instead of raising them."""


def make(request):
    identity = msal.SystemAssignedManagedIdentity()
    if "client_id" in request:
        identity = msal.UserAssignedManagedIdentity(client_id=request["client_id"])
    if "object_id" in request:
        identity = msal.UserAssignedManagedIdentity(object_id=request["object_id"])
    if "resource_id" in request:
        identity = msal.UserAssignedManagedIdentity(resource_id=request["resource_id"])
    return msal.ManagedIdentityClient(identity, http_client=requests.Session())


def ask(client, request):
    answer = client.acquire_token_for_client(resource=request["resource"])
    if "access_token" not in answer:
        raise Refused("{error}: {error_description}".format(**{"error_description": "", **answer}))
    return answer["access_token"], time.time() + answer["expires_in"]


protocol.run(make, ask)
