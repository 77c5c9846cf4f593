package exchange_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/exchange"
	"imds-oidc-proxy/internal/tokens"
	"imds-oidc-proxy/test/kit/entra"
)

const (
	clientID = "aaaaaaaa-0000-4000-8000-000000000001"
	resource = "https://vault.azure.net"
	subject  = "system:serviceaccount:shop:cart"

	// Limits of package tokens.
	maxTries        = 3
	tryTimeout      = 8 * time.Second
	exchangeTimeout = 20 * time.Second
)

// pod is a fake Entra, and the configuration of a pod that federates with it.
type pod struct {
	idp       *entra.Server
	token     *entra.ProjectedToken
	cfg       exchange.Config
	transport http.RoundTripper // nil: connect by TCP
	prefetch  []tokens.Request
	log       syncBuffer
}

// service is an Exchanger with package tokens in front of it, as in the proxy.
type service struct {
	*exchange.Exchanger
	*tokens.Service
}

// exchange makes one exchange without the cache.
func (s *service) exchange(ctx context.Context, clientID azure.ClientID, resource azure.Resource) error {
	_, err := s.Exchange(ctx, clientID, resource)
	return err
}

// startPod returns a pod with a fake Entra that listens on loopback, with TLS.
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

// dialLoopback connects to loopback addresses only, so that a faulty test, or faulty code, cannot
// send requests to real servers.
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
		TenantID:           azure.Tenant(idp.TenantID()),
		AuthorityHost:      authority(idp.AuthorityHost()),
		FederatedTokenFile: token.Path(),
		Log:                newLogger(&p.log).With(zap.String("tenant_id", idp.TenantID())),
	}
	return p
}

// bubblePod returns a pod whose fake Entra has no network connections, for synctest bubbles.
func bubblePod(t *testing.T, cfg entra.Config) *pod {
	t.Helper()
	idp, err := entra.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	p := newPod(t, idp)
	p.transport = idp.Transport()
	return p
}

// newLogger returns a logger of all levels.
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

func (p *pod) service(t *testing.T) *service {
	t.Helper()
	exchanger, err := exchange.New(p.cfg)
	if p.transport != nil {
		exchanger, err = exchange.NewWithTransport(p.cfg, p.transport)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(exchanger.Close)
	cache, err := tokens.New(tokens.Config{Exchanger: exchanger, Prefetch: p.prefetch, Log: p.cfg.Log})
	if err != nil {
		t.Fatal(err)
	}
	return &service{exchanger, cache}
}

// run runs s until stop is called, which waits until Run has ended.
func run(t *testing.T, s *service) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	return func() {
		t.Helper()
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
		s.Close()
	}
}

func wantKind(t *testing.T, err error, want exchange.Kind) *exchange.Error {
	t.Helper()
	e, ok := errors.AsType[*exchange.Error](err)
	if !ok {
		t.Fatalf("got error %v, want an *exchange.Error of kind %s", err, want)
	}
	if e.Kind != want {
		t.Fatalf("got kind %s (%v), want %s", e.Kind, e, want)
	}
	return e
}

// get requests the default token and checks that it is valid and the right one.
func (p *pod) get(t *testing.T, s *service) (tokens.Result, error) {
	t.Helper()
	got, err := s.Token(t.Context(), tokens.Request{ClientID: clientID, Resource: resource})
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
	// expires_in counts from Entra's response, for MSAL from its arrival.
	if want := token.ExpiresOn; got.Token.ExpiresOn.Sub(want).Abs() > tryTimeout {
		t.Errorf("ExpiresOn: got %s, the token's exp is %s", got.Token.ExpiresOn, want)
	}
	return got, nil
}

// waitFor polls until done, which depends on other goroutines and real connections.
func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	const timeout = 30 * time.Second
	for deadline := time.Now().Add(timeout); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("no %s within %s", what, timeout)
		}
	}
}

// authority returns the authority host for a URL with or without a slash at its end.
func authority(url string) azure.AuthorityHost {
	return azure.AuthorityHost(strings.TrimSuffix(url, "/") + "/")
}
