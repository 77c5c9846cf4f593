"""Gets tokens with msrestazure's MSIAuthentication, as the track 1 SDK does."""

from msrestazure.azure_active_directory import MSIAuthentication

import protocol


def make(request):
    selectors = {"client_id": "client_id", "object_id": "object_id", "resource_id": "msi_res_id"}
    chosen = {name: request[given] for given, name in selectors.items() if given in request}
    return MSIAuthentication(resource=request["resource"], **chosen)


def ask(credential, request):
    # Every request to a service does the same. The constructor has already sent one request.
    credential.set_token()
    return credential.token["access_token"], credential.token["expires_on"]


protocol.run(make, ask)
