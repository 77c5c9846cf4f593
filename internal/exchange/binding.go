package exchange

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"sync"

	"go.uber.org/zap"

	"imds-oidc-proxy/internal/azure"
)

// bindingTransport sends requests to the proxy of an identity binding instead of to Entra. It
// appends the path of each request to the path of the proxy's URL.
type bindingTransport struct {
	cfg   Config
	proxy *url.URL

	caFile *sharedFile[[]byte] // nil: no CAFile

	// mu guards the fields below. It is never held while a file is read.
	mu      sync.Mutex
	pem     []byte // content of CAFile that current uses; nil: no CAFile
	caFault string // error of the last read of CAFile; empty: none
	current *http.Transport
}

func newBindingTransport(cfg Config) (http.RoundTripper, error) {
	proxy, err := url.Parse(string(cfg.Binding.TokenProxy))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", azure.EnvTokenProxy, err)
	}
	if proxy.Path == "" {
		proxy.Path = "/" // JoinPath removes the leading slash of a path that it appends to ""
	}
	b := &bindingTransport{cfg: cfg, proxy: proxy}
	switch {
	case cfg.Binding.CAFile != "":
		b.caFile = &sharedFile[[]byte]{path: cfg.Binding.CAFile, load: readCertificates}
		err = b.readCAFile(context.Background())
	case cfg.Binding.CAData != "":
		err = b.trust([]byte(cfg.Binding.CAData), azure.EnvCAData)
	default:
		err = b.trustAsEntra()
	}
	if err != nil {
		return nil, err
	}
	return b, nil
}

func (b *bindingTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	out := req.Clone(req.Context())
	out.URL = b.proxy.JoinPath(req.URL.EscapedPath())
	out.URL.RawQuery = req.URL.RawQuery
	out.Host = ""
	transport, caFault, changed := b.transport(req.Context())
	if changed {
		b.logCAFile(caFault)
	}
	resp, err := transport.RoundTrip(out)
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return nil, b.untrusted(caFault)
	}
	if _, ok := errors.AsType[x509.HostnameError](err); ok {
		return nil, &routeFault{FaultHostname, "the token proxy's certificate is for another host", RetrySoon, hintBindingName}
	}
	return resp, err
}

// untrusted returns the error for a token proxy's certificate that is signed by an unknown
// authority. It says which authorities are trusted.
func (b *bindingTransport) untrusted(caFault string) *routeFault {
	const refused = "the token proxy's certificate is signed by an unknown authority: "
	fault := &routeFault{kind: FaultAuthority, retry: RetrySoon, hint: hintBindingCA}
	switch {
	case caFault != "":
		fault.detail = refused + "the trusted certificates are outdated: " + bounded(caFault)
	case b.cfg.Binding.CAFile != "":
		fault.detail = refused + "it is not in " + azure.EnvCAFile
	case b.cfg.Binding.CAData != "":
		fault.detail = refused + "it is not in " + azure.EnvCAData
	default:
		fault.detail = refused + "neither " + azure.EnvCAFile + " nor " + azure.EnvCAData + " is set"
	}
	return fault
}

// transport reads the CA file and returns the transport that uses it, the error of the read,
// and whether that error has changed. While the file cannot be used, for example in the middle
// of a rotation, the transport uses the roots that were read before.
func (b *bindingTransport) transport(ctx context.Context) (current *http.Transport, caFault string, changed bool) {
	if b.caFile != nil {
		if err := b.readCAFile(ctx); err != nil {
			caFault = err.Error()
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	changed = caFault != b.caFault
	b.caFault = caFault
	return b.current, caFault, changed
}

// logCAFile logs that the CA file cannot be used, or can be used again. Without this line, a
// failed rotation would be noticed only when the old roots expire.
func (b *bindingTransport) logCAFile(caFault string) {
	if caFault == "" {
		b.cfg.Log.Info("the CA file of the identity binding can be read again")
		return
	}
	b.cfg.Log.Warn("cannot read the CA file of the identity binding, using the previous certificates",
		zap.String("error", bounded(caFault)), zap.String("hint", hintBindingCA.advise(0, "", "", FederatedToken{})))
}

func (b *bindingTransport) CloseIdleConnections() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.current.CloseIdleConnections()
}

func (b *bindingTransport) readCAFile(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, caFileTimeout)
	defer cancel()
	pem, err := b.caFile.read(ctx)
	if err != nil {
		return fmt.Errorf("%s: %w", azure.EnvCAFile, err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.current != nil && bytes.Equal(pem, b.pem) {
		return nil
	}
	if err := b.trust(pem, azure.EnvCAFile); err != nil {
		return err
	}
	b.pem = pem
	return nil
}

// trust makes the certificates in pem the only roots. Connections that were made with the old
// roots are not reused. b.mu is held, except in newBindingTransport.
func (b *bindingTransport) trust(pem []byte, variable string) error {
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return fmt.Errorf("%s contains no PEM certificate", variable)
	}
	if b.current != nil {
		b.current.CloseIdleConnections()
	}
	b.current = baseTransport(b.cfg, &tls.Config{RootCAs: roots, ServerName: b.cfg.Binding.SNIName})
	return nil
}

// trustAsEntra verifies the token proxy with the roots that are trusted for Entra.
func (b *bindingTransport) trustAsEntra() error {
	transport, err := newEntraTransport(b.cfg)
	if err != nil {
		return err
	}
	b.current = transport
	b.current.TLSClientConfig.ServerName = b.cfg.Binding.SNIName
	return nil
}
