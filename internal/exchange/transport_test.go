package exchange_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/pem"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/exchange"
	"imds-oidc-proxy/test/kit/entra"
)

func TestAuthorityHostWithAndWithoutASlash(t *testing.T) {
	p := startPod(t, entra.Config{})
	for _, host := range []string{p.idp.AuthorityHost(), strings.TrimRight(p.idp.AuthorityHost(), "/")} {
		var err error
		if p.cfg.AuthorityHost, err = azure.ParseAuthorityHost(host); err != nil {
			t.Fatal(err)
		}
		p.idp.Reset()
		if _, err := p.get(t, p.service(t)); err != nil {
			t.Errorf("%s: %v", host, err)
		}
		for _, x := range p.idp.Exchanges() {
			if strings.Contains(x.Path, "//") {
				t.Errorf("%s: path %s", host, x.Path)
			}
		}
	}
}

// With a private authority host, requests are sent to this host only.
func TestPrivateAuthorityHost(t *testing.T) {
	p := startPod(t, entra.Config{})
	want := strings.TrimSuffix(strings.TrimPrefix(p.idp.AuthorityHost(), "https://"), "/")
	var elsewhere atomic.Int32
	p.cfg.Proxy = func(r *http.Request) (*url.URL, error) {
		if r.URL.Host != want {
			elsewhere.Add(1)
		}
		return nil, nil
	}
	if _, err := p.get(t, p.service(t)); err != nil {
		t.Fatal(err)
	}
	if n := elsewhere.Load(); n != 0 {
		t.Errorf("%d requests to other hosts", n)
	}
	if got := p.idp.Counts().InstanceDiscovery; got != 0 {
		t.Errorf("%d requests for instance discovery", got)
	}
}

// recorder counts requests by host.
type recorder struct {
	next  http.RoundTripper
	hosts map[string]int
}

func (r *recorder) RoundTrip(req *http.Request) (*http.Response, error) {
	r.hosts[req.URL.Host]++
	return r.next.RoundTrip(req)
}

// MSAL reads MSAL_FORCE_REGION itself. With some values it would ask the node's metadata service
// for the region.
func TestForcedRegionIsIgnored(t *testing.T) {
	t.Setenv("MSAL_FORCE_REGION", "westus")
	idp, err := entra.New(entra.Config{})
	if err != nil {
		t.Fatal(err)
	}
	p := newPod(t, idp)
	p.cfg.Dial = dialLoopback
	r := &recorder{next: idp.Transport(), hosts: make(map[string]int)}
	p.transport = r
	if err := p.service(t).exchange(t.Context(), clientID, resource); err != nil {
		t.Fatal(err)
	}
	if len(r.hosts) != 1 || r.hosts[entra.DefaultHost] != 2 {
		t.Errorf("requests by host: %v, want 2 to %s", r.hosts, entra.DefaultHost)
	}
}

func TestErrorOfAnUntrustedCertificate(t *testing.T) {
	p := startPod(t, entra.Config{})
	p.cfg.CAFile = ""
	err := p.service(t).exchange(t.Context(), clientID, resource)
	if e := wantKind(t, err, exchange.Unavailable); !strings.Contains(e.Detail, "--ca-file") {
		t.Errorf("the detail does not say what to do: %s", e.Detail)
	}
	if got := p.idp.Counts(); got != (entra.Counts{}) {
		t.Errorf("requests were sent: %+v", got)
	}
}

func TestOldTLSIsRefused(t *testing.T) {
	p := startPod(t, entra.Config{})
	config := p.idp.ServerTLSConfig()
	config.MinVersion, config.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
	old := httptest.NewUnstartedServer(p.idp.Handler())
	old.TLS = config
	old.Config.ErrorLog = log.New(io.Discard, "", 0)
	old.StartTLS()
	defer old.Close()
	p.cfg.AuthorityHost = authority(old.URL)
	p.idp.Reset()
	err := p.service(t).exchange(t.Context(), clientID, resource)
	wantKind(t, err, exchange.Unavailable)
	if got := p.idp.Counts(); got != (entra.Counts{}) {
		t.Errorf("requests were sent: %+v", got)
	}
}

func TestErrorOfARefusedConnection(t *testing.T) {
	p := startPod(t, entra.Config{})
	p.cfg.AuthorityHost = "https://127.0.0.1:1/"
	err := p.service(t).exchange(t.Context(), clientID, resource)
	if e := wantKind(t, err, exchange.Unavailable); !strings.Contains(e.Detail, "refused") {
		t.Errorf("detail: %s", e.Detail)
	}
}

// An https URL whose port speaks plain HTTP, for which net/http has its own error, or another
// protocol.
func TestErrorOfAPortWithoutTLS(t *testing.T) {
	for name, address := range map[string]string{
		"HTTP":           plainHTTP(t),
		"something else": sending(t, "220 mail.example.test ESMTP "+secret+"\r\n"),
	} {
		p := startPod(t, entra.Config{})
		p.cfg.AuthorityHost = authority("https://" + address)
		err := p.service(t).exchange(t.Context(), clientID, resource)
		if e := wantKind(t, err, exchange.Unavailable); e.Detail != "entra does not speak TLS" {
			t.Errorf("%s: detail %q", name, e.Detail)
		}
	}
}

func plainHTTP(t *testing.T) string {
	t.Helper()
	server := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(server.Close)
	return server.Listener.Addr().String()
}

// sending returns the address of a server that answers each read of a connection with the next of
// the messages, and closes the connection after the last.
func sending(t *testing.T, messages ...string) (address string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go serveEach(listener, func(conn net.Conn) {
		for _, message := range messages {
			if _, err := conn.Read(make([]byte, 4<<10)); err != nil {
				return
			}
			_, _ = io.WriteString(conn, message)
		}
	})
	return listener.Addr().String()
}

// serveEach calls answer for each connection, and closes it afterwards, until the listener is
// closed.
func serveEach(listener net.Listener, answer func(net.Conn)) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			answer(conn)
		}()
	}
}

func TestErrorsOfTimeouts(t *testing.T) {
	p := startPod(t, entra.Config{})
	for _, c := range []struct {
		cause error
		proxy bool
		want  string
	}{
		{&net.DNSError{Err: "i/o timeout", Name: secret, IsTimeout: true}, false, "not resolved"},
		{os.ErrDeadlineExceeded, false, "not accepted"},
		{os.ErrDeadlineExceeded, true, "HTTPS_PROXY"},
	} {
		p.cfg.Dial = func(context.Context, string, string) (net.Conn, error) {
			return nil, &net.OpError{Op: "dial", Net: "tcp", Err: c.cause}
		}
		p.cfg.Proxy = nil
		if c.proxy {
			p.cfg.Proxy = http.ProxyURL(&url.URL{Scheme: "http", Host: "proxy.example.test"})
		}
		err := p.service(t).exchange(t.Context(), clientID, resource)
		if e := wantKind(t, err, exchange.DeadlineExceeded); !strings.Contains(e.Detail, c.want) {
			t.Errorf("%v: got detail %q, want one with %q", c.cause, e.Detail, c.want)
		}
	}
}

// Following a redirect would send the assertion to another server.
func TestRedirectIsNotFollowed(t *testing.T) {
	var visits atomic.Int32
	elsewhere := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { visits.Add(1) }))
	defer elsewhere.Close()
	p := startPod(t, entra.Config{})
	ca, err := os.ReadFile(p.cfg.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	both := append(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: elsewhere.Certificate().Raw})...)
	write(t, p.cfg.CAFile, string(both))
	for _, status := range []int{301, 302, 303, 307, 308} {
		for _, where := range []entra.Endpoint{entra.TokenEndpoint, entra.TenantDiscovery} {
			p.idp.Reset()
			p.idp.FailAlways(entra.FaultRedirect(status, elsewhere.URL).On(where))
			err := p.service(t).exchange(t.Context(), clientID, resource)
			wantKind(t, err, exchange.Unavailable)
		}
	}
	if n := visits.Load(); n != 0 {
		t.Errorf("%d requests followed", n)
	}
}

// brokenThrottle answers token requests with a 429 whose body is unusable.
type brokenThrottle struct {
	next http.RoundTripper
	body io.Reader
}

func (b brokenThrottle) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Method != http.MethodPost {
		return b.next.RoundTrip(r)
	}
	return &http.Response{StatusCode: 429, ProtoMajor: 1, ProtoMinor: 1, Request: r, ContentLength: -1,
		Header: http.Header{"Retry-After": {"7"}}, Body: io.NopCloser(b.body)}, nil
}

func TestThrottleWithAnUnusableBody(t *testing.T) {
	for name, body := range map[string]io.Reader{
		"truncated": io.MultiReader(strings.NewReader(`{"error":"`), iotest.ErrReader(io.ErrUnexpectedEOF)),
		"reset":     iotest.ErrReader(&net.OpError{Op: "read", Err: os.ErrDeadlineExceeded}),
		"oversized": io.LimitReader(endless{}, 10*exchange.MaxBody),
		"endless":   endless{},
	} {
		idp, err := entra.New(entra.Config{})
		if err != nil {
			t.Fatal(err)
		}
		p := newPod(t, idp)
		p.transport = brokenThrottle{idp.Transport(), body}
		err = p.service(t).exchange(t.Context(), clientID, resource)
		if e := wantKind(t, err, exchange.Throttled); e.RetryAfter != 7*time.Second {
			t.Errorf("%s: Retry-After %s, want 7s", name, e.RetryAfter)
		}
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'x'
	}
	return len(p), nil
}

// caFile writes the CA of a fake Entra to a file.
func caFile(t *testing.T, idp *entra.Server) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ca.pem")
	if err := idp.WriteCA(path); err != nil {
		t.Fatal(err)
	}
	return path
}

// An endless header is not read to its end.
func TestHeaderIsBounded(t *testing.T) {
	p := startPod(t, entra.Config{})
	listener, err := tls.Listen("tcp", "127.0.0.1:0", p.idp.ServerTLSConfig())
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	var sent atomic.Int64
	go serveEach(listener, func(conn net.Conn) {
		if _, err := bufio.NewReader(conn).ReadString('\n'); err != nil {
			return
		}
		_, _ = conn.Write([]byte("HTTP/1.1 200 OK\r\n"))
		line := []byte("X-Filler: " + strings.Repeat("x", 1000) + "\r\n")
		for range 100_000 {
			n, err := conn.Write(line)
			if sent.Add(int64(n)); err != nil {
				return
			}
		}
	})
	p.cfg.AuthorityHost = authority("https://" + listener.Addr().String())
	err = p.service(t).exchange(t.Context(), clientID, resource)
	wantKind(t, err, exchange.Unavailable)
	// The bound plus socket buffers. The default bound of net/http is 10 MiB.
	if got := sent.Load(); got > 9<<20 {
		t.Errorf("%d bytes of the header were read", got)
	}
}
