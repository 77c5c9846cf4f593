"""Gets tokens with azure-identity's asynchronous API, azure.identity.aio, any version."""

import asyncio
import time

from azure.core.credentials import AccessToken
from azure.identity.aio import ChainedTokenCredential, DefaultAzureCredential, ManagedIdentityCredential

import protocol
from selector import selector

# One event loop for all calls, because the credential keeps its HTTP session.
loop = asyncio.new_event_loop()
asyncio.set_event_loop(loop)


class Fixed:
    async def get_token(self, *scopes, **kwargs):
        return AccessToken(protocol.FIXED_TOKEN, int(time.time()) + 3600)


def make(request):
    if request["credential"] == "default":
        return DefaultAzureCredential()
    managed = ManagedIdentityCredential(**selector(request))
    if request["credential"] == "fallthrough":
        return ChainedTokenCredential(managed, Fixed())
    return managed


def ask(credential, request):
    token = loop.run_until_complete(credential.get_token(request["resource"] + "/.default"))
    return token.token, token.expires_on


protocol.run(make, ask)
