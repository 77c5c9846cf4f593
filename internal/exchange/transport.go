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

	"imds-oidc-proxy/internal/azure"
)

const (
	// dialTimeout bounds connecting by TCP. A second address, or a retry of the resolver
	// after its timeout of 5 s, is still possible within discoverTimeout.
	dialTimeout = 6 * time.Second

	// idleTimeout keeps the connection of discovery open for the token request that
	// follows, and for a burst of token requests. It is well below the 4 minutes after
	// which Azure's load balancers drop idle connections.
	idleTimeout = 2 * time.Minute

	// maxIdleConns is for such a burst. The next exchange is half an hour later.
	maxIdleConns = 4

	// maxBody bounds the body of a response, after decompression. A token with many groups
	// is some 30 KiB.
	maxBody = 256 << 10

	// maxHeader bounds the header of a response.
	maxHeader = 64 << 10

	// maxCAFile bounds a file of certificates. All certificates of Debian are 220 KiB.
	maxCAFile = 2 << 20
)

var (
	errBodyTooLarge = errors.New("the response is too large")
	errNotHTTPS     = errors.New("the address is not https")
	errForeignHost  = errors.New("the address is not of the authority host")
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
		return nil, fmt.Errorf("--ca-file: %s contains no PEM certificate", cfg.CAFile)
	}
	return baseTransport(cfg, &tls.Config{RootCAs: roots}), nil
}

// NewHTTPClient returns a client for diagnosis, which connects as exchanges connect to Entra:
// with the certificate authorities, the HTTP proxy and the dialer of cfg, by https only. It
// bounds responses and follows no redirects. It ignores Binding, which is for token requests
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

// baseTransport returns a transport for HTTP/1.1 only: net/http disables HTTP/2 if DialContext
// is set. A few exchanges an hour gain nothing from sharing a connection. With HTTP/2, a
// connection that hangs would fail all requests that share it, not only one.
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

// noRedirect is for http.Client.CheckRedirect. Following a redirect would send the assertion to
// another server. A redirect that is not followed is a response with an error status.
func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// guard checks every request, and bounds the body of responses. It refuses addresses that are
// not https, and those of other hosts: a discovery document could contain them, and the request
// would send the assertion there.
type guard struct {
	next http.RoundTripper

	// authority is the host that requests may be for. Empty: any host, because a token
	// proxy gets all requests, or because requests have no assertion.
	authority azure.AuthorityHost
}

// check returns an error if no request may be sent to the address.
func (g *guard) check(address *url.URL) error {
	switch {
	case address.Scheme != "https":
		return errNotHTTPS
	case g.authority != "" && !g.authority.Serves(address.String()):
		return errForeignHost
	}
	return nil
}

func (g *guard) RoundTrip(req *http.Request) (*http.Response, error) {
	if err := g.check(req.URL); err != nil {
		return nil, err
	}
	resp, err := g.next.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	resp.Body = &boundedBody{ReadCloser: resp.Body, left: maxBody}
	if resp.StatusCode != http.StatusOK {
		resp.Body = buffered(resp.Body)
	}
	return resp, nil
}

// buffered reads the body of an error response as far as possible. A body that is truncated or
// too large must not hide the status and the header, which contains Retry-After.
func buffered(body io.ReadCloser) io.ReadCloser {
	defer body.Close()
	content, _ := io.ReadAll(body)
	return io.NopCloser(bytes.NewReader(content))
}

func (g *guard) CloseIdleConnections() { closeIdle(g.next) }

// closeIdle closes the idle connections of a transport that is wrapped.
func closeIdle(rt http.RoundTripper) {
	if c, ok := rt.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

// boundedBody returns an error beyond its bound. If it returned io.EOF there, a part of a
// response could pass for the whole.
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

// readCertificates reads a PEM file, which may be one that the kubelet replaces.
func readCertificates(path string) ([]byte, error) {
	content, err := readSwapped(path, maxCAFile)
	if err != nil {
		return nil, fmt.Errorf("%s %w", path, err)
	}
	return content, nil
}

// routeFault says why a request did not reach its destination. Its text is a constant of this
// package, and so safe to log.
type routeFault struct {
	kind   FaultKind
	detail string
	retry  Retry
	hint   hint
}

func (f *routeFault) Error() string { return f.detail }

// proxyRefusal is for http.Transport.OnProxyConnectResponse. It returns an error if the HTTP
// proxy refuses, which has another fix than a proxy that cannot be reached, or an error of
// Entra. The error does not quote the proxy's response.
func proxyRefusal(_ context.Context, _ *url.URL, _ *http.Request, answer *http.Response) error {
	switch status := answer.StatusCode; status {
	case http.StatusOK:
		return nil
	case http.StatusProxyAuthRequired:
		return &routeFault{FaultHTTPProxy, "the HTTP proxy (HTTPS_PROXY) requires valid credentials (status 407)", RetryNever, hintProxyCredentials}
	case http.StatusForbidden:
		return &routeFault{FaultHTTPProxy, "the HTTP proxy (HTTPS_PROXY) blocks requests to entra (status 403)", RetryNever, hintProxyRules}
	default:
		return &routeFault{FaultHTTPProxy, fmt.Sprintf("the HTTP proxy (HTTPS_PROXY) did not connect to entra (status %d)", status), RetrySoon, hintProxyRules}
	}
}

// via returns a note that the failed request went through an HTTP proxy, empty if it did not.
// If an HTTP proxy hangs, closes the connection or sends garbage before its tunnel is open, the
// error looks like an error of the server behind it.
func (c Config) via(failed error) string {
	asked, ok := errors.AsType[*url.Error](failed)
	if !ok {
		return ""
	}
	if proxy, err := c.ProxyFor(cmp.Or(string(c.Binding.TokenProxy), asked.URL)); err != nil || proxy == nil {
		return ""
	}
	return " (via HTTPS_PROXY)"
}

// ProxyFor returns the HTTP proxy for requests to target. It is nil if there is none, or if
// target is not a URL.
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
