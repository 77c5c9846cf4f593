// Gets tokens with @azure/identity, any version.
"use strict";

const identity = require("@azure/identity");
const { run, fixedToken } = require("./protocol.js");

const fixed = {
  getToken: async () => ({ token: fixedToken, expiresOnTimestamp: Date.now() + 3600e3 }),
};

function managed({ client_id, object_id, resource_id }) {
  if (object_id) return new identity.ManagedIdentityCredential({ objectId: object_id });
  if (resource_id) return new identity.ManagedIdentityCredential({ resourceId: resource_id });
  if (client_id) return new identity.ManagedIdentityCredential(client_id);
  return new identity.ManagedIdentityCredential();
}

function make(request) {
  switch (request.credential) {
    case "default":
      return new identity.DefaultAzureCredential();
    case "fallthrough":
      return new identity.ChainedTokenCredential(managed(request), fixed);
  }
  return managed(request);
}

run(make, async (credential, { resource }) => {
  const token = await credential.getToken(resource + "/.default");
  if (!token) throw new Error("getToken returned nothing"); // as 1.0 does
  return { token: token.token, expires_on: Math.floor(token.expiresOnTimestamp / 1000) };
});
