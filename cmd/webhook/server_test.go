package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	corev1 "k8s.io/api/core/v1"
	certmetrics "sigs.k8s.io/controller-runtime/pkg/certwatcher/metrics"
	"sigs.k8s.io/controller-runtime/pkg/manager"
)

// timeout is how long a test waits for an event that takes milliseconds on an idle machine.
const timeout = 20 * time.Second

// keyPair returns a self-signed certificate for the webhook. Its validity in hours is the serial
// number.
func keyPair(t *testing.T, serial int64) (cert, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), DNSNames: []string{"hook.shop.svc"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Duration(serial) * time.Hour),
		BasicConstraintsValid: true, IsCA: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
}

func newCertificate() *certificate {
	return &certificate{metrics: newMetrics(), log: zap.NewNop()}
}

func loaded(t *testing.T, serial int64) *certificate {
	t.Helper()
	pair, err := tls.X509KeyPair(keyPair(t, serial))
	if err != nil {
		t.Fatal(err)
	}
	c := newCertificate()
	c.store(pair)
	return c
}

// running is a server on the loopback device.
type running struct {
	*server
	address string
	end     context.CancelFunc
	ended   chan error
}

func serveOnLoopback(t *testing.T, cert *certificate, minVersion uint16, handler http.Handler) *running {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	r := &running{
		server:  &server{minVersion: minVersion, cert: cert, peers: newPeers(newMetrics()), handler: handler, draining: new(atomic.Bool), log: zap.NewNop()},
		address: listener.Addr().String(), end: cancel, ended: make(chan error, 1),
	}
	go func() { r.ended <- r.serve(ctx, r.peers.limit(listener)) }()
	return r
}

func dial(address string, maxVersion uint16) (tls.ConnectionState, error) {
	connection, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true, MaxVersion: maxVersion})
	if err != nil {
		return tls.ConnectionState{}, err
	}
	defer connection.Close()
	return connection.ConnectionState(), nil
}

// TestTLSVersions checks the minimum version.
func TestTLSVersions(t *testing.T) {
	for _, test := range []struct {
		flag   string
		client uint16
		want   bool
	}{
		{"1.3", tls.VersionTLS13, true},
		{"1.3", tls.VersionTLS12, false},
		{"1.2", tls.VersionTLS12, true},
		{"1.2", tls.VersionTLS11, false},
	} {
		r := serveOnLoopback(t, loaded(t, 1), tlsVersions[test.flag], http.NotFoundHandler())
		if _, err := dial(r.address, test.client); (err == nil) != test.want {
			t.Errorf("--tls-min-version=%s, client up to %s: %v", test.flag, tls.VersionName(test.client), err)
		}
		r.end()
		if err := <-r.ended; err != nil {
			t.Error(err)
		}
	}
}

// TestNoCertificateYet checks that handshakes and the readiness check fail until there is a
// certificate.
func TestNoCertificateYet(t *testing.T) {
	cert := newCertificate()
	r := serveOnLoopback(t, cert, tls.VersionTLS13, http.NotFoundHandler())
	if _, err := dial(r.address, tls.VersionTLS13); err == nil {
		t.Error("a handshake without a certificate")
	}
	if err := cert.ready(time.Now()); err == nil {
		t.Error("ready without a certificate")
	}
	pair, err := tls.X509KeyPair(keyPair(t, 2))
	if err != nil {
		t.Fatal(err)
	}
	cert.store(pair)
	if _, err := dial(r.address, tls.VersionTLS13); err != nil {
		t.Error(err)
	}
	if err := cert.ready(time.Now()); err != nil {
		t.Error(err)
	}
	if err := cert.ready(time.Now().Add(3 * time.Hour)); err == nil {
		t.Error("ready with a certificate that has expired")
	}
	if got := testutil.ToFloat64(cert.metrics.expiry); got != float64(pair.Leaf.NotAfter.Unix()) {
		t.Errorf("expiry is %v, want %d", got, pair.Leaf.NotAfter.Unix())
	}
}

// TestExpiryIsLogged checks that a certificate that was not renewed in time is logged with the reason,
// and others are not.
func TestExpiryIsLogged(t *testing.T) {
	core, logs := observer.New(zap.InfoLevel)
	clock := &fakeClock{now: time.Now()}
	cert := newCertificate()
	cert.log = zap.New(core)
	cert.renewal = []*objectWatch{newWatch(certificateSecret, clock.Now, cert.metrics.current, zap.NewNop())}
	cert.checkExpiry(clock.now) // there is none yet
	pair, err := tls.X509KeyPair(keyPair(t, int64(expiresSoon/time.Hour)+1))
	if err != nil {
		t.Fatal(err)
	}
	cert.store(pair)
	logs.TakeAll()
	cert.checkExpiry(pair.Leaf.NotAfter.Add(-expiresSoon - time.Second))
	if lines := logs.TakeAll(); len(lines) != 0 {
		t.Errorf("logged %v, want nothing", lines)
	}
	clock.now = clock.now.Add(maxBroken + time.Second)
	cert.checkExpiry(pair.Leaf.NotAfter.Add(-expiresSoon))
	lines := logs.TakeAll()
	if len(lines) != 1 || lines[0].Message != "the certificate expires soon and was not renewed" || !strings.Contains(fmt.Sprint(lines[0].ContextMap()["error"]), "Secrets have not been watched") {
		t.Errorf("logged %v", lines)
	}
}

// parts records the parts that are added, and does not run them.
type parts struct{ added []manager.Runnable }

func (p *parts) Add(r manager.Runnable) error { p.added = append(p.added, r); return nil }

// mount writes a certificate as the kubelet does: the files are symbolic links into ..data, which
// is a symbolic link that is replaced atomically.
func mount(t *testing.T, dir, generation string, cert, key []byte) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil && !os.IsExist(err) {
			t.Fatal(err)
		}
	}
	must(os.Mkdir(filepath.Join(dir, generation), 0o755))
	must(os.WriteFile(filepath.Join(dir, generation, certName), cert, 0o600))
	must(os.WriteFile(filepath.Join(dir, generation, keyName), key, 0o600))
	old, _ := os.Readlink(filepath.Join(dir, "..data"))
	must(os.Symlink(generation, filepath.Join(dir, "..data_tmp")))
	must(os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")))
	for _, name := range []string{certName, keyName} {
		must(os.Symlink(filepath.Join("..data", name), filepath.Join(dir, name)))
	}
	if old != "" {
		must(os.RemoveAll(filepath.Join(dir, old)))
	}
}

// TestMountedCertificateIsReloaded checks that a renewed certificate is used without a restart, and
// that an invalid one is not.
func TestMountedCertificateIsReloaded(t *testing.T) {
	dir := t.TempDir()
	cert := newCertificate()
	if err := cert.followFiles(&parts{}, dir); err == nil || !strings.Contains(err.Error(), "--cert-dir") {
		t.Fatalf("an empty directory: got %v, want an error that names --cert-dir", err)
	}
	first, firstKey := keyPair(t, 1)
	mount(t, dir, "..1", first, firstKey)
	var p parts
	if err := cert.followFiles(&p, dir); err != nil {
		t.Fatal(err)
	}
	go func() { _ = p.added[0].Start(t.Context()) }()
	r := serveOnLoopback(t, cert, tls.VersionTLS13, http.NotFoundHandler())
	waitForSerial(t, r.address, 1)
	refused := testutil.ToFloat64(certmetrics.ReadCertificateErrors)
	mount(t, dir, "..2", []byte("invalid"), []byte("invalid"))
	for deadline := time.Now().Add(timeout); testutil.ToFloat64(certmetrics.ReadCertificateErrors) == refused; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the invalid certificate was not read")
		}
	}
	waitForSerial(t, r.address, 1)
	second, secondKey := keyPair(t, 3)
	mount(t, dir, "..3", second, secondKey)
	waitForSerial(t, r.address, 3)
}

func waitForSerial(t *testing.T, address string, want int64) {
	t.Helper()
	var got int64
	for deadline := time.Now().Add(timeout); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		state, err := dial(address, tls.VersionTLS13)
		if err != nil {
			t.Fatal(err)
		}
		if got = state.PeerCertificates[0].SerialNumber.Int64(); got == want {
			return
		}
	}
	t.Fatalf("got certificate %d, want %d", got, want)
}

// TestSecretIsServed checks that a certificate in the Secret is used, that its key is not written
// to disk, and that an invalid certificate is ignored.
func TestSecretIsServed(t *testing.T) {
	dir := t.TempDir()
	cert := newCertificate()
	public, key := keyPair(t, 5)
	secret := func(cert, key []byte) *corev1.Secret {
		return &corev1.Secret{Data: map[string][]byte{certName: cert, keyName: key, "ca.key": []byte(canary)}}
	}
	for _, object := range []any{&corev1.Secret{}, secret(public, nil), secret([]byte("invalid"), key), "not a Secret"} {
		cert.loadSecret(object, dir)
		if _, err := cert.get(nil); err == nil {
			t.Fatalf("serves %v", object)
		}
	}
	cert.loadSecret(secret(public, key), dir)
	if _, err := cert.get(nil); err != nil {
		t.Fatal(err)
	}
	cert.loadSecret(secret([]byte("invalid"), key), dir)
	if _, err := cert.get(nil); err != nil {
		t.Error("an invalid certificate replaces the valid one")
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 1 || files[0].Name() != certName {
		t.Fatalf("%v in --cert-dir, %v; want only %s", files, err, certName)
	}
	if text, _ := os.ReadFile(filepath.Join(dir, certName)); !bytes.Equal(text, public) {
		t.Errorf("%s contains %q", certName, text)
	}
}

// TestGracefulShutdown checks that a request in flight is answered after SIGTERM, and that the
// server closes connections while it drains.
func TestGracefulShutdown(t *testing.T) {
	entered, leave := make(chan struct{}), make(chan struct{})
	r := serveOnLoopback(t, loaded(t, 1), tls.VersionTLS13, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		entered <- struct{}{}
		<-leave
		_, _ = io.WriteString(w, "answered")
	}))
	r.draining.Store(true)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	got := make(chan string, 1)
	go func() {
		answer, err := client.Post("https://"+r.address+mutatePath, "application/json", strings.NewReader("{}"))
		if err != nil {
			got <- err.Error()
			return
		}
		defer answer.Body.Close()
		body, _ := io.ReadAll(answer.Body)
		got <- string(body) + " " + map[bool]string{true: "close"}[answer.Close]
	}()
	select {
	case <-entered:
	case answer := <-got:
		t.Fatalf("got %q before the handler was called", answer)
	}
	r.end()
	close(leave)
	if answer := <-got; answer != "answered close" {
		t.Errorf("got %q", answer)
	}
	if err := <-r.ended; err != nil {
		t.Error(err)
	}
	if _, err := dial(r.address, tls.VersionTLS13); err == nil {
		t.Error("the port is still open")
	}
}

// maxInFlight is how many small requests are handled at the same time.
const maxInFlight = workBudget / workUnit

// TestInFlight checks that requests beyond the limit wait, and that a request that is canceled
// meanwhile does not count.
func TestInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var now atomic.Int32
		leave := make(chan struct{})
		p := newPeers(newMetrics())
		handler := (&server{peers: p, draining: new(atomic.Bool), log: zap.NewNop(), handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
			now.Add(1)
			<-leave
			now.Add(-1)
		})}).routes()
		ask := func(ctx context.Context) {
			request := httptest.NewRequestWithContext(connected(ctx, p), "POST", mutatePath, strings.NewReader("{}"))
			handler.ServeHTTP(httptest.NewRecorder(), request)
		}
		for range maxInFlight + 3 {
			go ask(t.Context())
		}
		synctest.Wait() // until the limit is reached
		canceled, cancel := context.WithCancel(t.Context())
		go ask(canceled)
		synctest.Wait()
		if got := now.Load(); got != maxInFlight {
			t.Errorf("%d at the same time, want %d", got, maxInFlight)
		}
		cancel()
		synctest.Wait()
		for range maxInFlight + 3 {
			leave <- struct{}{}
		}
		synctest.Wait()
		if got := now.Load(); got != 0 {
			t.Errorf("%d requests have not finished", got)
		}
	})
}

// TestAdmitTime checks that the timeout of a request is shorter than the API server's.
func TestAdmitTime(t *testing.T) {
	for query, want := range map[string]time.Duration{
		"?timeout=10s": 8 * time.Second, "?timeout=5s": 4 * time.Second, "?timeout=30s": admitTimeout,
		"": admitTimeout, "?timeout=": admitTimeout, "?timeout=soon": admitTimeout, "?timeout=-1s": admitTimeout, "?timeout=0s": admitTimeout,
	} {
		r, err := http.NewRequest("POST", "https://192.0.2.1"+mutatePath+query, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := admitTime(r); got != want {
			t.Errorf("%q: got %s, want %s", query, got, want)
		}
	}
}

// TestDeadlineWhileQueued checks that a request whose time ends before it gets a place is answered
// with an error, and that the handler is not called for it.
func TestDeadlineWhileQueued(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int32
		p := newPeers(newMetrics())
		handler := (&server{peers: p, draining: new(atomic.Bool), log: zap.NewNop(), handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			calls.Add(1)
			<-r.Context().Done() // as slow as possible
		})}).routes()
		codes := make(chan int, maxInFlight+1)
		ask := func(query string) {
			w := httptest.NewRecorder()
			request := httptest.NewRequestWithContext(connected(t.Context(), p), "POST", mutatePath+query, strings.NewReader("{}"))
			handler.ServeHTTP(w, request)
			codes <- w.Code
		}
		for range maxInFlight {
			go ask("?timeout=10s")
		}
		synctest.Wait()
		ask("?timeout=5s")
		if code := <-codes; code != http.StatusServiceUnavailable || calls.Load() != maxInFlight {
			t.Errorf("got %d after %d calls, want 503 after %d", code, calls.Load(), maxInFlight)
		}
		for range maxInFlight {
			<-codes
		}
	})
}

// connected returns a context of a request with a connection of its own.
func connected(ctx context.Context, p *peers) context.Context {
	return context.WithValue(ctx, peerKey{}, &peer{peers: p})
}
