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

// TestSettingsOfTokenRequests: the flags that limit who gets a token, and for whom,
// reach the handler.
func TestSettingsOfTokenRequests(t *testing.T) {
	const (
		object   = "66666666-6666-4666-8666-666666666666"
		mapped   = "77777777-7777-4777-8777-777777777777"
		stranger = "55555555-5555-4555-8555-555555555555"
		byOwn    = "api-version=2018-02-01&resource=https://vault.azure.net"
	)
	token := exchange.Token{AccessToken: "t", NotBefore: time.Now(), ExpiresOn: time.Now().Add(time.Hour)}
	for _, test := range []struct {
		name, query string
		args        []string
		status      int
	}{
		{"no api-version", "resource=https://vault.azure.net", nil, 200},
		{"no api-version, strictly", "resource=https://vault.azure.net", []string{"--strict-api-version"}, 400},
		{"any client ID", byOwn + "&client_id=" + stranger, nil, 200},
		{"not an allowed client ID", byOwn + "&client_id=" + stranger, []string{"--allowed-client-ids=6c0ac4e6-9b6d-4d2a-8d5a-6f1f3a1f9b10"}, 400},
		{"object ID", byOwn + "&object_id=" + object, []string{"--identity=" + object + "=" + mapped}, 200},
		{"unknown object ID", byOwn + "&object_id=" + object, nil, 400},
	} {
		t.Run(test.name, func(t *testing.T) {
			args := append([]string{"--imds-passthrough=off"}, test.args...)
			cfg, err := parseConfig(args, podEnvironment(nil), io.Discard)
			if err != nil {
				t.Fatal(err)
			}
			answers := cfg.handlerConfig()
			answers.Tokens = cached{tokens.Result{Source: tokens.SourceCache, Token: token}}
			h, err := imds.New(answers)
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

// TestFailedPartEndsReadiness: a proxy that ends because a part of it failed says so
// while it finishes what is in flight, as one does that was told to end.
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
				http.Error(w, "still said to be listening", http.StatusInternalServerError)
				return
			}
		}
	})
	ended := make(chan error)
	go func() {
		part := func(context.Context) error { <-inFlight; return fault }
		s := server.New(listener, server.Config{Handler: handler, MaxConnections: 1})
		ended <- proxy{s, &listening, []func(context.Context) error{part}, zap.NewNop()}.run(t.Context())
	}()
	resp, err := http.Get("http://" + listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("the request in flight got %s", resp.Status)
	}
	if err := <-ended; !errors.Is(err, fault) {
		t.Errorf("it ended with %v, want %v", err, fault)
	}
}

// TestConnectionsLeaveRoomForFiles: where every file that may be open was a client's, the
// kernel would let nobody in, and quiet clients would keep their places.
func TestConnectionsLeaveRoomForFiles(t *testing.T) {
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

// TestConnectionsLeaveRoomForMemory: with the memory that injection gives by default all
// connections fit, and with less fewer.
func TestConnectionsLeaveRoomForMemory(t *testing.T) {
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

// TestCallersThatWaitLeaveConnections: for clients whose token is cached.
func TestCallersThatWaitLeaveConnections(t *testing.T) {
	for connections, want := range map[int]int{
		mostConnections: tokens.DefaultMaxWaiting, 300: 300 - cachedConnections, 100: 50, 40: 20, 2: 1, 1: 1,
	} {
		if got := maxWaiting(connections); got != want {
			t.Errorf("%d connections: %d callers may wait, want %d", connections, got, want)
		}
	}
}

// TestForwardingLeavesConnections: with few connections, fewer requests than usual are
// forwarded or wait. Of 16 connections that is a quarter, and the next request is refused.
func TestForwardingLeavesConnections(t *testing.T) {
	release := make(chan struct{})
	machine := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	defer machine.Close()
	defer close(release)
	cfg, err := parseConfig([]string{"--imds-address=" + machine.URL}, podEnvironment(nil), io.Discard)
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
		t.Errorf("got %d first, want 429 for the fifth request", got)
	}
}
