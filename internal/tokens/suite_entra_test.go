package tokens_test

import (
	"path/filepath"
	"testing"
	"time"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/exchange"
	"imds-oidc-proxy/internal/tokens"
	"imds-oidc-proxy/test/kit/entra"
)

// TestInventedClientIDsWithMSAL makes requests with invented client IDs in 400 goroutines, with
// real connections to a fake Entra that takes a second for each answer. A new resource of a
// configured identity takes one exchange, and Entra gets no more requests than the budget
// allows.
func TestInventedClientIDsWithMSAL(t *testing.T) {
	const latency = time.Second
	const subject = "system:serviceaccount:shop:cart"
	idp, err := entra.Start(entra.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer idp.Close()
	idp.AddApplication(entra.Application{ClientID: clientID, Credentials: []entra.FederatedCredential{{Subject: subject}}})
	idp.AddResource("https://*.example.test")
	token, err := idp.ProjectToken(entra.ProjectedTokenConfig{Dir: t.TempDir(), Subject: subject})
	if err != nil {
		t.Fatal(err)
	}
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := idp.WriteCA(ca); err != nil {
		t.Fatal(err)
	}
	authority, err := azure.ParseAuthorityHost(idp.AuthorityHost())
	if err != nil {
		t.Fatal(err)
	}
	exchanger, err := exchange.New(exchange.Config{
		TenantID: azure.Tenant(idp.TenantID()), AuthorityHost: authority, CAFile: ca, FederatedTokenFile: token.Path(),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer exchanger.Close()
	s := newService(t, tokens.Config{Exchanger: exchanger, Identities: []azure.ClientID{clientID}})
	if err := exchanger.Discover(t.Context()); err != nil {
		t.Fatal(err)
	}
	idp.FailAlways(entra.FaultSlow(latency).On(entra.TokenEndpoint))

	began := time.Now()
	stop := attack(t, s, fast, inventedClientID)
	for idp.InFlight() < tokens.BudgetBurst/2 && t.Context().Err() == nil { // until the attack has begun
		time.Sleep(time.Millisecond)
	}
	for _, source := range []tokens.Source{tokens.SourceEntra, tokens.SourceCache} {
		got, err := s.Token(t.Context(), tokens.Request{ClientID: clientID, Resource: resource})
		if err != nil || got.Source != source {
			t.Errorf("got source %q, error %v, want %q", got.Source, err, source)
		}
	}
	requests := stop()
	if got, most := len(idp.Exchanges()), budgetFor(time.Since(began)); got > most {
		t.Errorf("%d requests cost %d exchanges, want at most %d", requests, got, most)
	} else {
		t.Logf("%d requests cost %d exchanges, at most %d are allowed", requests, got, most)
	}
}
