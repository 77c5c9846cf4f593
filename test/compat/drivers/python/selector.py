"""The arguments of azure-identity's ManagedIdentityCredential, for the drivers of its synchronous and
its asynchronous API."""

from azure.identity import __version__


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
