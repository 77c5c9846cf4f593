package exchange

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"
)

const (
	// dialTimeout bounds a TCP connection. A second address, or the resolver's
	// second try after its own 5 s, still fits into discoverTimeout.
	dialTimeout = 6 * time.Second

	// idleTimeout keeps a warm connection for the token request that follows
	// discovery, and for a burst of them. Azure's load balancers drop idle flows
	// after 4 minutes, so it ends well before.
	idleTimeout = 2 * time.Minute

	// maxIdleConns is for that burst; the next exchange is half an hour away.
	maxIdleConns = 4

	// maxBody bounds what is read of an answer, unpacked. A token with many
	// groups is some 30 KiB.
	maxBody = 256 << 10

	// maxHeader bounds an answer's header.
	maxHeader = 64 << 10

	// maxCAFile bounds a file of certificates; all of Debian's are 220 KiB.
	maxCAFile = 2 << 20
)

var (
	errBodyTooLarge = errors.New("the answer is too large")
	errNotHTTPS     = errors.New("the address is not https")
)

func newTransport(cfg Config) (http.RoundTripper, error) {
	if cfg.Binding.TokenProxy != "" {
		return newBindingTransport(cfg)
	}
	return newEntraTransport(cfg)
}

func newEntraTransport(cfg Config) (*http.Transport, error) {
	if cfg.CAFile == "" {
		return baseTransport(cfg, &tls.Config{}), nil
	}
	pem, err := readCertificates(cfg.CAFile)
	if err != nil {
		return nil, fmt.Errorf("--ca-file: %w", err)
	}
	roots, err := x509.SystemCertPool()
	if err != nil {
		return nil, fmt.Errorf("--ca-file: the system's certificates: %w", err)
	}
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("--ca-file: %s holds no PEM certificate", cfg.CAFile)
	}
	return baseTransport(cfg, &tls.Config{RootCAs: roots}), nil
}

// NewHTTPClient returns a client that reaches hosts as exchanges reach Entra: with cfg's
// certificate authorities, HTTP proxy and dialer, over https only, with bounded answers, and
// following no redirect. It is for diagnosis. It ignores Binding, which is for token requests
// only.
func NewHTTPClient(cfg Config) (*http.Client, error) {
	if cfg.Dial == nil {
		cfg.Dial = (&net.Dialer{Timeout: dialTimeout}).DialContext
	}
	transport, err := newEntraTransport(cfg)
	if err != nil {
		return nil, err
	}
	return &http.Client{Transport: &guard{next: transport}, CheckRedirect: noRedirect}, nil
}

// baseTransport speaks HTTP/1.1 only: net/http turns HTTP/2 off if DialContext is set. A few
// exchanges an hour gain nothing from sharing a connection. A connection that hangs fails one
// request; with HTTP/2 it would fail all that share it.
func baseTransport(cfg Config, config *tls.Config) *http.Transport {
	config.MinVersion = tls.VersionTLS12
	return &http.Transport{
		Proxy:                  cfg.Proxy,
		OnProxyConnectResponse: proxyRefusal,
		DialContext:            cfg.Dial,
		TLSClientConfig:        config,
		TLSHandshakeTimeout:    dialTimeout,
		IdleConnTimeout:        idleTimeout,
		MaxIdleConnsPerHost:    maxIdleConns,
		MaxResponseHeaderBytes: maxHeader,
	}
}

// noRedirect is for http.Client.CheckRedirect. A redirect would carry the assertion to
// another server; without following it, it is an answer that is not a 200.
func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// guard is around every request. It refuses addresses that are not https, which a discovery
// document could contain, and bounds the answers.
type guard struct{ next http.RoundTripper }

func (g *guard) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != "https" {
		return nil, errNotHTTPS
	}
	resp, err := g.next.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	resp.Body = &boundedBody{ReadCloser: resp.Body, left: maxBody}
	if resp.StatusCode != http.StatusOK {
		resp.Body = settled(resp.Body)
	}
	return resp, nil
}

// settled reads the body of a refusal as far as possible. A body that breaks off, or is too
// large, must not hide status and header, which hold Retry-After.
func settled(body io.ReadCloser) io.ReadCloser {
	defer body.Close()
	content, _ := io.ReadAll(body)
	return io.NopCloser(bytes.NewReader(content))
}

func (g *guard) CloseIdleConnections() { closeIdle(g.next) }

// closeIdle closes the idle connections of the transport beneath a wrapper.
func closeIdle(rt http.RoundTripper) {
	if c, ok := rt.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

// boundedBody fails past its bound. If it ended there, half an answer could pass for a whole
// one.
type boundedBody struct {
	io.ReadCloser
	left int
}

func (b *boundedBody) Read(p []byte) (int, error) {
	if b.left < 0 {
		return 0, errBodyTooLarge
	}
	if len(p) > b.left+1 {
		p = p[:b.left+1]
	}
	n, err := b.ReadCloser.Read(p)
	b.left -= n
	if b.left < 0 {
		return n, errBodyTooLarge
	}
	return n, err
}

// readCertificates reads a PEM file. It may be one that the kubelet swaps.
func readCertificates(path string) ([]byte, error) {
	content, err := readSwapped(path, maxCAFile)
	if err != nil {
		return nil, fmt.Errorf("%s %w", path, err)
	}
	return content, nil
}

// routeFault says why a request did not reach its destination. Its text is this package's
// own, so it is safe to log.
type routeFault struct {
	kind   FaultKind
	detail string
	retry  Retry
	hint   hint
}

func (f *routeFault) Error() string { return f.detail }

// proxyRefusal is for http.Transport.OnProxyConnectResponse. An HTTP proxy that refuses has
// another remedy than one that cannot be reached, or than Entra. The error does not quote
// the proxy's answer.
func proxyRefusal(_ context.Context, _ *url.URL, _ *http.Request, answer *http.Response) error {
	switch status := answer.StatusCode; status {
	case http.StatusOK:
		return nil
	case http.StatusProxyAuthRequired:
		return &routeFault{FaultHTTPProxy, "the HTTP proxy (HTTPS_PROXY) wants credentials, or other ones (status 407)", RetryNever, hintProxyCredentials}
	case http.StatusForbidden:
		return &routeFault{FaultHTTPProxy, "the HTTP proxy (HTTPS_PROXY) does not let requests to entra through (status 403)", RetryNever, hintProxyRules}
	default:
		return &routeFault{FaultHTTPProxy, fmt.Sprintf("the HTTP proxy (HTTPS_PROXY) makes no connection to entra (status %d)", status), RetrySoon, hintProxyRules}
	}
}

// way says that the request that failed went through an HTTP proxy; it is empty if there is
// none. If a proxy hangs, hangs up or sends garbage before its tunnel is open, the error looks
// like one of the server at the tunnel's end.
func (c Config) way(failed error) string {
	asked, ok := errors.AsType[*url.Error](failed)
	if !ok {
		return ""
	}
	if via, err := c.ProxyFor(cmp.Or(string(c.Binding.TokenProxy), asked.URL)); err != nil || via == nil {
		return ""
	}
	return " (by way of HTTPS_PROXY)"
}

// ProxyFor returns the HTTP proxy on the way to target. Nil: there is none, or target is not
// a URL.
func (c Config) ProxyFor(target string) (*url.URL, error) {
	if c.Proxy == nil {
		return nil, nil
	}
	req, err := http.NewRequest(http.MethodGet, target, nil)
	if err != nil {
		return nil, nil
	}
	return c.Proxy(req)
}
