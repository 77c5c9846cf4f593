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

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/zap"
)

// TestReadiness checks that the webhook is not ready before there is a certificate, before the API
// server has its authority, before the port is open, and after SIGTERM, and that the response
// names the failed check.
func TestReadiness(t *testing.T) {
	rotated := make(chan struct{})
	clock := &fakeClock{now: time.Now()}
	w := &webhook{cert: newCertificate(), rotated: rotated, server: &server{}, log: zap.NewNop()}
	newTestWatch := func(of watched) *objectWatch {
		return newWatch(of, clock.Now, newMetrics().current, w.log)
	}
	w.accounts = newTestWatch(serviceAccounts)
	secret := newTestWatch(certificateSecret)
	w.cert.renewal = []*objectWatch{secret}
	probes, err := newPlainServer(t.Context(), "health-address", "127.0.0.1:0", newMetrics(), w.log)
	if err != nil {
		t.Fatal(err)
	}
	defer probes.serve(w.healthHandler(), func() {}).Close()

	expect := func(path string, status int, parts ...string) {
		t.Helper()
		answer, err := http.Get("http://" + probes.listener.Addr().String() + path)
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
	works := func(watch *objectWatch) {
		watch.begin()
		watch.list = func(context.Context) error { return nil }
		watch.check(t.Context())
	}
	works(w.accounts)
	// The certificate is valid, so the replica is ready although a renewed one would not be seen.
	expect("/readyz", 200)
	expect("/readyz?verbose", 200, "[+]certificate ok", "[!]certificate-renewal warning: Secrets have not been watched for 1m1s")
	expired := *pair.Leaf
	expired.NotAfter = time.Now().Add(-time.Hour)
	w.cert.store(tls.Certificate{Certificate: pair.Certificate, PrivateKey: pair.PrivateKey, Leaf: &expired})
	expect("/readyz", 503, "certificate: the certificate expired at ", "; Secrets have not been watched for 1m1s")
	works(secret)
	expect("/readyz", 503, "certificate: the certificate expired at ")
	w.cert.store(pair)
	expect("/readyz?verbose", 200, "[+]certificate-renewal ok")
	w.draining.Store(true)
	expect("/readyz", 503, "shutting down")
	expect("/healthz", 200)
	expect("/", 404)

	w.draining.Store(false)
	w.rotated = nil // as with a mounted certificate
	expect("/readyz", 200)
}

// TestSlowClientsOfPlainPorts checks that probes and requests for metrics are answered while other clients
// hold all connections.
func TestSlowClientsOfPlainPorts(t *testing.T) {
	m := newMetrics()
	registry := prometheus.NewRegistry()
	registry.MustRegister(m.collectors()...)
	w := &webhook{cert: newCertificate(), server: &server{}, log: zap.NewNop()}
	w.accounts = newWatch(serviceAccounts, time.Now, m.current, w.log)
	for _, test := range []struct {
		path, want string
		handler    http.Handler
	}{
		{"/healthz", "ok", w.healthHandler()},
		{"/metrics", "imds_oidc_proxy_webhook_admissions_total", metricsHandler(registry)},
	} {
		s, err := newPlainServer(t.Context(), "address", "127.0.0.1:0", m, w.log)
		if err != nil {
			t.Fatal(err)
		}
		defer s.serve(test.handler, func() {}).Close()
		for range maxConnections {
			slow, err := net.Dial("tcp", s.listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer slow.Close()
			_, _ = io.WriteString(slow, "GET "+test.path+" HTTP/1.1\r\n")
		}
		for range 3 {
			answer, err := http.Get("http://" + s.listener.Addr().String() + test.path)
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(answer.Body)
			answer.Body.Close()
			if answer.StatusCode != http.StatusOK || !strings.Contains(string(body), test.want) {
				t.Errorf("%s: got %s: %.100s, want %s", test.path, answer.Status, body, test.want)
			}
		}
	}
	if testutil.ToFloat64(m.evicted) == 0 {
		t.Error("no connection was evicted: the test is not at the limit")
	}
}

// TestPlainPortIsTaken checks that the error names the flag.
func TestPlainPortIsTaken(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	_, err = newPlainServer(t.Context(), "metrics-address", taken.Addr().String(), newMetrics(), zap.NewNop())
	if err == nil || !strings.Contains(err.Error(), "--metrics-address (WEBHOOK_METRICS_ADDRESS)") {
		t.Errorf("got %v, want an error that names the flag", err)
	}
}
