package main

import (
	"context"
	"errors"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"

	"imds-oidc-proxy/internal/exchange"
	"imds-oidc-proxy/internal/imds"
	"imds-oidc-proxy/internal/logging"
	"imds-oidc-proxy/internal/loglimit"
	"imds-oidc-proxy/internal/server"
	"imds-oidc-proxy/internal/tokens"
)

// TestTokenRequestFlags: the flags that decide which token requests are answered, and with which
// identity, reach the handler.
func TestTokenRequestFlags(t *testing.T) {
	const (
		object        = "66666666-6666-4666-8666-666666666666"
		mapped        = "77777777-7777-4777-8777-777777777777"
		otherClientID = "55555555-5555-4555-8555-555555555555"
		validQuery    = "api-version=2018-02-01&resource=https://vault.azure.net"
	)
	token := exchange.Token{AccessToken: "t", NotBefore: time.Now(), ExpiresOn: time.Now().Add(time.Hour)}
	for _, test := range []struct {
		name, query string
		args        []string
		status      int
	}{
		{"no api-version", "resource=https://vault.azure.net", nil, 200},
		{"no api-version with --strict-api-version", "resource=https://vault.azure.net", []string{"--strict-api-version"}, 400},
		{"any client ID", validQuery + "&client_id=" + otherClientID, nil, 200},
		{"client ID that is not allowed", validQuery + "&client_id=" + otherClientID, []string{"--allowed-client-ids=6c0ac4e6-9b6d-4d2a-8d5a-6f1f3a1f9b10"}, 400},
		{"configured object ID", validQuery + "&object_id=" + object, []string{"--identity=" + object + "=" + mapped}, 200},
		{"unknown object ID", validQuery + "&object_id=" + object, nil, 400},
	} {
		t.Run(test.name, func(t *testing.T) {
			args := append([]string{"--imds-passthrough=off"}, test.args...)
			cfg, err := parseConfig(args, podEnvironment(nil), io.Discard)
			if err != nil {
				t.Fatal(err)
			}
			handlerConfig := cfg.handlerConfig()
			handlerConfig.Tokens = cached{tokens.Result{Source: tokens.SourceCache, Token: token}}
			h, err := imds.New(handlerConfig)
			if err != nil {
				t.Fatal(err)
			}
			r := httptest.NewRequest(http.MethodGet, "http://169.254.169.254/metadata/identity/oauth2/token?"+test.query, nil)
			r.Header.Set("Metadata", "true")
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			if w.Code != test.status {
				t.Errorf("got %d %s, want %d", w.Code, w.Body, test.status)
			}
		})
	}
}

// TestFailedPartEndsReadiness: if a part of the proxy fails, the proxy stops being ready while it
// drains the requests in flight, as it does after SIGTERM.
func TestFailedPartEndsReadiness(t *testing.T) {
	listener, err := server.Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var listening atomic.Bool
	listening.Store(true)
	inFlight, fault := make(chan struct{}), errors.New("a part failed")
	handler := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		close(inFlight)
		for deadline := time.Now().Add(readyTimeout); listening.Load(); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				http.Error(w, "still ready", http.StatusInternalServerError)
				return
			}
		}
	})
	ended := make(chan error)
	go func() {
		part := func(context.Context) error { <-inFlight; return fault }
		s := server.New(listener, server.Config{Handler: handler, MaxConnections: 1})
		ended <- proxy{s, &listening, []func(context.Context) error{part}, 0, zap.NewNop()}.run(t.Context())
	}()
	resp, err := http.Get("http://" + listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("request in flight: got %s, want 200", resp.Status)
	}
	if err := <-ended; !errors.Is(err, fault) {
		t.Errorf("run: got %v, want %v", err, fault)
	}
}

// TestConnectionLimitByFiles: the limit leaves file descriptors for other uses. If client
// connections could use all of them, the kernel would accept no new connection, and idle
// clients would keep their connections.
func TestConnectionLimitByFiles(t *testing.T) {
	for files, want := range map[uint64]int{
		1 << 20: mostConnections, math.MaxUint64: mostConnections,
		mostConnections + otherFiles: mostConnections, mostConnections: mostConnections - otherFiles,
		2*otherFiles + 1: otherFiles + 1, 2 * otherFiles: otherFiles, 100: 50, 1: 1, 0: 1,
	} {
		if got := maxConnections(files, math.MaxInt64); got != want {
			t.Errorf("%d files: got %d connections, want %d", files, got, want)
		}
	}
}

// TestConnectionLimitByMemory: the memory that injection gives by default is enough for all
// connections; with less memory the limit is lower.
func TestConnectionLimitByMemory(t *testing.T) {
	for memory, want := range map[int64]int{
		math.MaxInt64: mostConnections, 48 << 20: mostConnections, 24 << 20: 341,
		otherMemory + (leastConnections+1)*connectionMemory: leastConnections + 1,
		otherMemory + connectionMemory:                      leastConnections, otherMemory: leastConnections, 0: leastConnections,
	} {
		if got := maxConnections(math.MaxUint64, memory); got != want {
			t.Errorf("%d bytes: got %d connections, want %d", memory, got, want)
		}
	}
}

// TestWaitingLimit: clients that wait for an exchange leave connections for clients whose token is
// cached.
func TestWaitingLimit(t *testing.T) {
	for connections, want := range map[int]int{
		mostConnections: tokens.DefaultMaxWaiting, 300: 300 - cachedConnections, 100: 50, 40: 20, 2: 1, 1: 1,
	} {
		if got := maxWaiting(connections); got != want {
			t.Errorf("%d connections: got %d waiting clients, want %d", connections, got, want)
		}
	}
}

// TestForwardingLimit: with few connections, fewer requests are forwarded or wait to be. With 16
// connections the limit is a quarter of them, so the fifth request is refused.
func TestForwardingLimit(t *testing.T) {
	release := make(chan struct{})
	node := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	defer node.Close()
	defer close(release)
	cfg, err := parseConfig([]string{"--imds-address=" + node.URL}, podEnvironment(nil), io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	observed := newObserver(loglimit.New(nil), new(logging.Queue), zap.NewNop())
	h, err := newHandler(cfg, 16, observed, http.NotFoundHandler(), zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	statuses := make(chan int, 5)
	for range cap(statuses) {
		go func() {
			r := httptest.NewRequest(http.MethodGet, "http://169.254.169.254/metadata/instance", nil)
			r.Header.Set("Metadata", "true")
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			statuses <- w.Code
		}()
	}
	if got := <-statuses; got != http.StatusTooManyRequests {
		t.Errorf("first answer: got %d, want 429 for the fifth request", got)
	}
}
