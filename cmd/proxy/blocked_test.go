package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/imds"
	"imds-oidc-proxy/test/kit/local"
)

// TestBlockedCheck: the result is that of the last check, and an error before the first one. Checks
// are frequent only while the address can be reached. Each change is logged once.
func TestBlockedCheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, lines := infoLog()
		reachable := errors.New("reachable")
		var now atomic.Pointer[error]
		now.Store(&reachable)
		var checks atomic.Int64
		b := &blockedCheck{log: log, probe: func(context.Context) error { checks.Add(1); return *now.Load() }}
		if err := b.err(); !errors.Is(err, errNotChecked) {
			t.Errorf("before the first check: got %v", err)
		}
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- b.run(ctx) }()
		expect := func(after time.Duration, wantChecks int64, wantErr error, wantLines int) {
			t.Helper()
			time.Sleep(after) // the time of the bubble
			synctest.Wait()
			if checks.Load() != wantChecks || !errors.Is(b.err(), wantErr) || lines.Len() != wantLines {
				t.Errorf("got %d checks, %v, %d lines, want %d, %v, %d", checks.Load(), b.err(), lines.Len(), wantChecks, wantErr, wantLines)
			}
		}
		expect(0, 1, reachable, 1)
		expect(reachableInterval-1, 1, reachable, 1)
		expect(1, 2, reachable, 1)
		var blocked error
		now.Store(&blocked)
		expect(reachableInterval, 3, nil, 2)
		expect(blockedInterval-1, 3, nil, 2)
		now.Store(&reachable)
		expect(1, 4, reachable, 3)
		stop()
		if err := <-ended; err != nil {
			t.Errorf("run: %v", err)
		}
	})
}

// TestStoppedBlockedCheck: a check that was interrupted by the end of the proxy has no result.
func TestStoppedBlockedCheck(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	b := &blockedCheck{log: zap.NewNop(), probe: func(context.Context) error { stop(); return ctx.Err() }}
	if err := b.run(ctx); err != nil || !errors.Is(b.err(), errNotChecked) {
		t.Errorf("got %v, %v", err, b.err())
	}
}

// TestDialBlocked: an accepted connection means that the address can be reached, unless this proxy
// has accepted it. test/e2e tests the other answers of a network.
func TestDialBlocked(t *testing.T) {
	serve := func(server string) azure.MetadataURL {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		s := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/readyz" {
				t.Errorf("%s was requested", r.URL)
			}
			w.Header().Set("Server", server)
		})}
		go s.Serve(listener) // returns when Close is called
		t.Cleanup(func() { s.Close() })
		return azure.MetadataURL("http://" + listener.Addr().String())
	}
	port, err := local.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		address azure.MetadataURL
		want    string
	}{
		{serve("IMDS/150.870.65.1325"), "this pod can reach the node's IMDS at 127.0.0.1:"},
		{serve(imds.ServerName + "/test"), ""},
		{azure.MetadataURL(fmt.Sprintf("http://127.0.0.1:%d", port)), ""},
	} {
		err := dialBlocked(t.Context(), test.address)
		if (err == nil) != (test.want == "") || err != nil && !strings.HasPrefix(err.Error(), test.want) {
			t.Errorf("%s: got %v, want %q", test.address, err, test.want)
		}
	}
}

// TestIsBlocked: only answers of the network count as blocked. With any other error, such as one of
// this process's limits, it is unknown whether the address is blocked.
func TestIsBlocked(t *testing.T) {
	dial := func(err error) error {
		return &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", err)}
	}
	for _, test := range []struct {
		err  error
		want bool
	}{
		{dial(syscall.ECONNREFUSED), true}, {dial(syscall.ETIMEDOUT), true}, {dial(syscall.EHOSTUNREACH), true},
		{dial(syscall.ENETUNREACH), true}, {dial(syscall.EPERM), true}, {dial(syscall.EACCES), true}, {dial(syscall.ECONNRESET), true},
		{&net.OpError{Op: "dial", Err: context.DeadlineExceeded}, true}, {&net.OpError{Op: "dial", Err: os.ErrDeadlineExceeded}, true},
		{dial(syscall.EMFILE), false}, {dial(syscall.ENFILE), false}, {dial(syscall.EADDRNOTAVAIL), false}, {dial(syscall.ENOBUFS), false},
		{context.Canceled, false}, {errors.New("other"), false},
	} {
		if got := isBlocked(test.err); got != test.want {
			t.Errorf("%v: got %t, want %t", test.err, got, test.want)
		}
	}
}

// TestReadyOnlyWhenBlocked: the whole program is not ready while a server answers at the metadata
// address, and says why.
func TestReadyOnlyWhenBlocked(t *testing.T) {
	node, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := newPod(t)
	p.environment["PROXY_REQUIRE_IMDS_BLOCKED"] = "true"
	p.environment["PROXY_IMDS_ADDRESS"] = "http://" + node.Addr().String()
	ctx, end := context.WithCancel(context.Background())
	log, ended := new(syncBuffer), make(chan int)
	go func() {
		ended <- run(ctx, nil, func(name string) string { return p.environment[name] }, log, log)
	}()
	defer func() {
		end()
		if code := <-ended; code != exitOK {
			t.Errorf("got exit code %d:\n%s", code, log)
		}
	}()
	const reason = "imds-blocked: this pod can reach the node's IMDS at 127.0.0.1:"
	for deadline := time.Now().Add(readyTimeout); ; time.Sleep(20 * time.Millisecond) {
		resp, err := http.Get("http://127.0.0.1:" + p.port + "/readyz")
		if err == nil {
			body := make([]byte, 512)
			n, _ := resp.Body.Read(body)
			resp.Body.Close()
			if resp.StatusCode == http.StatusServiceUnavailable && strings.HasPrefix(string(body[:n]), reason) {
				break
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("never not ready because of the node's IMDS:\n%s", log)
		}
	}
	node.Close()
	p.waitReady(t)
	if text := log.String(); !strings.Contains(text, "the node's IMDS is not blocked") || !strings.Contains(text, "the node's IMDS is blocked") {
		t.Errorf("the log does not say when this changed:\n%s", text)
	}
}
