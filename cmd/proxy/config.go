package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/net/http/httpproxy"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/exchange"
	"imds-oidc-proxy/internal/flagenv"
	"imds-oidc-proxy/internal/imds"
	"imds-oidc-proxy/internal/logging"
	"imds-oidc-proxy/internal/termlog"
	"imds-oidc-proxy/internal/tokens"
)

// config holds the flags and environment variables, parsed and validated. Files are
// validated when they are read, by package exchange.
type config struct {
	port           uint16
	adminAddress   string
	log            logging.Config
	logAll         bool
	terminationLog string
	probe          bool
	probeTimeout   time.Duration
	showVersion    bool

	identityList       []azure.Identity
	identities         map[azure.Selector]azure.ClientID // of identityList
	allowedClientIDs   []azure.ClientID
	appServiceHeader   azure.AppServiceHeader
	strictAPIVersion   bool
	imdsPassthrough    string
	imdsAddress        azure.MetadataURL
	requireIMDSBlocked bool
	requireRedirect    bool
	instanceFile       string
	instanceFields     []instanceField
	instance           *imds.Instance // the document in instanceFile; nil: there is none
	prefetch           []azure.Resource
	caFile             string
	shutdownDelay      time.Duration

	defaultClientID    azure.ClientID
	tenantID           azure.Tenant
	federatedTokenFile string
	authorityHost      azure.AuthorityHost
	binding            exchange.Binding
	httpProxy          httpproxy.Config

	// invalid holds the errors of the pod's environment variables, by name. The fields of
	// these variables are empty.
	invalid map[string]error
}

const (
	// defaultProbeTimeout is longer than a slow start, and shorter than 30 s, which is a
	// common limit for a pod to become ready and the default one to stop.
	defaultProbeTimeout = 25 * time.Second

	allowedClientIDsFlag = "allowed-client-ids"

	passthroughAuto = "auto"
	passthroughOn   = "on"
	passthroughOff  = "off"
)

// errConfig marks errors that are fixed by changing a flag or an environment variable.
var errConfig = errors.New("configuration")

// configError is an errConfig without a text of its own.
type configError struct{ error }

func (configError) Is(target error) bool { return target == errConfig }

func configErrorf(format string, args ...any) error {
	return configError{fmt.Errorf(format, args...)}
}

// variable returns the environment variable of a flag: PROXY_LOG_LEVEL for --log-level,
// PROXY_PORT for --proxy-port.
func variable(flag string) string {
	return flagenv.Prefix("PROXY_", "probe")(strings.TrimPrefix(flag, "proxy-"))
}

// parseConfig reads the flags and their environment variables, and then the environment
// variables of workload identity. Errors name the flag or variable to change. For --help it
// writes the help to stdout and returns pflag.ErrHelp.
func parseConfig(args []string, getenv func(string) string, stdout io.Writer) (config, error) {
	var cfg config
	flags := flagenv.New("proxy", variable)
	flags.Commands = []string{checkCommand, clientsCommand}
	cfg.addFlags(flags)
	// Read first, since errors of the other settings are written to this file. The flag takes
	// precedence.
	if file := getenv(variable("termination-log")); file != "" {
		cfg.terminationLog = file
	}
	flags.Usage = func() { fmt.Fprintf(stdout, usageHead, flags.Usages(), exitHelp(exits)) }
	if err := cfg.parse(flags, args, getenv); err != nil || cfg.showVersion || cfg.probe {
		return cfg, err
	}
	cfg.readPodEnvironment(getenv)
	if err := cfg.checkPodEnvironment(); err != nil {
		return cfg, err
	}
	return cfg, cfg.checkHandler()
}

// parse reads the flags in a set that includes those of c. It returns pflag.ErrHelp or an
// errConfig.
func (c *config) parse(flags *flagenv.Set, args []string, getenv func(string) string) error {
	err := flags.Parse(args, getenv)
	if err == nil {
		err = flags.Named(c.checkFlags(flags.FlagSet))
	}
	if err == nil || errors.Is(err, pflag.ErrHelp) {
		return err
	}
	return configError{err}
}

// addFlags adds the flags of c to the set.
func (c *config) addFlags(flags *flagenv.Set) {
	c.port, c.imdsPassthrough, c.imdsAddress = azure.ProxyPort, passthroughAuto, "http://"+azure.MetadataIP
	flags.Group("Ports")
	flagenv.Var(flags.FlagSet, &c.port, "proxy-port", azure.ParsePort, "`port` of the token endpoint, on 127.0.0.1")
	flagenv.Var(flags.FlagSet, &c.adminAddress, "admin-address", flagenv.Optional(azure.ParseAddress),
		"`address` (HOST:PORT or :PORT) that serves /readyz, /livez, /metrics and /debug/clients to the kubelet and Prometheus, and never tokens; empty means none")
	flags.DurationVar(&c.shutdownDelay, "shutdown-delay", 0,
		"how long to serve requests after SIGTERM before the shutdown begins, for a proxy that is not a native sidecar and gets the signal together with the application; the pod ends that much later")
	flags.Group("Token requests")
	flagenv.List(flags.FlagSet, &c.identityList, "identity", azure.ParseIdentity,
		"`SELECTOR=CLIENT_ID`: answer requests for this object ID or ARM resource ID with a token of this client ID; repeatable")
	flagenv.List(flags.FlagSet, &c.allowedClientIDs, allowedClientIDsFlag, azure.ParseClientID,
		"client `IDs` that requests may name; the default allows any")
	flagenv.List(flags.FlagSet, &c.prefetch, "prefetch", azure.ParseResource,
		"`resource` whose token, for "+azure.EnvClientID+", is fetched before the first request; repeatable")
	flagenv.Var(flags.FlagSet, &c.appServiceHeader, "app-service-header", flagenv.Optional(azure.ParseAppServiceHeader),
		"`secret`: also answer requests in the protocol of App Service, at "+azure.AppServicePath+", that have it in the header X-IDENTITY-HEADER or secret; set the variable and not the flag, which other processes can read")
	flags.BoolVar(&c.strictAPIVersion, "strict-api-version", false, "refuse token requests without api-version, as IMDS does")
	flags.StringVar(&c.caFile, "ca-file", "", "PEM `file` of certificate authorities to trust for Entra in addition to the system's")
	flags.Group("Instance metadata")
	flagenv.Var(flags.FlagSet, &c.imdsPassthrough, "imds-passthrough", flagenv.OneOf(passthroughAuto, passthroughOn, passthroughOff),
		"auto, on or off: whether to forward requests for instance metadata to the real IMDS; auto answers them at once after a connection has timed out, until one succeeds; requests for identities are never forwarded")
	flags.BoolVar(&c.requireRedirect, "require-redirect", false,
		"do not start unless this pod has the redirect of the CNI plugin, or of the native backend of proxy-init: for a pod in which no init container has installed or proven it")
	flags.StringVar(&c.instanceFile, instanceFlag, "", "JSON `file` with the answers to requests for /metadata/instance, which then are never forwarded")
	flagenv.List(flags.FlagSet, &c.instanceFields, instanceFieldsFlag, parseInstanceField,
		"`PATH=VALUE` to add to that file, such as compute/name=node-1, unless it has a value there; empty values are ignored; repeatable")
	flagenv.Var(flags.FlagSet, &c.imdsAddress, "imds-address", azure.ParseMetadataURL, "`URL` of the real IMDS; for tests")
	flags.BoolVar(&c.requireIMDSBlocked, "require-imds-blocked", false,
		"not ready while this pod can connect to the real IMDS: for a pod without a redirect, whose NetworkPolicy must block it; requires --imds-passthrough=off")
	flags.Group("Logging")
	c.log.AddFlags(flags.FlagSet)
	flags.BoolVar(&c.logAll, "log-all-requests", false,
		"log a line for every request, without a rate limit; a client in a loop can then fill the disk")
	flags.StringVar(&c.terminationLog, "termination-log", termlog.Path, "`file` for the cause of a failure, also of --probe; the proxy does not create it")
	flags.Group("Probe")
	flags.BoolVar(&c.probe, "probe", false, "wait until the proxy at --proxy-port is ready, and exit with 0")
	flags.DurationVar(&c.probeTimeout, "probe-timeout", defaultProbeTimeout, "how long --probe waits")
	flags.Group("Other")
	flags.BoolVar(&c.showVersion, "version", false, "print the version and exit")
}

const usageHead = `Usage: proxy [flags]
       proxy check [flags]
       proxy clients [flags]

Answer managed-identity requests (IMDS) with Entra access tokens, in exchange for the pod's
federated token. proxy check tests each step to a token: see proxy check --help.
proxy clients prints which clients have asked the running proxy.

Each flag except --probe and --version has an environment variable: --log-level has
PROXY_LOG_LEVEL, --proxy-port has PROXY_PORT. Separate the items of a list with commas.
%s
Environment variables, as azure-workload-identity's webhook sets them:

  AZURE_TENANT_ID             (required) the tenant to request tokens from
  AZURE_FEDERATED_TOKEN_FILE  (required) the projected service-account token
  AZURE_CLIENT_ID             the identity of requests that name none
  AZURE_AUTHORITY_HOST        the Entra endpoint; default https://login.microsoftonline.com/
  AZURE_KUBERNETES_TOKEN_PROXY, _SNI_NAME, _CA_FILE, _CA_DATA   identity bindings
  HTTPS_PROXY, NO_PROXY       for connections to Entra only
  AZURE_POD_IDENTITY_AUTHORITY_HOST   for proxy check: this pod has no redirect

Exit codes:
%s
On SIGTERM, after --shutdown-delay, the proxy stops accepting connections and finishes the
requests in progress. A second SIGTERM ends the process at once, with exit code 1.
`

func (c *config) checkFlags(flags *pflag.FlagSet) error {
	// An empty list must not mean that any client ID is allowed (fail closed).
	if flags.Changed(allowedClientIDsFlag) && len(c.allowedClientIDs) == 0 {
		return flagenv.Errorf(allowedClientIDsFlag, "is empty: list the client IDs to allow, or remove it to allow any")
	}
	if c.requireIMDSBlocked && c.imdsPassthrough != passthroughOff {
		return flagenv.Errorf("require-imds-blocked", "requires --imds-passthrough=off (PROXY_IMDS_PASSTHROUGH): with forwarding on, the proxy itself connects to the real IMDS")
	}
	if c.shutdownDelay < 0 {
		return flagenv.Errorf("shutdown-delay", "%q: must not be negative", c.shutdownDelay)
	}
	if c.probeTimeout <= 0 {
		return flagenv.Errorf("probe-timeout", "%q: must be greater than zero, for example 10s", c.probeTimeout)
	}
	var err error
	if c.identities, err = azure.Identities(c.identityList); err != nil {
		return flagenv.Errorf("identity", "%v", err)
	}
	return c.checkInstance()
}

func (c *config) readPodEnvironment(getenv func(string) string) {
	c.invalid = make(map[string]error)
	c.defaultClientID = podVariable(c, getenv, azure.EnvClientID, azure.ParseClientID)
	c.tenantID = podVariable(c, getenv, azure.EnvTenantID, azure.ParseTenant)
	c.federatedTokenFile = getenv(azure.EnvFederatedTokenFile)
	c.authorityHost = podVariable(c, getenv, azure.EnvAuthorityHost, azure.ParseAuthorityHost)
	c.binding = exchange.Binding{
		TokenProxy: podVariable(c, getenv, azure.EnvTokenProxy, azure.ParseTokenProxy),
		SNIName:    getenv(azure.EnvSNIName),
		CAFile:     getenv(azure.EnvCAFile),
		CAData:     getenv(azure.EnvCAData),
	}
	c.httpProxy = httpproxy.Config{
		HTTPSProxy: cmp.Or(getenv("HTTPS_PROXY"), getenv("https_proxy")),
		NoProxy:    cmp.Or(getenv("NO_PROXY"), getenv("no_proxy")),
	}
}

// podVariable parses an optional environment variable of the pod. It stores an error in
// c.invalid.
func podVariable[T any](c *config, getenv func(string) string, name string, parse func(string) (T, error)) T {
	value, err := flagenv.Optional(parse)(getenv(name))
	if err != nil {
		c.invalid[name] = err
	}
	return value
}

func (c *config) checkPodEnvironment() error {
	for _, name := range []string{azure.EnvTenantID, azure.EnvClientID, azure.EnvAuthorityHost, azure.EnvTokenProxy} {
		if err := c.invalid[name]; err != nil {
			return configErrorf("%s %w", name, err)
		}
	}
	var missing []string
	if c.tenantID == "" {
		missing = append(missing, azure.EnvTenantID+" is required: it names the Entra tenant")
	}
	if c.federatedTokenFile == "" {
		missing = append(missing, azure.EnvFederatedTokenFile+" is required: it names the projected service-account token")
	}
	if len(missing) > 0 {
		return configErrorf("%s (set by azure-workload-identity's webhook on pods labelled azure.workload.identity/use=true)", strings.Join(missing, "; "))
	}
	if err := c.checkHTTPProxy(); err != nil {
		return err
	}
	return c.checkPrefetch()
}

func (c *config) checkHTTPProxy() error {
	if _, err := flagenv.Optional(azure.ParseHTTPProxy)(c.httpProxy.HTTPSProxy); err != nil {
		return configErrorf("HTTPS_PROXY %w", err)
	}
	return nil
}

func (c *config) checkPrefetch() error {
	if len(c.prefetch) > azure.MaxPrefetch {
		return configErrorf("--prefetch (PROXY_PREFETCH) lists %d resources: must be at most %d", len(c.prefetch), azure.MaxPrefetch)
	}
	if c.defaultClientID == "" && len(c.prefetch) > 0 {
		return configErrorf("--prefetch requires %s: the prefetched tokens are for that identity", azure.EnvClientID)
	}
	return nil
}

// exchangeConfig returns the configuration of package exchange, for the proxy and for
// `proxy check`.
func (c *config) exchangeConfig() exchange.Config {
	proxyFor := c.httpProxy.ProxyFunc()
	return exchange.Config{
		TenantID:           c.tenantID,
		AuthorityHost:      c.authorityHost,
		FederatedTokenFile: c.federatedTokenFile,
		CAFile:             c.caFile,
		Binding:            c.binding,
		Proxy:              func(r *http.Request) (*url.URL, error) { return proxyFor(r.URL) },
	}
}

// prefetched returns the token requests of --prefetch.
func (c *config) prefetched() []tokens.Request {
	var requests []tokens.Request
	for _, resource := range c.prefetch {
		requests = append(requests, tokens.Request{ClientID: c.defaultClientID, Resource: resource})
	}
	return requests
}

// configuredClientIDs returns all client IDs in the configuration, the default one first.
func (c *config) configuredClientIDs() []azure.ClientID {
	var ids []azure.ClientID
	if c.defaultClientID != "" {
		ids = append(ids, c.defaultClientID)
	}
	ids = append(ids, c.allowedClientIDs...)
	for _, identity := range c.identityList {
		ids = append(ids, identity.ClientID)
	}
	return ids
}

// handlerConfig returns the configuration of package imds.
func (c *config) handlerConfig() imds.Config {
	cfg := imds.Config{
		TenantID:         c.tenantID,
		DefaultClientID:  c.defaultClientID,
		Identities:       c.identities,
		AllowedClientIDs: c.allowedClientIDs,
		AppServiceHeader: c.appServiceHeader,
		StrictAPIVersion: c.strictAPIVersion,
		Instance:         c.instance,
		LearnSilence:     c.imdsPassthrough == passthroughAuto,
		Version:          version,
	}
	if c.imdsPassthrough != passthroughOff {
		cfg.Passthrough = c.imdsAddress
	}
	return cfg
}

// checkHandler reads the file of instance metadata, and returns an error if package imds would
// refuse the configuration.
func (c *config) checkHandler() error {
	if err := c.readInstance(); err != nil {
		return err
	}
	if err := c.handlerConfig().Validate(); err != nil {
		return configError{err}
	}
	return nil
}
