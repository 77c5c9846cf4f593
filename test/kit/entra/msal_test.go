package entra_test

import (
	"context"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/AzureAD/microsoft-authentication-library-for-go/apps/confidential"

	"imds-oidc-proxy/test/kit/entra"
)

const (
	testClientID = "aaaaaaaa-0000-4000-8000-000000000001"
	testSubject  = "system:serviceaccount:shop:cart"
	testResource = "https://vault.azure.net"
)

func testApplication() entra.Application {
	return entra.Application{
		ClientID:    testClientID,
		Credentials: []entra.FederatedCredential{{Subject: testSubject}},
	}
}

// acquire gets a token with MSAL, as the proxy does.
func acquire(ctx context.Context, idp *entra.Server, client *http.Client) (confidential.AuthResult, error) {
	credential := confidential.NewCredFromAssertionCallback(
		func(context.Context, confidential.AssertionRequestOptions) (string, error) {
			return idp.SignFederatedToken(entra.Claims{Subject: testSubject}), nil
		})
	app, err := confidential.New(idp.Authority(), testClientID, credential,
		confidential.WithHTTPClient(client), confidential.WithInstanceDiscovery(false))
	if err != nil {
		return confidential.AuthResult{}, err
	}
	return app.AcquireTokenByCredential(ctx, []string{testResource + "/.default"})
}

func TestMSALAcquiresAToken(t *testing.T) {
	idp := start(t, entra.Config{RefreshIn: 12 * time.Hour})
	idp.AddApplication(testApplication())

	result, err := acquire(t.Context(), idp, idp.Client())
	if err != nil {
		t.Fatal(err)
	}
	token, err := idp.VerifyAccessToken(result.AccessToken)
	if err != nil {
		t.Fatal(err)
	}
	if token.ClientID != testClientID || token.Resource != testResource || token.TenantID != idp.TenantID() {
		t.Errorf("token is for client %s, resource %s, tenant %s", token.ClientID, token.Resource, token.TenantID)
	}
	if got := time.Until(result.ExpiresOn); got < 24*time.Hour-time.Minute || got > 24*time.Hour {
		t.Errorf("token lifetime is %s, want 24h", got)
	}
	if got := time.Until(result.Metadata.RefreshOn); got < 12*time.Hour-time.Minute || got > 12*time.Hour {
		t.Errorf("refresh_in is %s, want 12h", got)
	}
	want := entra.Counts{Token: 1, TenantDiscovery: 1, IssuerDiscovery: 1, IssuerKeys: 1}
	if got := idp.Counts(); got != want {
		t.Errorf("requests: got %+v, want %+v", got, want)
	}
	exchange := idp.Exchanges()[0]
	if got := exchange.Header.Get("x-client-sku"); got != "MSAL.Go" {
		t.Errorf("x-client-sku: got %q", got)
	}
	if exchange.TokenID != token.ID || exchange.Outcome != entra.OutcomeIssued {
		t.Errorf("the record has token %s, outcome %s", exchange.TokenID, exchange.Outcome)
	}
}

func TestMSALAcquiresATokenInABubble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		idp := withoutListener(t, entra.Config{})
		idp.AddApplication(testApplication())
		idp.FailNext(1, entra.FaultSlow(time.Hour))

		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Hour)
		defer cancel()
		begin := time.Now()
		result, err := acquire(ctx, idp, idp.Client())
		if err != nil {
			t.Fatal(err)
		}
		if got := time.Since(begin); got != time.Hour {
			t.Errorf("the slow answer took %s, want 1h", got)
		}
		token, err := entra.DecodeAccessToken(result.AccessToken)
		if err != nil {
			t.Fatal(err)
		}
		if want := begin.UTC(); !token.IssuedAt.Equal(want) {
			t.Errorf("issued at %s, want %s", token.IssuedAt, want)
		}
	})
}

// testKeys are shared by most tests, because generating keys takes time.
var testKeys = entra.NewKeys()

// start returns a server with a listener, withoutListener a server without one.
func start(t *testing.T, cfg entra.Config) *entra.Server {
	t.Helper()
	if cfg.Keys == nil {
		cfg.Keys = testKeys
	}
	idp, err := entra.Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := idp.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return idp
}

func withoutListener(t *testing.T, cfg entra.Config) *entra.Server {
	t.Helper()
	if cfg.Keys == nil {
		cfg.Keys = testKeys
	}
	idp, err := entra.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return idp
}
