package main

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"

	"imds-oidc-proxy/internal/exchange"
	"imds-oidc-proxy/internal/loglimit"
	"imds-oidc-proxy/test/entra"
)

// newTestObserver is one whose federated token is at the path returned,
// and whose Entra is a closed port of this machine.
func newTestObserver(t *testing.T, idp *entra.Server, life time.Duration) (*observer, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "token")
	now := time.Now()
	writeToken(t, idp, path, entra.Claims{Subject: "system:serviceaccount:shop:cart", IssuedAt: now.Add(-time.Minute), Expiry: now.Add(life)})
	observed := newObserver(path, loglimit.New(nil), zap.NewNop())
	tokens, err := exchange.New(exchange.Config{
		TenantID:           idp.TenantID(),
		AuthorityHost:      "https://127.0.0.1:1/",
		FederatedTokenFile: path,
	})
	if err != nil {
		t.Fatal(err)
	}
	observed.tokens = tokens
	return observed, path
}

func writeToken(t *testing.T, idp *entra.Server, path string, claims entra.Claims) {
	t.Helper()
	if err := os.WriteFile(path, []byte(idp.SignFederatedToken(claims)), 0o600); err != nil {
		t.Fatal(err)
	}
}

func newTestIssuer(t *testing.T) *entra.Server {
	t.Helper()
	idp, err := entra.New(entra.Config{})
	if err != nil {
		t.Fatal(err)
	}
	return idp
}

func ask(h http.Handler, method, target string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(method, target, nil))
	return w
}

// TestReady: ready is what the pod itself can tell, and says which check failed.
func TestReady(t *testing.T) {
	idp := newTestIssuer(t)
	observed, path := newTestObserver(t, idp, time.Hour)
	var listening atomic.Bool
	h := adminHandler(ownEndpoints(observed, &listening))

	if w := ask(h, "GET", "/readyz?verbose"); w.Code != 503 || !strings.HasPrefix(w.Body.String(), "[-]listening failed: ") {
		t.Errorf("before the port is open: got %d %s", w.Code, w.Body)
	}
	listening.Store(true)
	if w := ask(h, "GET", "/readyz"); w.Code != 200 || w.Body.String() != "ok" {
		t.Errorf("got %d %s", w.Code, w.Body)
	}
	want := "[+]listening ok\n[+]configuration ok\n[+]federated-token ok\nreadyz check passed\n"
	if w := ask(h, "GET", "/readyz?verbose"); w.Code != 200 || w.Body.String() != want {
		t.Errorf("got %d %s, want %s", w.Code, w.Body, want)
	}

	writeToken(t, idp, path, entra.Claims{Subject: "s", Expiry: time.Now().Add(-time.Minute)})
	w := ask(h, "GET", "/readyz?verbose")
	if w.Code != 503 || !strings.Contains(w.Body.String(), "[-]federated-token failed: AZURE_FEDERATED_TOKEN_FILE: has expired") ||
		!strings.HasSuffix(w.Body.String(), "readyz check failed\n") {
		t.Errorf("expired: got %d %s", w.Code, w.Body)
	}
	os.Remove(path)
	if w := ask(h, "GET", "/readyz"); w.Code != 503 || !strings.Contains(w.Body.String(), "federated-token: ") || !strings.Contains(w.Body.String(), "does not exist") {
		t.Errorf("missing: got %d %s", w.Code, w.Body)
	}
	// A restart would not bring the token back.
	want = "[+]ping ok\n[+]token-cache ok\nlivez check passed\n"
	if w := ask(h, "GET", "/livez?verbose"); w.Code != 200 || w.Body.String() != want {
		t.Errorf("livez: got %d %s, want %s", w.Code, w.Body, want)
	}
}

// TestAdminServesNothingElse: no spelling of a path leads from the pod's address to
// tokens or to the real IMDS.
func TestAdminServesNothingElse(t *testing.T) {
	observed, _ := newTestObserver(t, newTestIssuer(t), time.Hour)
	var listening atomic.Bool
	own := ownEndpoints(observed, &listening)
	for path := range own {
		if strings.HasPrefix(path, "/metadata") {
			t.Errorf("%s is served at the admin address", path)
		}
	}
	server := httptest.NewServer(adminHandler(own))
	defer server.Close()
	const query = "?api-version=2018-02-01&resource=https://vault.azure.net"
	for _, path := range []string{
		"/", "/metadata/identity/oauth2/token", "/metadata/identity/oauth2/token/", "//metadata/identity/oauth2/token",
		"/Metadata/identity/oauth2/token", "/metadata/identity/info", "/metadata/versions", "/metadata/instance",
		"/readyz/../metadata/identity/oauth2/token", "/readyz/..%2fmetadata/identity/oauth2/token", "/%6detadata/identity/oauth2/token",
		"/metrics/../metadata/identity/oauth2/token", "/readyz%2f..%2fmetadata%2fidentity%2foauth2%2ftoken",
		"/readyz/", "//readyz", "/READYZ", "/%72eadyz", "/readyz;a", "/debug", "/debug/", "/debug/pprof/", "/debug/vars",
	} {
		r, err := http.NewRequest("GET", server.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.URL.Opaque = path + query // sent as it is
		r.Header.Set("Metadata", "true")
		resp, err := http.DefaultTransport.RoundTrip(r)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusNotFound {
			t.Errorf("%s: got %s, want 404", path, resp.Status)
		}
	}
	for _, method := range []string{"POST", "PUT", "DELETE", "OPTIONS", "TRACE"} {
		if w := ask(adminHandler(own), method, "/readyz"); w.Code != http.StatusMethodNotAllowed {
			t.Errorf("%s: got %d, want 405", method, w.Code)
		}
	}
	if w := ask(adminHandler(own), "GET", "http://169.254.169.254/livez"); w.Code != http.StatusNotFound {
		t.Errorf("an absolute target: got %d, want 404", w.Code)
	}
}

func TestAdminAddress(t *testing.T) {
	for address, valid := range map[string]bool{
		"": true, ":8001": true, "127.0.0.1:8001": true, "[::]:8001": true, "0.0.0.0:65535": true,
		"8001": false, ":": false, ":0": false, ":65536": false, ":http": false, "127.0.0.1": false, "::1:8001": false,
	} {
		if err := checkAdminAddress(address); (err == nil) != valid {
			t.Errorf("%q: got %v, want valid %t", address, err, valid)
		}
	}
}
