package entra_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"imds-oidc-proxy/test/kit/entra"
)

// TestMain fails if goroutines still run after Close.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestCertificate(t *testing.T) {
	idp := start(t, entra.Config{ServerNames: []string{"token-proxy.example.test"}})
	path := filepath.Join(t.TempDir(), "ca.pem")
	if err := idp.WriteCA(path); err != nil {
		t.Fatal(err)
	}
	written, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(written, idp.CAPEM()) || !x509.NewCertPool().AppendCertsFromPEM(written) {
		t.Errorf("the CA file does not contain the CA: %q", written)
	}

	other := withoutListener(t, entra.Config{})
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: other.TLSConfig(), DisableKeepAlives: true}}
	got := observe(t.Context(), client, idp.TokenURL(), nil)
	if _, unknown := errors.AsType[x509.UnknownAuthorityError](got.err); !unknown {
		t.Errorf("a client with another CA: %+v", got)
	}
}

func TestRecordOfAnExchange(t *testing.T) {
	idp := start(t, entra.Config{ServerNames: []string{"token-proxy.example.test"}})
	idp.AddApplication(testApplication())
	tlsConfig := idp.TLSConfig()
	tlsConfig.ServerName = "token-proxy.example.test"
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: tlsConfig, DisableKeepAlives: true}}

	got := post(t, client, idp.TokenURL(), goodForm(idp))
	seen := idp.Exchanges()
	if got.status != http.StatusOK || len(seen) != 1 {
		t.Fatalf("answer %d, %d exchanges", got.status, len(seen))
	}
	x := seen[0]
	for _, field := range []struct{ name, got, want string }{
		{"SNI", x.SNI, "token-proxy.example.test"},
		{"path", x.Path, "/" + idp.TenantID() + "/oauth2/v2.0/token"},
		{"client ID", x.ClientID, testClientID},
		{"tenant", x.TenantID, idp.TenantID()},
		{"scope", x.Scope, testResource + "/.default"},
		{"resource", x.Resource, testResource},
		{"issuer", x.Issuer, idp.Issuer()},
		{"subject", x.Subject, testSubject},
		{"audience", x.Audience, entra.DefaultAudience},
		{"correlation ID", x.CorrelationID, testCorrelationID},
		{"outcome", x.Outcome, entra.OutcomeIssued},
	} {
		if field.got != field.want {
			t.Errorf("%s: got %q, want %q", field.name, field.got, field.want)
		}
	}
}

func TestRecordHasThePathBeforeStripPrefix(t *testing.T) {
	idp := withoutListener(t, entra.Config{})
	idp.AddApplication(testApplication())
	w := &recorder{header: http.Header{}}
	r, err := http.NewRequest(http.MethodPost, "/binding"+strings.TrimPrefix(idp.TokenURL(), "https://"+entra.DefaultHost), strings.NewReader(goodForm(idp).Encode()))
	if err != nil {
		t.Fatal(err)
	}
	r.RequestURI = r.URL.RequestURI()
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	http.StripPrefix("/binding", idp.Handler()).ServeHTTP(w, r)
	if want := "/binding/" + idp.TenantID() + "/oauth2/v2.0/token"; w.status != 200 || idp.Exchanges()[0].Path != want {
		t.Errorf("status %d, path %s, want 200, %s", w.status, idp.Exchanges()[0].Path, want)
	}
}

// recorder is an http.ResponseWriter that stores the status.
type recorder struct {
	header http.Header
	status int
}

func (r *recorder) Header() http.Header         { return r.header }
func (r *recorder) WriteHeader(status int)      { r.status = status }
func (r *recorder) Write(b []byte) (int, error) { return len(b), nil }

func TestUnknownPaths(t *testing.T) {
	idp := start(t, entra.Config{})
	for _, path := range []string{"", "/" + idp.TenantID() + "/oauth2/v2.0/token", idp.TenantID() + "/oauth2/v2.0//token", idp.TenantID() + "/oauth2/token", "common/../cluster/openid/v1/jwks"} {
		if got := observe(t.Context(), idp.Client(), idp.AuthorityHost()+path, nil); got.status != http.StatusNotFound {
			t.Errorf("%q: got %+v", path, got)
		}
	}
	if got := idp.Counts(); got != (entra.Counts{UnknownPath: 5}) {
		t.Errorf("counts: %+v", got)
	}
}

func TestInstanceDiscovery(t *testing.T) {
	idp := start(t, entra.Config{})
	endpoint := idp.AuthorityHost() + "common/discovery/instance?api-version=1.1&authorization_endpoint="

	got := observe(t.Context(), idp.Client(), endpoint+idp.Authority()+"/oauth2/v2.0/authorize", nil)
	if want := idp.Authority() + "/v2.0/.well-known/openid-configuration"; got.status != 200 || !strings.Contains(got.body, want) {
		t.Errorf("authority of this server: %+v", got)
	}
	got = observe(t.Context(), idp.Client(), endpoint+"https://other.example.test/common/oauth2/v2.0/authorize", nil)
	if got.status != 400 || !strings.Contains(got.body, `"error":"invalid_instance"`) {
		t.Errorf("another authority: %+v", got)
	}
}

func TestOtherTenantsAreNotDiscovered(t *testing.T) {
	idp := start(t, entra.Config{})
	const other = "cccccccc-0000-4000-8000-000000000003"
	for _, path := range []string{"/v2.0/.well-known/openid-configuration", "/discovery/v2.0/keys"} {
		if got := observe(t.Context(), idp.Client(), idp.Authority()+path, nil); got.status != 200 {
			t.Errorf("%s of the tenant: %+v", path, got)
		}
		got, err := observe(t.Context(), idp.Client(), idp.AuthorityHost()+other+path, nil).answer()
		if err != nil || got.status != 400 || got.Error != "invalid_tenant" {
			t.Errorf("%s of another: %+v, %v", path, got, err)
		}
	}
}

func TestInvalidTokenRequests(t *testing.T) {
	idp := start(t, entra.Config{})
	if got := post(t, idp.Client(), idp.TokenURL(), nil); got.status != 400 || got.Codes[0] != 900561 {
		t.Errorf("GET: %d %s", got.status, got.Description)
	}
	form := goodForm(idp)
	form.Set("padding", strings.Repeat("x", 2<<20))
	if got := post(t, idp.Client(), idp.TokenURL(), form); got.status != 400 || got.Codes[0] != 900144 {
		t.Errorf("a body that is too large: %d %s", got.status, got.Description)
	}
}

// TestLargeBodyIsReadToItsEnd checks that a body that is too large is read before it is answered: a
// client that still sends when the connection is closed may get a reset in place of the answer.
func TestLargeBodyIsReadToItsEnd(t *testing.T) {
	idp := withoutListener(t, entra.Config{})
	body := strings.NewReader("padding=" + strings.Repeat("x", 2<<20))
	response, err := idp.Client().Post(idp.TokenURL(), "application/x-www-form-urlencoded", body)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusBadRequest || body.Len() > 0 {
		t.Errorf("got %s, with %d bytes that were not read; want 400 and none", response.Status, body.Len())
	}
}

func TestAddAndRemoveApplication(t *testing.T) {
	idp := withoutListener(t, entra.Config{})
	idp.AddApplication(testApplication())
	if got := post(t, idp.Client(), idp.TokenURL(), goodForm(idp)); got.status != 200 {
		t.Errorf("added: %d %s", got.status, got.Description)
	}
	idp.RemoveApplication(strings.ToUpper(testClientID))
	if got := post(t, idp.Client(), idp.TokenURL(), goodForm(idp)); got.Error != "unauthorized_client" {
		t.Errorf("removed: %d %s", got.status, got.Description)
	}
}

func TestConnectionsAreCounted(t *testing.T) {
	idp := start(t, entra.Config{})
	idp.AddApplication(testApplication())
	idp.Reset()
	transport := &http.Transport{TLSClientConfig: idp.TLSConfig()}
	defer transport.CloseIdleConnections()
	for range 3 {
		if got := post(t, &http.Client{Transport: transport}, idp.TokenURL(), goodForm(idp)); got.status != 200 {
			t.Fatalf("got %d %s", got.status, got.Description)
		}
	}
	if got := idp.Connections(); got != 1 {
		t.Errorf("three requests over %d connections, want 1", got)
	}
}

func TestRequestsAfterCloseAreRefused(t *testing.T) {
	bothWays(t, func(t *testing.T, idp *entra.Server) {
		if err := idp.Close(); err != nil {
			t.Fatal(err)
		}
		if got := observe(t.Context(), idp.Client(), idp.TokenURL(), goodForm(idp)); !errors.Is(got.err, syscall.ECONNREFUSED) {
			t.Errorf("observed %+v", got)
		}
		if err := idp.Close(); err != nil {
			t.Errorf("closed twice: %v", err)
		}
	})
}

// lockedBuffer is a bytes.Buffer for concurrent use.
type lockedBuffer struct {
	mu sync.Mutex
	bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.String()
}

func TestConcurrentRequestsGetTheirOwnTokens(t *testing.T) {
	log := new(lockedBuffer)
	idp := start(t, entra.Config{Log: slog.New(slog.NewTextHandler(log, nil))})
	idp.AddResource("https://*.example.test")
	idp.FailWhen(func(x entra.Exchange) *entra.Fault {
		if len(idp.Exchanges())%5 != 0 { // the rule may call methods of the server
			return nil
		}
		return new(entra.FaultStatus(503, ""))
	})
	clientID := func(i int) string { return fmt.Sprintf("aaaaaaaa-0000-4000-8000-%012d", i) }
	subject := func(i int) string { return fmt.Sprintf("system:serviceaccount:shop:s%d", i) }
	for i := range 8 {
		idp.AddApplication(entra.Application{ClientID: clientID(i), Credentials: []entra.FederatedCredential{{Subject: subject(i)}}})
	}
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			form := goodForm(idp)
			form.Set("client_id", clientID(i%8))
			form.Set("scope", fmt.Sprintf("https://r%d.example.test/.default", i))
			assertion := idp.SignFederatedToken(entra.Claims{Subject: subject(i % 8)})
			form.Set("client_assertion", assertion)
			seen := observe(t.Context(), idp.Client(), idp.TokenURL(), form)
			if seen.status == http.StatusServiceUnavailable {
				return
			}
			got, err := seen.answer()
			if err != nil {
				t.Errorf("request %d observed %+v: %v", i, seen, err)
				return
			}
			token, err := idp.VerifyAccessToken(got.AccessToken)
			if err != nil || token.ClientID != clientID(i%8) || token.Resource != fmt.Sprintf("https://r%d.example.test", i) {
				t.Errorf("request %d got %+v, %v", i, token, err)
			}
			if strings.Contains(log.String(), assertion) || strings.Contains(log.String(), got.AccessToken) {
				t.Errorf("request %d: its secrets are in the log", i)
			}
		})
	}
	wg.Wait()
	if got := idp.Counts(); got.Token != 64 || got.IssuerKeys != 1 {
		t.Errorf("counts: %+v", got)
	}
}

func TestServedOverAPipeInABubble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		idp := withoutListener(t, entra.Config{})
		idp.AddApplication(testApplication())
		listener := &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
		server := &http.Server{Handler: idp.Handler(), TLSConfig: idp.ServerTLSConfig()}
		go server.ServeTLS(listener, "", "")
		client := &http.Client{Transport: &http.Transport{
			DialContext:       listener.dial,
			TLSClientConfig:   idp.TLSConfig(),
			DisableKeepAlives: true,
		}}
		defer func() {
			server.Close()
			// Both ends of a pipe may be sending a close_notify alert that the other
			// end does not read. crypto/tls gives up after five seconds.
			time.Sleep(time.Minute)
		}()
		idp.FailNext(1, entra.FaultSlow(time.Hour))
		idp.FailNext(1, entra.FaultReset())
		begin := time.Now()
		if _, err := acquire(contextFor(t, 2*time.Hour), idp, client); err != nil {
			t.Fatal(err)
		}
		if got := time.Since(begin); got != time.Hour {
			t.Errorf("the slow answer took %s, want 1h", got)
		}
		if _, err := acquire(contextFor(t, time.Hour), idp, client); err == nil {
			t.Error("MSAL got a token over a connection that was reset")
		}
	})
}

func contextFor(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// pipeListener connects clients and a server within a bubble.
type pipeListener struct {
	conns  chan net.Conn
	once   sync.Once
	closed chan struct{}
}

func (l *pipeListener) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	client, server := net.Pipe()
	select {
	case l.conns <- server:
		return client, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error   { l.once.Do(func() { close(l.closed) }); return nil }
func (l *pipeListener) Addr() net.Addr { return &net.TCPAddr{} }
