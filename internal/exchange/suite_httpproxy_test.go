package exchange_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/exchange"
	"imds-oidc-proxy/test/kit/entra"
)

// connectProxy returns an HTTP proxy that opens every tunnel to the address to, and the CONNECT
// requests that it got.
func connectProxy(t *testing.T, to string) (proxy *url.URL, asked func() []string) {
	t.Helper()
	var hosts syncBuffer
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = hosts.Write([]byte(r.Method + " " + r.Host + "\n"))
		upstream, err := net.Dial("tcp", to)
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		defer upstream.Close()
		client, buffered, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer client.Close()
		_, _ = client.Write([]byte("HTTP/1.1 200 OK\r\n\r\n"))
		go func() { _, _ = io.Copy(upstream, buffered); upstream.Close() }()
		_, _ = io.Copy(client, upstream)
	}))
	t.Cleanup(server.Close)
	proxy, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	return proxy, func() []string { return strings.Fields(hosts.String()) }
}

func TestHTTPProxyIsUsedForEntra(t *testing.T) {
	p := startPod(t, entra.Config{})
	host := strings.TrimSuffix(strings.TrimPrefix(p.idp.AuthorityHost(), "https://"), "/")
	proxy, asked := connectProxy(t, host)
	p.cfg.Proxy = http.ProxyURL(proxy)
	if _, err := p.get(t, p.service(t)); err != nil {
		t.Fatal(err)
	}
	if got := asked(); len(got) != 2 || got[0] != "CONNECT" || got[1] != host {
		t.Errorf("the proxy was asked for %q, want one CONNECT to %s", got, host)
	}

	proxy.Host = "127.0.0.1:1" // nothing listens there
	err := p.service(t).exchange(t.Context(), clientID, resource)
	if e := wantKind(t, err, exchange.Unavailable); !strings.Contains(e.Detail, "HTTPS_PROXY") {
		t.Errorf("proxy not reachable: detail %q", e.Detail)
	}
}

// If an HTTP proxy does not answer CONNECT, the error looks like one of Entra: its text must name
// the proxy.
func TestSilentHTTPProxyIsNamed(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	p := startPod(t, entra.Config{})
	for name, c := range map[string]struct {
		proxy   string
		timeout time.Duration
		kind    exchange.Kind
		want    string
	}{
		"hangs":                 {silent.Addr().String(), 100 * time.Millisecond, exchange.DeadlineExceeded, "entra did not answer in time"},
		"closes the connection": {sending(t, ""), time.Minute, exchange.Unavailable, "the connection to entra broke"},
		"sends garbage":         {sending(t, secret+"\r\n\r\n"), time.Minute, exchange.Unavailable, "entra could not be reached, or its response could not be used"},
		"tunnel sends garbage":  {sending(t, "HTTP/1.1 200 OK\r\n\r\n", secret), time.Minute, exchange.Unavailable, "entra does not speak TLS"},
	} {
		p.cfg.Proxy = http.ProxyURL(&url.URL{Scheme: "http", Host: c.proxy})
		ctx, cancel := context.WithTimeout(t.Context(), c.timeout)
		err := p.service(t).exchange(ctx, clientID, resource)
		cancel()
		if e := wantKind(t, err, c.kind); e.Detail != c.want+" (via HTTPS_PROXY)" {
			t.Errorf("%s: detail %q", name, e.Detail)
		}
	}
}

// NO_PROXY is compared with the host of the request: with an identity binding, that is the host
// of the token proxy.
func TestHTTPProxyIsNamedOnlyIfUsed(t *testing.T) {
	mute := sending(t, "")
	p := startPod(t, entra.Config{})
	p.cfg.AuthorityHost = authority("https://" + mute)
	for name, c := range map[string]struct {
		binding exchange.Binding
		via     string // the only host that is reached through the HTTP proxy
		named   bool
	}{
		"Entra, through the HTTP proxy":           {exchange.Binding{}, mute, true},
		"Entra, without it":                       {exchange.Binding{}, "other.example.test", false},
		"the token proxy, through the HTTP proxy": {exchange.Binding{TokenProxy: "https://binding.example.test"}, "binding.example.test", true},
		"the token proxy, without it":             {exchange.Binding{TokenProxy: azure.TokenProxy("https://" + sending(t, ""))}, mute, false},
	} {
		p.cfg.Binding = c.binding
		p.cfg.Proxy = func(r *http.Request) (*url.URL, error) {
			if r.URL.Host != c.via {
				return nil, nil
			}
			return &url.URL{Scheme: "http", Host: mute}, nil
		}
		err := p.service(t).exchange(t.Context(), clientID, resource)
		if e := wantKind(t, err, exchange.Unavailable); !strings.Contains(e.Detail, "broke") || strings.Contains(e.Detail, "HTTPS_PROXY") != c.named {
			t.Errorf("%s: detail %q, want HTTPS_PROXY in it: %t", name, e.Detail, c.named)
		}
	}
}

// If an HTTP proxy refuses CONNECT, error and hint are about the proxy.
func TestRefusalOfTheHTTPProxy(t *testing.T) {
	p := startPod(t, entra.Config{})
	var status, connects atomic.Int32
	refusing := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		connects.Add(1)
		w.Header().Set("X-Reason", secret)
		w.WriteHeader(int(status.Load()))
		_, _ = io.WriteString(w, secret)
	}))
	defer refusing.Close()
	proxy, err := url.Parse(refusing.URL)
	if err != nil {
		t.Fatal(err)
	}
	p.cfg.Proxy = http.ProxyURL(proxy)
	for _, c := range []struct {
		status int32
		detail string
		hint   string
		tries  int32
	}{
		{407, "credentials", "USER:PASSWORD@", 1},
		{403, "blocks requests to entra", "CONNECT", 1},
		{502, "status 502", "CONNECT", maxTries},
	} {
		status.Store(c.status)
		connects.Store(0)
		p.log.Reset()
		_, err := p.get(t, p.service(t))
		e := wantKind(t, err, exchange.Unavailable)
		if !strings.Contains(e.Detail, "HTTPS_PROXY") || !strings.Contains(e.Detail, c.detail) || !strings.Contains(e.Hint, c.hint) {
			t.Errorf("%d: detail %q, hint %q", c.status, e.Detail, e.Hint)
		}
		if got := connects.Load(); got != c.tries {
			t.Errorf("%d: %d tries, want %d", c.status, got, c.tries)
		}
		waitFor(t, "log line", func() bool { return len(p.lines(t, "token exchange failed")) == 1 })
		if line := p.log.String(); !strings.Contains(line, c.detail) || !strings.Contains(line, c.hint) || strings.Contains(line, secret) {
			t.Errorf("%d: got log line %s", c.status, line)
		}
		if err := p.service(t).Discover(t.Context()); wantKind(t, err, exchange.Unavailable).Hint != e.Hint {
			t.Errorf("%d: got error %v of Discover", c.status, err)
		}
	}
}
