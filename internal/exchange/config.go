package exchange

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/url"

	"go.uber.org/zap"

	"imds-oidc-proxy/internal/azure"
)

// Config says which tenant an Exchanger asks, and how it reaches Entra.
type Config struct {
	// TenantID is the Entra tenant. Required.
	TenantID azure.Tenant

	// FederatedTokenFile is the path of the projected service-account token. It
	// is read again for each exchange. Required.
	FederatedTokenFile string

	// AuthorityHost is Entra in the cloud of the tenant. Empty: that of the public cloud.
	AuthorityHost azure.AuthorityHost

	// CAFile names a PEM file of certificate authorities to trust beside the
	// system's. Empty: the system's alone (which SSL_CERT_FILE can replace).
	CAFile string

	// Binding routes exchanges through an identity binding's proxy. Zero: none.
	Binding Binding

	// Log gets a line when Binding's CA file becomes unreadable, or readable again.
	// Nil: nothing is logged.
	Log *zap.Logger

	// Proxy chooses the HTTP proxy for a request to Entra, or to Binding's token
	// proxy, as in [net/http.Transport]. Nil: none; this package reads no environment.
	Proxy func(*http.Request) (*url.URL, error)

	// Dial opens the connection to Entra. Nil: a [net.Dialer] does.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Binding is an AKS identity binding: a proxy in the cluster that takes the
// token requests that would otherwise go to Entra. Zero: there is none.
type Binding struct {
	// TokenProxy is the https URL of the proxy (AZURE_KUBERNETES_TOKEN_PROXY).
	// Its path is put before that of each request.
	TokenProxy azure.TokenProxy

	// SNIName is the server name to ask the proxy for, and to verify
	// (AZURE_KUBERNETES_SNI_NAME). Empty: TokenProxy's host.
	SNIName string

	// CAFile names the PEM file of the only authorities trusted for the proxy
	// (AZURE_KUBERNETES_CA_FILE). It may change at any time.
	CAFile string

	// CAData holds them itself, in PEM (AZURE_KUBERNETES_CA_DATA). With neither,
	// the proxy is verified like Entra.
	CAData string
}

// withDefaults returns c with its zero fields filled in, or says what to change.
func (c Config) withDefaults() (Config, error) {
	if c.AuthorityHost == "" {
		c.AuthorityHost = azure.PublicAuthorityHost
	}
	if c.Log == nil {
		c.Log = zap.NewNop()
	}
	if c.Dial == nil {
		c.Dial = (&net.Dialer{Timeout: dialTimeout}).DialContext
	}
	if err := c.check(); err != nil {
		return c, err
	}
	return c, c.Binding.check()
}

func (c Config) check() error {
	if c.TenantID == "" {
		return errors.New(azure.EnvTenantID + " is required: it names the Entra tenant")
	}
	if c.FederatedTokenFile == "" {
		return errors.New(azure.EnvFederatedTokenFile + " is required: it names the projected service-account token")
	}
	return nil
}

func (b Binding) check() error {
	if b == (Binding{}) {
		return nil
	}
	if b.TokenProxy == "" {
		return errors.New(azure.EnvTokenProxy + " is required with " + azure.EnvSNIName + ", _CA_FILE or _CA_DATA")
	}
	if b.CAFile != "" && b.CAData != "" {
		return errors.New(azure.EnvCAFile + " and " + azure.EnvCAData + " must not both be set")
	}
	return nil
}

// peer names the server that answers token requests, for errors.
func (c Config) peer() string {
	if c.Binding.TokenProxy != "" {
		return "the token proxy"
	}
	return "entra"
}
