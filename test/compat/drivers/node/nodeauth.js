// Gets tokens with @azure/ms-rest-nodeauth, as the track 1 SDK does.
"use strict";

const { MSIAppServiceTokenCredentials, MSIVmTokenCredentials } = require("@azure/ms-rest-nodeauth");
const { run } = require("./protocol.js");

// The application chooses the class by the service in which it runs.
function make({ resource, client_id, object_id, resource_id }) {
  if (process.env.MSI_ENDPOINT) return new MSIAppServiceTokenCredentials({ resource, clientId: client_id });
  return new MSIVmTokenCredentials({ resource, clientId: client_id, objectId: object_id, identityId: resource_id });
}

run(make, async (credentials) => {
  const answer = await credentials.getToken();
  return { token: answer.accessToken, expires_on: Number(answer.expiresOn || 0) };
});
