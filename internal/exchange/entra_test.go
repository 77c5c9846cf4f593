package exchange_test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"imds-oidc-proxy/internal/exchange"
	"imds-oidc-proxy/test/entra"
)

const subject = "system:serviceaccount:shop:cart"

// pod is a stand-in for Entra, and what a pod that federates with it has.
type pod struct {
	idp   *entra.Server
	token *entra.ProjectedToken
	cfg   exchange.Config
	log   syncBuffer
}

// startPod has a stand-in on a loopback listener, with TLS.
func startPod(t *testing.T, cfg entra.Config) *pod {
	t.Helper()
	idp, err := entra.Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := idp.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	p := newPod(t, idp)
	p.cfg.CAFile = caFile(t, idp)
	p.cfg.Dial = dialLoopback
	return p
}

// dialLoopback keeps a test that goes wrong, or code that does, from asking real
// servers anything.
func dialLoopback(ctx context.Context, network, address string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
		return nil, fmt.Errorf("a test must not dial %s", address)
	}
	return new(net.Dialer).DialContext(ctx, network, address)
}

func newPod(t *testing.T, idp *entra.Server) *pod {
	t.Helper()
	idp.AddApplication(entra.Application{
		ClientID:    clientID,
		Credentials: []entra.FederatedCredential{{Subject: subject}},
	})
	idp.AddResource("https://*.example.test")
	token, err := idp.ProjectToken(entra.ProjectedTokenConfig{Dir: t.TempDir(), Subject: subject})
	if err != nil {
		t.Fatal(err)
	}
	p := &pod{idp: idp, token: token}
	p.cfg = exchange.Config{
		TenantID:           idp.TenantID(),
		AuthorityHost:      idp.AuthorityHost(),
		FederatedTokenFile: token.Path(),
		Log:                newLogger(&p.log),
	}
	return p
}

// bubblePod has a stand-in without a network, for synctest bubbles.
func bubblePod(t *testing.T, cfg entra.Config) *pod {
	t.Helper()
	idp, err := entra.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	p := newPod(t, idp)
	p.cfg = p.cfg.WithTransport(idp.Transport())
	return p
}

// newLogger logs everything, as the proxy would with --log-level=all.
func newLogger(to *syncBuffer) *zap.Logger {
	return zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()), to, zap.DebugLevel))
}

// syncBuffer is a bytes.Buffer for concurrent use.
type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) Sync() error { return nil }

func (b *syncBuffer) Reset() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.buf.Reset()
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func (p *pod) service(t *testing.T) *exchange.Service {
	t.Helper()
	s := newService(t, p.cfg)
	t.Cleanup(s.CloseIdle)
	return s
}

// get asks for the default token and checks that it is a good one, for that.
func (p *pod) get(t *testing.T, s *exchange.Service) (exchange.Result, error) {
	t.Helper()
	got, err := s.Token(t.Context(), exchange.Request{ClientID: clientID, Resource: resource})
	if err != nil {
		return got, err
	}
	token, err := p.idp.VerifyAccessToken(got.Token.AccessToken)
	if err != nil {
		t.Fatal(err)
	}
	if token.ClientID != clientID || token.Resource != resource {
		t.Errorf("the token is for %s and %s", token.ClientID, token.Resource)
	}
	if want := token.ExpiresOn; got.Token.ExpiresOn.Sub(want).Abs() > 2*time.Second {
		t.Errorf("ExpiresOn: got %s, the token's exp is %s", got.Token.ExpiresOn, want)
	}
	return got, nil
}

func TestTokenOverTLS(t *testing.T) {
	p := startPod(t, entra.Config{})
	s := p.service(t)
	for i, want := range []exchange.Source{exchange.SourceEntra, exchange.SourceCache} {
		got, err := p.get(t, s)
		if err != nil {
			t.Fatal(err)
		}
		if got.Source != want {
			t.Errorf("request %d: source %s, want %s", i, got.Source, want)
		}
	}
	want := entra.Counts{Token: 1, TenantDiscovery: 1, IssuerDiscovery: 1, IssuerKeys: 1}
	if got := p.idp.Counts(); got != want {
		t.Errorf("requests: got %+v, want %+v", got, want)
	}
}

// Nothing of MSAL's answers in place of Entra, nor for a resource that differs in
// case alone; discovery is done once, for all client IDs.
func TestExchangeIsExactlyOneTokenRequest(t *testing.T) {
	p := startPod(t, entra.Config{})
	p.idp.AddResource(strings.ToUpper(resource))
	s := p.service(t)
	for n, r := range []string{resource, resource, strings.ToUpper(resource), resource + "/"} {
		if err := s.Exchange(t.Context(), clientID, r); err != nil {
			t.Fatal(err)
		}
		if got := p.idp.Counts(); got.Token != n+1 || got.TenantDiscovery != 1 || got.InstanceDiscovery != 0 {
			t.Errorf("after %d exchanges: %+v", n+1, got)
		}
		if got := p.idp.Exchanges()[n].Scope; !strings.HasPrefix(got, r+"/.default ") && got != r+"/.default" {
			t.Errorf("scope: got %q, want %q", got, r+"/.default")
		}
	}
	_ = s.Exchange(t.Context(), "bbbbbbbb-0000-4000-8000-000000000002", resource)
	if got := p.idp.Counts(); got.Token != 5 || got.TenantDiscovery != 1 {
		t.Errorf("after an exchange for another client ID: %+v", got)
	}
}

func TestScopeOfAResourceThatIsOneAlready(t *testing.T) {
	p := startPod(t, entra.Config{})
	if err := p.service(t).Exchange(t.Context(), clientID, resource+"/.default"); err != nil {
		t.Fatal(err)
	}
	if got := p.idp.Exchanges()[0].Resource; got != resource {
		t.Errorf("resource: got %q, want %q", got, resource)
	}
}

func TestRefreshInIsPassedOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := bubblePod(t, entra.Config{TokenLifetime: 24 * time.Hour, RefreshIn: 6 * time.Hour})
		token, err := p.idp.ProjectToken(entra.ProjectedTokenConfig{Dir: t.TempDir(), Subject: subject, Lifetime: 48 * time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		p.cfg.FederatedTokenFile = token.Path()
		s := p.service(t)
		defer run(t, s)()
		if _, err := p.get(t, s); err != nil {
			t.Fatal(err)
		}
		time.Sleep(6*time.Hour - time.Second)
		synctest.Wait()
		before := p.idp.Counts().Token
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if after := p.idp.Counts().Token; before != 1 || after != 2 {
			t.Errorf("exchanges around refresh_in: %d then %d, want 1 then 2", before, after)
		}
	})
}

func TestWarmUpDoesAllButTheTokenRequest(t *testing.T) {
	p := startPod(t, entra.Config{})
	var dials atomic.Int32
	p.cfg.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		dials.Add(1)
		return dialLoopback(ctx, network, address)
	}
	s := p.service(t)
	stop := run(t, s)
	defer stop()
	waitFor(t, "warm-up", func() bool { return strings.Contains(p.log.String(), "connected to entra") })
	if got, want := p.idp.Counts(), (entra.Counts{TenantDiscovery: 1}); got != want {
		t.Errorf("after the warm-up: %+v, want %+v", got, want)
	}
	if _, err := p.get(t, s); err != nil {
		t.Fatal(err)
	}
	if got := p.idp.Counts(); got.Token != 1 || got.TenantDiscovery != 1 {
		t.Errorf("after the first request: %+v", got)
	}
	if got := dials.Load(); got != 1 {
		t.Errorf("%d connections, want 1: the first request has the warm one", got)
	}
}

// Discovery is shared: who began it may leave.
func TestDiscoveryOutlivesWhoBeganIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := bubblePod(t, entra.Config{})
		p.idp.FailAlways(entra.FaultHang().On(entra.TenantDiscovery))
		s := p.service(t)
		first, leave := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			wantKind(t, s.Exchange(first, clientID, resource), exchange.DeadlineExceeded)
		})
		synctest.Wait()
		wg.Go(func() {
			if err := s.Exchange(t.Context(), clientID, resource+"/"); err != nil {
				t.Errorf("the second: %v", err)
			}
		})
		synctest.Wait()
		leave()
		synctest.Wait()
		p.idp.Heal()
		wg.Wait()
		if got := p.idp.Counts().TenantDiscovery; got != 1 {
			t.Errorf("%d discovery requests, want 1", got)
		}
	})
}

// A hanging Entra holds up neither the end of Run nor, as TestMain checks, leaves
// anything running.
func TestRunEndsWhileEntraHangs(t *testing.T) {
	for _, where := range []entra.Endpoint{entra.TenantDiscovery, entra.TokenEndpoint} {
		p := startPod(t, entra.Config{})
		p.idp.FailAlways(entra.FaultHang().On(where))
		p.cfg.DefaultClientID, p.cfg.Prefetch = clientID, []string{resource}
		stop := run(t, p.service(t))
		waitFor(t, "request to hang", func() bool {
			c := p.idp.Counts()
			return where == entra.TenantDiscovery && c.TenantDiscovery > 0 || c.Token > 0
		})
		began := time.Now()
		stop()
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("%s hangs: Run took %s to end", where, took)
		}
		if got := p.lines(t, "token exchange failed"); len(got) != 0 {
			t.Errorf("%s hangs: the end is logged as a failure: %v", where, got)
		}
	}
}

// waitFor polls: what it waits for is done by other goroutines, on real sockets.
func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !done() {
		if time.Now().After(deadline) {
			t.Fatalf("no %s within 10s", what)
		}
		time.Sleep(time.Millisecond)
	}
}
