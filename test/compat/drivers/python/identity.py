"""Gets tokens with azure-identity, any version."""

import time

from azure.core.credentials import AccessToken
from azure.identity import ChainedTokenCredential, DefaultAzureCredential, ManagedIdentityCredential, __version__

import protocol


class Fixed:
    def get_token(self, *scopes, **kwargs):
        return AccessToken(protocol.FIXED_TOKEN, int(time.time()) + 3600)


def managed(request):
    if "client_id" in request:
        return ManagedIdentityCredential(client_id=request["client_id"])
    if "object_id" in request:
        return ManagedIdentityCredential(identity_config={"object_id": request["object_id"]})
    if "resource_id" in request:
        return ManagedIdentityCredential(identity_config={resource_id_name(): request["resource_id"]})
    return ManagedIdentityCredential()


def resource_id_name():
    """Old versions need the name of IMDS's parameter. Versions based on MSAL ignore this name."""
    major, minor = (int(part) for part in __version__.split(".")[:2])
    return "mi_res_id" if (major, minor) <= (1, 13) else "resource_id"


def make(request):
    if request["credential"] == "default":
        return DefaultAzureCredential()
    if request["credential"] == "fallthrough":
        return ChainedTokenCredential(managed(request), Fixed())
    return managed(request)


def ask(credential, request):
    token = credential.get_token(request["resource"] + "/.default")
    return token.token, token.expires_on


protocol.run(make, ask)
