"""Gets tokens with azure-identity, any version."""

import time

from azure.core.credentials import AccessToken
from azure.identity import ChainedTokenCredential, DefaultAzureCredential, ManagedIdentityCredential

import protocol
from selector import selector


class Fixed:
    def get_token(self, *scopes, **kwargs):
        return AccessToken(protocol.FIXED_TOKEN, int(time.time()) + 3600)


def make(request):
    if request["credential"] == "default":
        return DefaultAzureCredential()
    managed = ManagedIdentityCredential(**selector(request))
    if request["credential"] == "fallthrough":
        return ChainedTokenCredential(managed, Fixed())
    return managed


def ask(credential, request):
    token = credential.get_token(request["resource"] + "/.default")
    return token.token, token.expires_on


protocol.run(make, ask)
