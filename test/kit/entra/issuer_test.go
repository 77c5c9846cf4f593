package entra_test

import (
	"net/http"
	"testing"
	"time"

	"imds-oidc-proxy/test/kit/entra"
)

// federate returns a tenant whose application trusts the issuer of another server, which
// has other keys.
func federate(t *testing.T, keys *entra.Keys, now func() time.Time) (idp, cluster *entra.Server) {
	t.Helper()
	cluster = start(t, entra.Config{Keys: keys})
	idp = start(t, entra.Config{IssuerClient: cluster.Client(), Now: now})
	idp.AddApplication(entra.Application{
		ClientID:    testClientID,
		Credentials: []entra.FederatedCredential{{Issuer: cluster.Issuer(), Subject: testSubject}},
	})
	return idp, cluster
}

func TestKeysOfAnotherIssuerAreCached(t *testing.T) {
	offset := time.Duration(0)
	idp, cluster := federate(t, entra.NewKeys(), func() time.Time { return time.Now().Add(offset) })
	ask := func() answer {
		form := goodForm(idp)
		form.Set("client_assertion", cluster.SignFederatedToken(entra.Claims{Subject: testSubject, Expiry: time.Now().Add(24 * time.Hour)}))
		return post(t, idp.Client(), idp.TokenURL(), form)
	}
	for range 3 {
		if got := ask(); got.status != http.StatusOK {
			t.Fatalf("got %d %s", got.status, got.Description)
		}
	}
	if got := cluster.Counts(); got != (entra.Counts{IssuerDiscovery: 1, IssuerKeys: 1}) {
		t.Errorf("after three exchanges the issuer got %+v", got)
	}
	offset = time.Hour
	if got := ask(); got.status != http.StatusOK {
		t.Fatalf("an hour later: %d %s", got.status, got.Description)
	}
	if got := cluster.Counts(); got != (entra.Counts{IssuerDiscovery: 2, IssuerKeys: 2}) {
		t.Errorf("an hour later the issuer got %+v", got)
	}
}

func TestIssuerThatCannotBeUsed(t *testing.T) {
	keys := entra.NewKeys()
	for name, fault := range map[string]entra.Fault{
		"document missing":           entra.FaultStatus(404, "").On(entra.IssuerDiscovery),
		"document is HTML":           entra.FaultHTML(200).On(entra.IssuerDiscovery),
		"document reset":             entra.FaultReset().On(entra.IssuerDiscovery),
		"document of another issuer": entra.FaultEdit("", func(a map[string]any) { a["issuer"] = "https://other.example.test" }).On(entra.IssuerDiscovery),
		"keys not over https":        entra.FaultEdit("", func(a map[string]any) { a["jwks_uri"] = "http://127.0.0.1:1/jwks" }).On(entra.IssuerDiscovery),
		"document redirected":        entra.FaultRedirect(0, "https://127.0.0.1:1/").On(entra.IssuerDiscovery),
		"no keys":                    entra.FaultStatus(500, "").On(entra.IssuerKeys),
		"keys are malformed":         entra.FaultMalformedJSON("x").On(entra.IssuerKeys),
		"keys are truncated":         entra.FaultTruncated().On(entra.IssuerKeys),
	} {
		t.Run(name, func(t *testing.T) {
			idp, cluster := federate(t, keys, nil)
			cluster.FailNext(1, fault)
			form := goodForm(idp)
			form.Set("client_assertion", cluster.SignFederatedToken(entra.Claims{Subject: testSubject}))
			got := post(t, idp.Client(), idp.TokenURL(), form)
			if got.status != 400 || got.Error != "invalid_request" || len(got.Codes) != 1 || got.Codes[0] != 90061 {
				t.Errorf("got %d %s %v", got.status, got.Error, got.Codes)
			}
			if got := post(t, idp.Client(), idp.TokenURL(), form); got.status != http.StatusOK {
				t.Errorf("after the fault: %d %s", got.status, got.Description)
			}
		})
	}
}

func TestOtherIssuersAreNotFetchedWithoutIssuerClient(t *testing.T) {
	cluster := start(t, entra.Config{})
	idp := start(t, entra.Config{})
	idp.AddApplication(entra.Application{
		ClientID:    testClientID,
		Credentials: []entra.FederatedCredential{{Issuer: cluster.Issuer(), Subject: testSubject}},
	})
	form := goodForm(idp)
	form.Set("client_assertion", cluster.SignFederatedToken(entra.Claims{Subject: testSubject}))
	if got := post(t, idp.Client(), idp.TokenURL(), form); len(got.Codes) != 1 || got.Codes[0] != 90061 {
		t.Errorf("got %d %v", got.status, got.Codes)
	}
	if got := cluster.Counts(); got != (entra.Counts{}) {
		t.Errorf("the issuer got %+v", got)
	}
}
