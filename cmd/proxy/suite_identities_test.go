package main

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"imds-oidc-proxy/test/kit/entra"
)

// The identities of the tests in this file. All trust the pod's service account.
const (
	secondClientID  = "8e2f5d0a-3c41-4b7e-9f65-0d1c2b3a4f50"
	foreignClientID = "1f0e9d8c-7b6a-4594-8372-615049382716" // the pod may use it in Entra, but no setting names it

	testObjectID    = "b7a1c9de-52f0-4e83-8d6b-9a0f1e2d3c01"
	secondObjectID  = "b7a1c9de-52f0-4e83-8d6b-9a0f1e2d3c02"
	foreignObjectID = "b7a1c9de-52f0-4e83-8d6b-9a0f1e2d3c03"

	secondResourceID = "/subscriptions/7d1b0c9a-4f3e-4a2d-8b6c-5e0f9a8b7c6d/resourcegroups/shop/providers/Microsoft.ManagedIdentity/userAssignedIdentities/cart"
)

// newIdentitiesPod returns a pod with two configured identities.
func newIdentitiesPod(t *testing.T) *pod {
	t.Helper()
	p := newPod(t)
	credentials := []entra.FederatedCredential{{Subject: testSubject}}
	p.idp.AddApplication(entra.Application{ClientID: testClientID, ObjectID: testObjectID, Credentials: credentials})
	p.idp.AddApplication(entra.Application{ClientID: secondClientID, ObjectID: secondObjectID, ResourceID: secondResourceID, Credentials: credentials})
	p.idp.AddApplication(entra.Application{ClientID: foreignClientID, ObjectID: foreignObjectID, Credentials: credentials})
	p.environment["PROXY_ALLOWED_CLIENT_IDS"] = testClientID + "," + secondClientID
	return p
}

// odbcRequest is what Microsoft's ODBC driver for SQL Server (msodbcsql 18.5) sends with
// Authentication=ActiveDirectoryMsi: its UID, an object ID or a client ID, as object_id.
func odbcRequest(uid string) (target string, header http.Header) {
	return "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https%3A%2F%2Fdatabase.windows.net%2F&object_id=" + uid,
		http.Header{"User-Agent": {"AzureADAuthProvider"}, "Accept": {"*/*"}, "Metadata": {"true"}}
}

// answered returns the client ID in an answer, and the claims of its token.
func answered(t *testing.T, body string) (clientID string, claims entra.AccessToken) {
	t.Helper()
	var answer map[string]string
	if err := json.Unmarshal([]byte(body), &answer); err != nil {
		t.Fatalf("%v: %s", err, body)
	}
	claims, err := entra.DecodeAccessToken(answer["access_token"])
	if err != nil {
		t.Fatal(err)
	}
	return answer["client_id"], claims
}

// TestODBCDriver: the driver gets its token at the first try, without --identity, whether its
// UID is the object ID or the client ID of the identity.
func TestODBCDriver(t *testing.T) {
	p := newIdentitiesPod(t)
	log := runPod(t, p)
	for _, test := range []struct{ uid, clientID string }{
		{secondObjectID, secondClientID},
		{strings.ToUpper(testObjectID), testClientID},
		{secondClientID, secondClientID},
	} {
		target, header := odbcRequest(test.uid)
		status, body := fetch(t, p.port, target, header)
		if status != http.StatusOK {
			t.Fatalf("UID %s: got %d %s\n%s", test.uid, status, body, log)
		}
		if id, claims := answered(t, body); id != test.clientID || claims.ClientID != test.clientID || claims.Resource != "https://database.windows.net/" {
			t.Errorf("UID %s: got client_id %s and a token of %s for %s, want %s", test.uid, id, claims.ClientID, claims.Resource, test.clientID)
		}
	}
	if got := len(p.idp.Exchanges()); got != 2 {
		t.Errorf("%d exchanges, want one for each identity", got)
	}
	target, header := odbcRequest(foreignObjectID)
	if status, body := fetch(t, p.port, target, header); status != http.StatusBadRequest || !strings.Contains(body, `"Identity not found"`) {
		t.Errorf("object ID of an identity that is not configured: got %d %s, want 400", status, body)
	}
	for object, id := range map[string]string{testObjectID: testClientID, secondObjectID: secondClientID} {
		line := fmt.Sprintf(`"msg":"learned object ID","tenant_id":"%s","object_id":"%s","client_id":"%s"`, p.idp.TenantID(), object, id)
		if got := strings.Count(log.String(), line); got != 1 {
			t.Errorf("%d lines with %s, want one:\n%s", got, line, log)
		}
	}
	if _, body := fetch(t, p.admin, "/metrics", nil); !strings.Contains(body, `imds_oidc_proxy_learned_identities_total{selector="object_id"} 2`) ||
		!strings.Contains(body, `imds_oidc_proxy_refused_requests_total{reason="identity_not_found"} 1`) {
		t.Errorf("metrics:\n%s", body)
	}
}

// TestNoWrongIdentity sends requests that name an identity in random ways to a proxy with
// several identities. Each answer with a token has the identity that the request names.
// azure-workload-identity's proxy returns the token of the default identity instead.
func TestNoWrongIdentity(t *testing.T) {
	p := newIdentitiesPod(t)
	log := runPod(t, p)
	random := rand.New(rand.NewPCG(18, 2))
	clientIDs := map[string]string{testObjectID: testClientID, secondObjectID: secondClientID, strings.ToLower(secondResourceID): secondClientID,
		testClientID: testClientID, secondClientID: secondClientID}
	names := []string{testObjectID, secondObjectID, foreignObjectID, testClientID, secondClientID, foreignClientID, secondResourceID,
		secondResourceID + "-2", strings.ToUpper(secondResourceID), strings.ToUpper(secondObjectID), "cart", "00000000-0000-0000-0000-000000000000"}
	parameters := []string{"object_id", "principal_id", "client_id", "clientid", "msi_res_id", "mi_res_id", "resource_id"}
	resources := []string{testResource, "https://storage.azure.com", "https://database.windows.net/", "https://unknown.example.test"}
	tokens := 0
	for range 500 {
		name, parameter := names[random.IntN(len(names))], parameters[random.IntN(len(parameters))]
		query := url.Values{"resource": {resources[random.IntN(len(resources))]}, parameter: {name}, "bypass_cache": {fmt.Sprint(random.IntN(2) == 0)}}
		status, body := fetch(t, p.port, "/metadata/identity/oauth2/token?"+query.Encode(), http.Header{"Metadata": {"true"}})
		if status != http.StatusOK {
			if status != http.StatusBadRequest {
				t.Fatalf("%v: got %d %s\n%s", query, status, body, log)
			}
			continue
		}
		tokens++
		want := clientIDs[strings.ToLower(name)]
		if id, claims := answered(t, body); id != want || claims.ClientID != want || want == "" {
			t.Errorf("%v: got client_id %s and a token of %s, want %q", query, id, claims.ClientID, want)
		}
	}
	if tokens < 50 {
		t.Errorf("only %d of the requests got a token", tokens)
	}
	for _, x := range p.idp.Exchanges() {
		if x.ClientID == foreignClientID {
			t.Error("an identity that is not configured was exchanged")
		}
	}
}

// TestOpaqueTokenOfEntra: from a token that is not a JSON Web Token, nothing is learned.
func TestOpaqueTokenOfEntra(t *testing.T) {
	p := newIdentitiesPod(t)
	p.idp.FailAlways(entra.FaultEdit("opaque", func(a map[string]any) { a["access_token"] = "EwBwA8l6BAAUO9chh8cJscQLmU+LSWpbnr0vmwwAAQ" }).On(entra.TokenEndpoint))
	log := runPod(t, p)
	target, header := odbcRequest(secondObjectID)
	if status, body := fetch(t, p.port, target, header); status != http.StatusBadRequest || !strings.Contains(body, "Identity not found") {
		t.Errorf("got %d %s, want 400", status, body)
	}
	if !strings.Contains(log.String(), "2 have no readable token") || strings.Contains(log.String(), "EwBw") {
		t.Errorf("log:\n%s", log)
	}
}
