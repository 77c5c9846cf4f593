package exchange

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"

	"go.uber.org/zap"

	"imds-oidc-proxy/internal/azure"
)

// Config configures an Exchanger: its tenant, and how it reaches Entra.
type Config struct {
	// TenantID is the Entra tenant. Required.
	TenantID azure.Tenant

	// FederatedTokenFile is the path of the projected service-account token, which is
	// read for each exchange. Required.
	FederatedTokenFile string

	// AuthorityHost is Entra's host in the cloud of the tenant. Empty: the one of the
	// public cloud.
	AuthorityHost azure.AuthorityHost

	// CAFile is the path of a PEM file of certificate authorities to trust in addition to
	// the system's. Empty: only the system's (which SSL_CERT_FILE can replace).
	CAFile string

	// Binding sends exchanges to the proxy of an identity binding. Zero: there is none.
	Binding Binding

	// Log logs when the CA file of Binding becomes unreadable, or readable again. Nil:
	// nothing is logged.
	Log *zap.Logger

	// Proxy returns the HTTP proxy for a request to Entra, or to the token proxy of
	// Binding, as in [net/http.Transport]. Nil: no HTTP proxy; this package reads no
	// environment variables.
	Proxy func(*http.Request) (*url.URL, error)

	// Dial opens the connection to Entra. Nil: that of a [net.Dialer].
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Binding is an AKS identity binding: a proxy in the cluster to which token requests are sent
// instead of to Entra. Zero: there is none.
type Binding struct {
	// TokenProxy is the https URL of the proxy (AZURE_KUBERNETES_TOKEN_PROXY). The path
	// of each request is appended to its path.
	TokenProxy azure.TokenProxy

	// SNIName is the TLS server name of the proxy (AZURE_KUBERNETES_SNI_NAME), which its
	// certificate must have. Empty: the host of TokenProxy.
	SNIName string

	// CAFile is the path of a PEM file of certificate authorities: no others are trusted
	// for the proxy (AZURE_KUBERNETES_CA_FILE). Its content may change at any time.
	CAFile string

	// CAData is PEM content in place of CAFile (AZURE_KUBERNETES_CA_DATA). If both are
	// empty, the proxy is verified like Entra. If both are set, there must be no file:
	// azure-workload-identity's webhook sets the path also if it has the content only.
	CAData string
}

// withDefaults returns c with defaults for its zero fields, or an error that says what to
// change.
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
	if c.Binding.CAData != "" && !exists(c.Binding.CAFile) {
		c.Binding.CAFile = ""
	}
	return c, c.Binding.check()
}

// exists reports whether there may be a file: only an error that says so means that there is none.
func exists(path string) bool {
	_, err := os.Stat(path)
	return !errors.Is(err, fs.ErrNotExist)
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
		return errors.New(azure.EnvTokenProxy + " is required with " + azure.EnvSNIName + ", " + azure.EnvCAFile + " or " + azure.EnvCAData)
	}
	if b.CAFile != "" && b.CAData != "" {
		return errors.New(azure.EnvCAFile + " and " + azure.EnvCAData + " must not both be set")
	}
	return nil
}

// peer returns the server that answers token requests.
func (c Config) peer() peer {
	if c.Binding.TokenProxy != "" {
		return peer{"the token proxy", true}
	}
	return peer{name: "entra"}
}
