package main

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	zapobserver "go.uber.org/zap/zaptest/observer"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/exchange"
	"imds-oidc-proxy/internal/imds"
	"imds-oidc-proxy/internal/logging"
	"imds-oidc-proxy/internal/loglimit"
	"imds-oidc-proxy/internal/tokens"
	"imds-oidc-proxy/test/kit/entra"
	"imds-oidc-proxy/test/kit/local"
)

// newTestObserver returns an observer and the path of its federated token. The authority is a
// closed port of this machine.
func newTestObserver(t *testing.T, idp *entra.Server, life time.Duration) (*observer, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "token")
	now := time.Now()
	writeToken(t, idp, path, entra.Claims{Subject: "system:serviceaccount:shop:cart", IssuedAt: now.Add(-time.Minute), Expiry: now.Add(life)})
	observed := newObserver(loglimit.New(nil), new(logging.Queue), zap.NewNop())
	exchanger, err := exchange.New(exchange.Config{
		TenantID:           azure.Tenant(idp.TenantID()),
		AuthorityHost:      "https://127.0.0.1:1/",
		FederatedTokenFile: path,
	})
	if err != nil {
		t.Fatal(err)
	}
	service, err := tokens.New(tokens.Config{Exchanger: exchanger})
	if err != nil {
		t.Fatal(err)
	}
	observed.exchanger, observed.tokens = exchanger, service
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

// TestReady: /readyz succeeds if the proxy listens and its federated token is usable, and
// otherwise names the check that failed. It checks only what the pod itself can know.
func TestReady(t *testing.T) {
	idp := newTestIssuer(t)
	observed, path := newTestObserver(t, idp, time.Hour)
	var listening atomic.Bool
	h := newRouter(observed, &listening, nil, zap.NewNop())

	if w := ask(h, "GET", "/readyz?verbose"); w.Code != 503 || !strings.HasPrefix(w.Body.String(), "[-]listening failed: ") {
		t.Errorf("before the port is open: got %d %s, want 503 and the failed check", w.Code, w.Body)
	}
	listening.Store(true)
	if w := ask(h, "GET", "/readyz"); w.Code != 200 || w.Body.String() != "ok" {
		t.Errorf("ready: got %d %s, want 200 ok", w.Code, w.Body)
	}
	want := "[+]listening ok\n[+]configuration ok\n[+]federated-token ok\nreadyz check passed\n"
	if w := ask(h, "GET", "/readyz?verbose"); w.Code != 200 || w.Body.String() != want {
		t.Errorf("ready, verbose: got %d %s, want 200 %s", w.Code, w.Body, want)
	}

	writeToken(t, idp, path, entra.Claims{Subject: "s", Expiry: time.Now().Add(-time.Minute)})
	w := ask(h, "GET", "/readyz?verbose")
	if w.Code != 503 || !strings.Contains(w.Body.String(), "[-]federated-token failed: AZURE_FEDERATED_TOKEN_FILE: expired") ||
		!strings.HasSuffix(w.Body.String(), "readyz check failed\n") {
		t.Errorf("expired token: got %d %s, want 503 and the failed check", w.Code, w.Body)
	}
	os.Remove(path)
	if w := ask(h, "GET", "/readyz"); w.Code != 503 || !strings.Contains(w.Body.String(), "federated-token: ") || !strings.Contains(w.Body.String(), "does not exist") {
		t.Errorf("missing token: got %d %s, want 503 and the failed check", w.Code, w.Body)
	}
	// A restart would not restore the token, so the proxy stays live.
	want = "[+]ping ok\n[+]token-cache ok\nlivez check passed\n"
	if w := ask(h, "GET", "/livez?verbose"); w.Code != 200 || w.Body.String() != want {
		t.Errorf("livez without a token: got %d %s, want 200 %s", w.Code, w.Body, want)
	}
}

// TestAdminServesOnlyOwnEndpoints: other pods can reach the admin port, so no spelling of a path
// may lead from there to the token endpoint or to the real IMDS.
func TestAdminServesOnlyOwnEndpoints(t *testing.T) {
	observed, _ := newTestObserver(t, newTestIssuer(t), time.Hour)
	var listening atomic.Bool
	own := newRouter(observed, &listening, nil, zap.NewNop())
	server := httptest.NewServer(withoutProxying(own))
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
		r.URL.Opaque = path + query // sent without escaping or cleaning
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
	for _, method := range []string{"POST", "PUT", "DELETE", "OPTIONS", "TRACE", "BREW"} {
		if w := ask(own, method, "/readyz"); w.Code != http.StatusMethodNotAllowed || w.Header().Get("Allow") != "GET, HEAD" {
			t.Errorf("%s: got %d and Allow %q, want 405 and GET, HEAD", method, w.Code, w.Header().Get("Allow"))
		}
		if w := ask(own, method, "/nothing"); w.Code != http.StatusNotFound {
			t.Errorf("%s of an unknown path: got %d, want 404", method, w.Code)
		}
	}
	if w := ask(withoutProxying(own), "GET", "http://169.254.169.254/livez"); w.Code != http.StatusNotFound {
		t.Errorf("absolute request target: got %d, want 404", w.Code)
	}
}

// TestSameErrorsOnBothPorts: an unknown path and a wrong method get the same answer on the token
// port and on the admin port, with IMDS's error codes.
func TestSameErrorsOnBothPorts(t *testing.T) {
	var listening atomic.Bool
	observed, _ := newTestObserver(t, newTestIssuer(t), time.Hour)
	own := newRouter(observed, &listening, nil, zap.NewNop())
	tokens, err := imds.New(imds.Config{Tokens: cached{}, TenantID: "22222222-2222-4222-8222-222222222222", DefaultClientID: testClientID, Fallback: own})
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ method, path, code string }{
		{"GET", "/", "not_found"}, {"POST", "/readyz/", "not_found"}, {"FOO", "/nothing", "not_found"},
		{"POST", "/readyz", "method_not_allowed"}, {"FOO", "/readyz", "method_not_allowed"}, {"DELETE", "/metrics", "method_not_allowed"},
	} {
		onToken, onAdmin := ask(tokens, test.method, test.path), ask(withoutProxying(own), test.method, test.path)
		if onToken.Code != onAdmin.Code || onToken.Body.String() != onAdmin.Body.String() || onToken.Header().Get("Allow") != onAdmin.Header().Get("Allow") {
			t.Errorf("%s %s: got %d %s on the token port and %d %s on the admin port, want the same", test.method, test.path, onToken.Code, onToken.Body, onAdmin.Code, onAdmin.Body)
		}
		if !strings.Contains(onToken.Body.String(), `"error":"`+test.code+`"`) {
			t.Errorf("%s %s: got %s, want the error code %s", test.method, test.path, onToken.Body, test.code)
		}
	}
}

// TestOwnEndpointsAreLoggedAtDebug: probes arrive every few seconds, which is too often for log
// lines at info.
func TestOwnEndpointsAreLoggedAtDebug(t *testing.T) {
	core, logs := zapobserver.New(zap.DebugLevel)
	ask(routerFor(map[string]http.Handler{"/readyz": http.NotFoundHandler()}, zap.New(core)), "GET", "/readyz")
	entries := logs.FilterMessage("received readyz request").All()
	if len(entries) != 1 || entries[0].Level != zap.DebugLevel {
		t.Errorf("got %+v, want one line at debug", entries)
	}
}

// startAdmin serves the endpoints as the admin server does, until the test ends.
func startAdmin(t *testing.T, endpoints map[string]http.Handler) *local.Pipes {
	listener := local.NewPipes()
	admin := adminOn(listener, routerFor(endpoints, zap.NewNop()), zap.NewNop())
	go admin.Serve()
	t.Cleanup(func() { admin.Close() })
	return listener
}

// adminWriteTime is the write timeout of the server for one answer.
const adminWriteTime = 5 * time.Second

const adminRequest = "GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"

// TestAdminAnswersProbesUnderAttack: clients that occupy all connections of the admin port, by
// not reading answers or by pipelining requests, delay a probe at most by the write timeout of
// one answer. The kubelet restarts a sidecar that does not answer.
func TestAdminAnswersProbesUnderAttack(t *testing.T) {
	for name, hold := range map[string]func(net.Conn){
		"clients never read": func(conn net.Conn) { io.WriteString(conn, strings.Repeat(adminRequest, 100)) },
		"clients pipeline requests and read slowly": func(conn net.Conn) {
			go io.WriteString(conn, strings.Repeat(adminRequest, 100))
			for r := bufio.NewReader(conn); ; {
				time.Sleep(adminWriteTime * 4 / 5)
				resp, err := http.ReadResponse(r, nil)
				if err != nil {
					return
				}
				io.Copy(io.Discard, resp.Body)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var holding sync.WaitGroup
				t.Cleanup(holding.Wait) // they return once their connections are closed
				ok := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") })
				listener := startAdmin(t, map[string]http.Handler{"/metrics": ok, "/livez": ok})
				for range adminConnections {
					conn := listener.Dial(t)
					holding.Go(func() { hold(conn) })
				}
				synctest.Wait()
				began := time.Now()
				probe := listener.Dial(t)
				go io.WriteString(probe, "GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
				resp, err := http.ReadResponse(bufio.NewReader(probe), nil)
				if err != nil || resp.StatusCode != http.StatusOK {
					t.Fatalf("probe: got %v, %v, want 200", resp, err)
				}
				if took := time.Since(began); took > adminWriteTime {
					t.Errorf("the probe was answered after %s, want at most %s", took, adminWriteTime)
				}
			})
		})
	}
}

// TestAdminConnectionsAreBounded: a connection above the limit waits until another one has been
// served.
func TestAdminConnectionsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var served atomic.Int32
		release := make(chan struct{})
		listener := startAdmin(t, map[string]http.Handler{"/metrics": http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
			served.Add(1)
			<-release
		})})
		for range adminConnections {
			io.WriteString(listener.Dial(t), adminRequest)
		}
		excess := listener.Dial(t)
		go io.WriteString(excess, adminRequest)
		synctest.Wait()
		if got := served.Load(); got != adminConnections {
			t.Errorf("got %d concurrent requests, want %d", got, adminConnections)
		}
		close(release)
		if _, err := excess.Read(make([]byte, 1)); err != nil && !errors.Is(err, io.EOF) {
			t.Errorf("connection above the limit: %v", err)
		}
		if got := served.Load(); got != adminConnections+1 {
			t.Errorf("got %d requests in total, want %d", got, adminConnections+1)
		}
	})
}
