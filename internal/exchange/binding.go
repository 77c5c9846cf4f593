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

// bindingTransport sends requests to an identity binding's proxy in place of
// Entra, each with its own path appended to the proxy's.
type bindingTransport struct {
	cfg   Config
	proxy *url.URL

	caFile *sharedFile[[]byte] // nil: no CAFile

	// mu guards what follows. It is never held over a file.
	mu      sync.Mutex
	pem     []byte // from which current was made; nil: no CAFile
	caFault string // why CAFile could not be used when it was read last; empty: it could
	current *http.Transport
}

func newBindingTransport(cfg Config) (http.RoundTripper, error) {
	proxy, err := url.Parse(string(cfg.Binding.TokenProxy))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", azure.EnvTokenProxy, err)
	}
	if proxy.Path == "" {
		proxy.Path = "/" // JoinPath drops the leading slash of what it appends to ""
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

// untrusted is the error for a token proxy's certificate of another authority. It names the
// authorities that are trusted.
func (b *bindingTransport) untrusted(caFault string) *routeFault {
	const refused = "the token proxy's certificate is of an authority that is not "
	fault := &routeFault{kind: FaultAuthority, retry: RetrySoon, hint: hintBindingCA}
	switch {
	case caFault != "":
		fault.detail = refused + "among those last read: " + bounded(caFault)
	case b.cfg.Binding.CAFile != "":
		fault.detail = refused + "in " + azure.EnvCAFile
	case b.cfg.Binding.CAData != "":
		fault.detail = refused + "in " + azure.EnvCAData
	default:
		fault.detail = refused + "trusted here, and neither " + azure.EnvCAFile + " nor " + azure.EnvCAData + " names one"
	}
	return fault
}

// transport returns the transport for the CA file as it is now, why the file cannot be used,
// and whether that has changed. While the file cannot be used, as in the middle of a
// rotation, the roots that were read before stay in use.
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

// logCAFile logs that the CA file cannot be used, or that it can again. Without the line, a
// rotation that failed would be noticed only when the old roots expire.
func (b *bindingTransport) logCAFile(caFault string) {
	if caFault == "" {
		b.cfg.Log.Info("the identity binding's certificate authorities are read again")
		return
	}
	b.cfg.Log.Warn("the identity binding's certificate authorities cannot be read; those read before stay",
		zap.String("error", bounded(caFault)), zap.String("hint", hintBindingCA.advise("", "", FederatedToken{})))
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

// trust makes the certificates in pem the only roots. Connections made with the old ones are
// not used again. b.mu is held, except in newBindingTransport.
func (b *bindingTransport) trust(pem []byte, variable string) error {
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return fmt.Errorf("%s holds no PEM certificate", variable)
	}
	if b.current != nil {
		b.current.CloseIdleConnections()
	}
	b.current = baseTransport(b.cfg, &tls.Config{RootCAs: roots, ServerName: b.cfg.Binding.SNIName})
	return nil
}

func (b *bindingTransport) trustAsEntra() error {
	transport, err := newEntraTransport(b.cfg)
	if err != nil {
		return err
	}
	b.current = transport
	b.current.TLSClientConfig.ServerName = b.cfg.Binding.SNIName
	return nil
}
