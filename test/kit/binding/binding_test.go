package binding_test

import (
	"context"
	"crypto/tls"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"imds-oidc-proxy/test/kit/binding"
	"imds-oidc-proxy/test/kit/entra"
)

const (
	clientID   = "aaaaaaaa-0000-4000-8000-000000000001"
	subject    = "system:serviceaccount:shop:cart"
	serverName = "a1.ests.aks"
)

// TestChecks: the stand-in issues a token only if all of the binding is right.
func TestChecks(t *testing.T) {
	idp, err := entra.New(entra.Config{ServerNames: []string{serverName, "kubernetes.default.svc"}})
	if err != nil {
		t.Fatal(err)
	}
	proxy, err := binding.Start(binding.Config{
		Entra: idp, Certificate: idp.Certificate(), ServerName: serverName, Path: "/prefix", Review: idp.ReviewFederatedToken,
		Allowed: func(_ context.Context, s, id string) (bool, error) { return s == subject && id == clientID, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { proxy.Close() })
	proxy.Bind(entra.Application{ClientID: clientID})
	proxy.Bind(entra.Application{ClientID: "aaaaaaaa-0000-4000-8000-000000000002"})

	good := entra.Claims{Subject: subject, Audience: binding.Audience}
	for _, c := range []struct {
		name, serverName, path, clientID string
		claims                           entra.Claims
		want                             int
		body                             string
	}{
		{"all is right", serverName, "/prefix", clientID, good, 200, `"access_token"`},
		{"the name of the API server", "kubernetes.default.svc", "/prefix", clientID, good, 401, `"reason":"Unauthorized"`},
		{"no prefix", serverName, "", clientID, good, 404, `"kind":"Status"`},
		{"Entra's audience", serverName, "/prefix", clientID, entra.Claims{Subject: subject}, 401, "Unauthorized"},
		{"a forged token", serverName, "/prefix", clientID, entra.Claims{Subject: subject, Audience: binding.Audience, Signer: entra.ForgedKey}, 401, "Unauthorized"},
		{"another service account", serverName, "/prefix", clientID, entra.Claims{Subject: "system:serviceaccount:shop:default", Audience: binding.Audience}, 403, "cid.wi.aks.azure.com"},
		{"an identity that is not allowed", serverName, "/prefix", "aaaaaaaa-0000-4000-8000-000000000002", good, 403, "use-managed-identity"},
		{"an identity without a binding", serverName, "/prefix", "aaaaaaaa-0000-4000-8000-000000000003", good, 404, "not found"},
	} {
		config := idp.TLSConfig()
		config.ServerName = c.serverName
		status, body := post(t, config, strings.TrimSuffix(proxy.URL(), "/prefix")+c.path+"/"+idp.TenantID()+"/oauth2/v2.0/token", url.Values{
			"grant_type": {"client_credentials"}, "client_id": {c.clientID}, "scope": {"https://vault.azure.net/.default"},
			"client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:jwt-bearer"}, "client_assertion": {idp.SignFederatedToken(c.claims)},
		})
		if status != c.want || !strings.Contains(body, c.body) {
			t.Errorf("%s: got %d, %s; want %d", c.name, status, body, c.want)
		}
	}
	if got := len(idp.Exchanges()); got != 1 {
		t.Errorf("Entra got %d token requests, want one", got)
	}
	// Entra itself has no credential for the pod's token.
	if idp.Exchanges()[0].Subject == subject {
		t.Errorf("Entra got the pod's token: %+v", idp.Exchanges()[0])
	}
}

func post(t *testing.T, config *tls.Config, target string, form url.Values) (status int, body string) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: config}}
	defer client.CloseIdleConnections()
	resp, err := client.PostForm(target, form)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}
