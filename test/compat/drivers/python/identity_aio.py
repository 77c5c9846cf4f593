"""Gets tokens with azure-identity's asynchronous API, azure.identity.aio, any version."""

import asyncio
import functools

import azure.identity.aio

import credentials
import protocol

# One event loop for all calls, because the credential keeps its HTTP session.
loop = asyncio.new_event_loop()
asyncio.set_event_loop(loop)


class Fixed:
    async def get_token(self, *scopes, **kwargs):
        return credentials.fixed_token()


def ask(credential, request):
    token = loop.run_until_complete(credential.get_token(request["resource"] + "/.default"))
    return token.token, token.expires_on


protocol.run(functools.partial(credentials.make, azure.identity.aio, Fixed()), ask)
