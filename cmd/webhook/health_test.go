package main

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
)

// TestReadiness checks that the webhook is not ready before there is a certificate, before the API
// server has its authority, before the port is open, and after SIGTERM, and that the response
// names the failed check.
func TestReadiness(t *testing.T) {
	rotated := make(chan struct{})
	clock := &fakeClock{now: time.Now()}
	w := &webhook{cert: newCertificate(), rotated: rotated, server: &server{}, log: zap.NewNop()}
	w.watch = newAccountWatch(clock.Now, newMetrics(), w.log)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.healthListener = listener
	defer w.serveHealth(func() {}).Close()

	expect := func(path string, status int, parts ...string) {
		t.Helper()
		answer, err := http.Get("http://" + listener.Addr().String() + path)
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		body, _ := io.ReadAll(answer.Body)
		if answer.StatusCode != status {
			t.Errorf("%s: got %s: %s", path, answer.Status, body)
		}
		for _, part := range parts {
			if !strings.Contains(string(body), part) {
				t.Errorf("%s: no %q in %s", path, part, body)
			}
		}
	}
	expect("/readyz", 503, "certificate:", "authority-known:", "listening:")
	expect("/healthz", 200)
	pair, err := tls.X509KeyPair(keyPair(t, 1))
	if err != nil {
		t.Fatal(err)
	}
	w.cert.store(pair)
	expect("/readyz", 503, "authority-known:", "listening:")
	close(rotated)
	expect("/readyz", 503, "the service accounts have not been read")
	w.server.listening.Store(true)
	expect("/readyz", 200, "ok")
	clock.now = clock.now.Add(maxBroken + time.Second)
	expect("/readyz", 503, "service-accounts: service accounts have not been watched for 1m1s")
	w.watch.begin()
	w.watch.list = func(context.Context) error { return nil }
	w.watch.check(t.Context())
	expect("/readyz", 200)
	w.draining.Store(true)
	expect("/readyz", 503, "shutting down")
	expect("/healthz", 200)
	expect("/", 404)

	w.draining.Store(false)
	w.rotated = nil // as with a mounted certificate
	expect("/readyz", 200)
}
