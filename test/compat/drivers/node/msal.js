// Gets tokens with @azure/msal-node's ManagedIdentityApplication.
"use strict";

const { ManagedIdentityApplication } = require("@azure/msal-node");
const { run } = require("./protocol.js");

function make({ client_id, object_id, resource_id }) {
  const managedIdentityIdParams = {
    ...(client_id && { userAssignedClientId: client_id }),
    ...(object_id && { userAssignedObjectId: object_id }),
    ...(resource_id && { userAssignedResourceId: resource_id }),
  };
  return new ManagedIdentityApplication({ managedIdentityIdParams });
}

run(make, async (application, { resource }) => {
  const answer = await application.acquireToken({ resource });
  return { token: answer.accessToken, expires_on: Math.floor(answer.expiresOn.getTime() / 1000) };
});
