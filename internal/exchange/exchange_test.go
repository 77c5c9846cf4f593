package exchange_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/exchange"
	"imds-oidc-proxy/test/kit/entra"
)

// TestKeyID: KeyID is the kid in the header, and empty if the header cannot be parsed.
func TestKeyID(t *testing.T) {
	for header, want := range map[string]string{
		`eyJhbGciOiJSUzI1NiIsImtpZCI6ImEta2V5In0`: "a-key", // {"alg":"RS256","kid":"a-key"}
		`eyJhbGciOiJSUzI1NiJ9`:                    "",      // {"alg":"RS256"}
		`eyJraWQiOjF9`:                            "",      // {"kid":1}
		`%%%`:                                     "",
		``:                                        "",
	} {
		path := filepath.Join(t.TempDir(), "token")
		_, rest, _ := strings.Cut(jwt(goodClaims), ".")
		write(t, path, header+"."+rest)
		got, err := exchange.ReadFederatedToken(path)
		if err != nil {
			t.Fatal(err)
		}
		if got.KeyID != want {
			t.Errorf("header %q: got key %q, want %q", header, got.KeyID, want)
		}
	}
}

// TestDiscover: Discover connects and requests no token.
func TestDiscover(t *testing.T) {
	idp, err := entra.Start(entra.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer idp.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := idp.WriteCA(ca); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name, tenant, ca string
		code             int
		fails            bool
	}{
		{"good", idp.TenantID(), ca, 0, false},
		{"unknown tenant", "99999999-8888-4777-8666-555555555555", ca, 90002, true},
		{"unknown authority", idp.TenantID(), "", 0, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, err := exchange.New(exchange.Config{
				TenantID: azure.Tenant(test.tenant), AuthorityHost: authority(idp.AuthorityHost()), CAFile: test.ca,
				FederatedTokenFile: filepath.Join(t.TempDir(), "missing"),
			})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			err = s.Discover(t.Context())
			if failed, ok := errors.AsType[*exchange.Error](err); ok != test.fails || ok && failed.Code != test.code {
				t.Errorf("got %v", err)
			}
		})
	}
	if got := idp.Counts().Token; got != 0 {
		t.Errorf("%d token requests, want none", got)
	}
}

// TestNewHTTPClient: the client trusts the CA file, follows no redirects, and refuses http.
func TestNewHTTPClient(t *testing.T) {
	idp, err := entra.Start(entra.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer idp.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := idp.WriteCA(ca); err != nil {
		t.Fatal(err)
	}
	client, err := exchange.NewHTTPClient(exchange.Config{CAFile: ca})
	if err != nil {
		t.Fatal(err)
	}
	defer client.CloseIdleConnections()

	idp.FailNext(1, entra.FaultRedirect(http.StatusFound, idp.Issuer()+"/openid/v1/jwks").On(entra.IssuerDiscovery))
	resp, err := client.Get(idp.Issuer() + "/.well-known/openid-configuration")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusFound || idp.Counts().IssuerKeys != 0 {
		t.Errorf("got status %d and %d requests to the target of the redirect, want 302 and none", resp.StatusCode, idp.Counts().IssuerKeys)
	}

	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	if resp, err := client.Get(plain.URL); err == nil {
		resp.Body.Close()
		t.Error("a request to an http address succeeded")
	}
}
