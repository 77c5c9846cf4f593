"""The credentials of azure-identity, for the drivers of its synchronous and its asynchronous API."""

import time

from azure.core.credentials import AccessToken
from azure.identity import __version__

import protocol


def make(library, fixed, request):
    """Returns the credential of a request. The library is azure.identity or azure.identity.aio."""
    if request["credential"] == "default":
        return library.DefaultAzureCredential()
    managed = library.ManagedIdentityCredential(**selector(request))
    if request["credential"] == "fallthrough":
        return library.ChainedTokenCredential(managed, fixed)
    return managed


def fixed_token():
    """Returns the token of the credential that a chain falls through to."""
    return AccessToken(protocol.FIXED_TOKEN, int(time.time()) + 3600)


def selector(request):
    if "client_id" in request:
        return {"client_id": request["client_id"]}
    if "object_id" in request:
        return {"identity_config": {"object_id": request["object_id"]}}
    if "resource_id" in request:
        return {"identity_config": {resource_id_name(): request["resource_id"]}}
    return {}


def resource_id_name():
    """Old versions need the name of IMDS's parameter. Versions based on MSAL ignore this name."""
    major, minor = (int(part) for part in __version__.split(".")[:2])
    return "mi_res_id" if (major, minor) <= (1, 13) else "resource_id"
