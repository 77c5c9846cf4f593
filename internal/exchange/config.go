package exchange

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"

	"go.uber.org/zap"
)

// DefaultAuthorityHost is Entra of the public cloud.
const DefaultAuthorityHost = "https://login.microsoftonline.com/"

// Config says which tenant an Exchanger asks, and how it reaches Entra.
type Config struct {
	// TenantID is the Entra tenant, a GUID or a domain name. Needed.
	TenantID string

	// FederatedTokenFile is the path of the projected service-account token. It
	// is read anew for each exchange. Needed.
	FederatedTokenFile string

	// AuthorityHost is the https URL of Entra in the cloud at hand, with or
	// without a trailing slash. Empty: DefaultAuthorityHost.
	AuthorityHost string

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

	// Dial opens the connection to Entra. Nil: a [net.Dialer]'s.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Binding is an AKS identity binding: a proxy in the cluster that takes the
// token requests that would otherwise go to Entra. Zero: there is none.
type Binding struct {
	// TokenProxy is the https URL of the proxy (AZURE_KUBERNETES_TOKEN_PROXY).
	// Its path is prefixed to that of each request.
	TokenProxy string

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
		c.AuthorityHost = DefaultAuthorityHost
	}
	if c.Log == nil {
		c.Log = zap.NewNop()
	}
	if c.Dial == nil {
		c.Dial = (&net.Dialer{Timeout: dialTimeout}).DialContext
	}
	c.AuthorityHost = strings.TrimRight(c.AuthorityHost, "/")
	if err := c.check(); err != nil {
		return c, err
	}
	return c, c.Binding.check()
}

// tenantPattern admits GUIDs and domain names. It is what keeps a tenant from
// adding to the path of the authority.
var tenantPattern = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9.-]{0,252}[A-Za-z0-9])?$`)

func (c Config) check() error {
	switch strings.ToLower(c.TenantID) {
	case "":
		return errors.New("AZURE_TENANT_ID is not set: it names the Entra tenant")
	case "common", "organizations", "consumers":
		return fmt.Errorf("AZURE_TENANT_ID is %q: it has to name one tenant", c.TenantID)
	case "adfs", "dstsv2":
		// MSAL speaks other protocols to authorities with these paths.
		return fmt.Errorf("AZURE_TENANT_ID is %q: it has to name an Entra tenant", c.TenantID)
	}
	if !tenantPattern.MatchString(c.TenantID) {
		return errors.New("AZURE_TENANT_ID is neither a GUID nor a domain name")
	}
	if c.FederatedTokenFile == "" {
		return errors.New("AZURE_FEDERATED_TOKEN_FILE is not set: it names the projected service-account token")
	}
	if err := checkHTTPS("AZURE_AUTHORITY_HOST", c.AuthorityHost); err != nil {
		return err
	}
	// MSAL takes the first path segment of an authority for its tenant.
	if u, err := url.Parse(c.AuthorityHost); err != nil || u.Path != "" {
		return errors.New("AZURE_AUTHORITY_HOST must be a host alone, without a path (the tenant goes into AZURE_TENANT_ID)")
	}
	return nil
}

func (b Binding) check() error {
	if b == (Binding{}) {
		return nil
	}
	if b.TokenProxy == "" {
		return errors.New("AZURE_KUBERNETES_TOKEN_PROXY is not set, but AZURE_KUBERNETES_SNI_NAME, _CA_FILE or _CA_DATA is")
	}
	if b.CAFile != "" && b.CAData != "" {
		return errors.New("AZURE_KUBERNETES_CA_FILE and AZURE_KUBERNETES_CA_DATA are both set: set one")
	}
	return checkHTTPS("AZURE_KUBERNETES_TOKEN_PROXY", b.TokenProxy)
}

// peer is who answers token requests, in the words of errors.
func (c Config) peer() string {
	if c.Binding.TokenProxy != "" {
		return "the token proxy"
	}
	return "entra"
}

// checkHTTPS refuses what is not the https URL of a host. The assertion goes
// there, so anything less would send a credential in the clear. The value itself
// stays out of the error: a user info in it is a password.
func checkHTTPS(variable, value string) error {
	u, err := url.Parse(value)
	switch {
	case err != nil:
		return fmt.Errorf("%s is not a URL", variable)
	case u.Scheme != "https":
		return fmt.Errorf("%s must be an https URL", variable)
	case u.Hostname() == "":
		return fmt.Errorf("%s names no host", variable)
	case u.Port() != "" && !validPort(u.Port()):
		return fmt.Errorf("%s names a port that is none: a port is 1 to 65535", variable)
	case u.User != nil:
		return fmt.Errorf("%s must not hold user info", variable)
	case u.RawQuery != "" || u.ForceQuery:
		return fmt.Errorf("%s must not hold a query", variable)
	case u.Fragment != "" || strings.Contains(value, "#"):
		return fmt.Errorf("%s must not hold a fragment", variable)
	}
	return nil
}

// validPort is what [url.Parse] leaves open: it takes any digits for a port.
func validPort(port string) bool {
	n, err := strconv.ParseUint(port, 10, 16)
	return err == nil && n != 0
}
