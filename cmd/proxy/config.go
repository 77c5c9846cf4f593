package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/net/http/httpproxy"

	"imds-oidc-proxy/internal/exchange"
	"imds-oidc-proxy/internal/imds"
	"imds-oidc-proxy/internal/logging"
)

// config is everything that the flags and the environment say, parsed and checked. What
// only a look outside the process can tell, package exchange checks.
type config struct {
	port         int
	adminAddress string
	log          logging.Config
	logAll       bool
	probe        bool
	probeTimeout time.Duration
	showVersion  bool

	identities       []string
	allowedClientIDs []string
	strictAPIVersion bool
	imdsPassthrough  string
	imdsAddress      string
	prefetch         []string
	caFile           string

	defaultClientID    string
	tenantID           string
	federatedTokenFile string
	authorityHost      string
	binding            exchange.Binding
	httpProxy          httpproxy.Config
}

// Environment variables without a flag: the pod's identity, as the webhook of
// azure-workload-identity injects it.
const (
	envClientID           = "AZURE_CLIENT_ID"
	envTenantID           = "AZURE_TENANT_ID"
	envFederatedTokenFile = "AZURE_FEDERATED_TOKEN_FILE"
	envAuthorityHost      = "AZURE_AUTHORITY_HOST"

	envKubernetesTokenProxy = "AZURE_KUBERNETES_TOKEN_PROXY"
	envKubernetesSNIName    = "AZURE_KUBERNETES_SNI_NAME"
	envKubernetesCAFile     = "AZURE_KUBERNETES_CA_FILE"
	envKubernetesCAData     = "AZURE_KUBERNETES_CA_DATA"
)

const (
	defaultPort = 8000
	// defaultProbeTimeout outlasts a slow start, and stays below the 30 s that a
	// pod is commonly given to become ready or to end.
	defaultProbeTimeout = 25 * time.Second
	defaultIMDSAddress  = "http://169.254.169.254"

	allowedClientIDsFlag = "allowed-client-ids"

	passthroughOn  = "on"
	passthroughOff = "off"
)

// errConfig marks an error that a change of flags or environment mends.
var errConfig = errors.New("configuration")

// configError is an errConfig whose text is only its own.
type configError struct{ error }

func (configError) Is(target error) bool { return target == errConfig }

func configErrorf(format string, args ...any) error {
	return configError{fmt.Errorf(format, args...)}
}

// parseConfig reads the flags, then for each flag not given its environment
// twin, then the identity that the pod's environment names. The error names the
// flag or variable to change. Help goes to stdout, and is pflag.ErrHelp.
func parseConfig(args []string, getenv func(string) string, stdout io.Writer) (config, error) {
	var cfg config
	flags := newFlags(&cfg)
	flags.SetOutput(stdout)
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			return cfg, err
		}
		return cfg, configErrorf("%w (see proxy --help)", err)
	}
	if flags.NArg() > 0 {
		return cfg, configErrorf("unexpected argument %q: proxy takes flags only (see proxy --help)", flags.Arg(0))
	}
	if err := applyEnvironment(flags, getenv); err != nil {
		return cfg, err
	}
	if err := cfg.checkGiven(flags); err != nil {
		return cfg, err
	}
	if err := cfg.checkFlags(); err != nil || cfg.showVersion || cfg.probe {
		return cfg, err
	}
	cfg.readPodEnvironment(getenv)
	if err := cfg.checkPodEnvironment(); err != nil {
		return cfg, err
	}
	return cfg, cfg.checkHandler()
}

// checkGiven refuses a limit that is given and says nothing: read as no limit, it would
// open what its author meant to close. A variable that is empty is not given, as
// everywhere.
func (cfg *config) checkGiven(flags *pflag.FlagSet) error {
	if flags.Changed(allowedClientIDsFlag) && len(cfg.allowedClientIDs) == 0 {
		return configErrorf("--%s is empty: name the client IDs that may be asked for, or leave it out to allow any", allowedClientIDsFlag)
	}
	return nil
}

// newFlags defines every flag. Its usage texts are what --help shows.
func newFlags(cfg *config) *pflag.FlagSet {
	flags := pflag.NewFlagSet("proxy", pflag.ContinueOnError)
	flags.SortFlags = false
	cfg.port = defaultPort
	flags.Var((*port)(&cfg.port), "proxy-port", "port to listen on, at 127.0.0.1")
	flags.StringVar(&cfg.adminAddress, "admin-address", "",
		"HOST:PORT or :PORT at which the kubelet and Prometheus find /readyz, /livez, /metrics and /debug/clients, never tokens; empty means nowhere")
	cfg.log.AddFlags(flags)
	flags.BoolVar(&cfg.logAll, "log-all-requests", false,
		"a line for every request, however many come: a client in a loop can then fill the disk")
	flags.BoolVar(&cfg.probe, "probe", false, "ask the proxy at --proxy-port whether it is ready, and exit 0 when it is")
	flags.DurationVar(&cfg.probeTimeout, "probe-timeout", defaultProbeTimeout, "how long --probe keeps asking")
	flags.StringSliceVar(&cfg.identities, "identity", nil,
		"SELECTOR=CLIENT_ID: requests by this object ID or ARM resource ID get this client ID's token; repeatable")
	flags.StringSliceVar(&cfg.allowedClientIDs, allowedClientIDsFlag, nil,
		"client IDs that may be asked for; not given means any")
	flags.BoolVar(&cfg.strictAPIVersion, "strict-api-version", false, "refuse token requests without api-version, as IMDS does")
	flags.StringVar(&cfg.imdsPassthrough, "imds-passthrough", passthroughOn,
		"on or off: forward instance metadata, never identity, to the real IMDS")
	flags.StringVar(&cfg.imdsAddress, "imds-address", defaultIMDSAddress, "where the real IMDS is; for tests")
	flags.StringSliceVar(&cfg.prefetch, "prefetch", nil,
		"resource to have a token ready for, as "+envClientID+", before it is asked for; repeatable")
	flags.StringVar(&cfg.caFile, "ca-file", "", "PEM file of certificate authorities to trust for Entra beside the system's")
	flags.BoolVar(&cfg.showVersion, "version", false, "print the version and exit")
	flags.Usage = func() {
		fmt.Fprintf(flags.Output(), usageHead, flags.FlagUsages(), exitHelp(exits))
	}
	return flags
}

const usageHead = `proxy answers managed-identity requests (IMDS) with Entra tokens for the pod's
federated token. See the README for the whole picture.

Flags, each but --probe and --version with an environment twin (--log-level:
PROXY_LOG_LEVEL, --proxy-port: PROXY_PORT); lists are separated by commas there:

%s
Environment, as azure-workload-identity's webhook injects it:

  AZURE_TENANT_ID             needed: the tenant to ask for tokens
  AZURE_FEDERATED_TOKEN_FILE  needed: the projected service-account token
  AZURE_CLIENT_ID             the identity of requests that name none
  AZURE_AUTHORITY_HOST        the Entra endpoint; default https://login.microsoftonline.com/
  AZURE_KUBERNETES_TOKEN_PROXY, _SNI_NAME, _CA_FILE, _CA_DATA   identity bindings
  HTTPS_PROXY, NO_PROXY       for the way to Entra only
  AZURE_POD_IDENTITY_AUTHORITY_HOST   for proxy check: this pod has no redirect

proxy check tests each step to a token and says what is wrong: proxy check --help.

Exit codes:
%s
A SIGTERM lets requests in flight finish; a second one ends the process at once, with 1.
`

// port is a port, written as proxy-init takes it: pflag would read 010000 as octal, and
// the two programs would be at different ports.
type port int

var errPort = errors.New("a port is 1 to 65535")

// Set implements pflag.Value.
func (p *port) Set(s string) error {
	n, err := parsePort(s)
	if err == nil {
		*p = port(n)
	}
	return err
}

func parsePort(s string) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, errPort
	}
	return n, nil
}

func (p *port) String() string { return strconv.Itoa(int(*p)) }

// Type is what pflag calls the kind of value.
func (*port) Type() string { return "int" }

// environmentTwin is the variable that stands in for a flag that is not given.
func environmentTwin(flag string) string {
	name := strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
	return "PROXY_" + strings.TrimPrefix(name, "PROXY_")
}

// flagOnly names the flags that choose what this one run does; in a variable
// they would turn every proxy of a pod into a probe.
func flagOnly(flag string) bool {
	return flag == "probe" || flag == "version" || flag == "help"
}

// serviceLink reports whether a variable is one that Kubernetes makes: a Service by the
// name of proxy gives PROXY_PORT=tcp://10.0.0.7:80 to the pods of its namespace.
func serviceLink(value string) bool {
	return strings.HasPrefix(value, "tcp://") || strings.HasPrefix(value, "udp://") || strings.HasPrefix(value, "sctp://")
}

func applyEnvironment(flags *pflag.FlagSet, getenv func(string) string) error {
	var err error
	flags.VisitAll(func(f *pflag.Flag) {
		twin := environmentTwin(f.Name)
		value := getenv(twin)
		if err != nil || f.Changed || value == "" || flagOnly(f.Name) || serviceLink(value) {
			return
		}
		// pflag reads the first line of a list and drops the others without a word.
		if strings.ContainsAny(strings.TrimRight(value, "\r\n"), "\r\n") {
			err = configErrorf("%s=%q: it must be one line; lists are separated by commas", twin, value)
			return
		}
		if setErr := f.Value.Set(value); setErr != nil {
			err = configErrorf("%s=%q: %w (it stands for --%s)", twin, value, setErr, f.Name)
		}
	})
	return err
}

func (c *config) checkFlags() error {
	if err := checkAdminAddress(c.adminAddress); err != nil {
		return err
	}
	if c.probeTimeout <= 0 {
		return configErrorf("--probe-timeout (PROXY_PROBE_TIMEOUT) %s: say how long, such as 10s", c.probeTimeout)
	}
	for _, resource := range c.prefetch {
		if !imds.ValidResource(resource) {
			return configErrorf("--prefetch (PROXY_PREFETCH) %.200q: a resource is a URI such as https://vault.azure.net, or a GUID; no request for this one would be answered", resource)
		}
	}
	if c.imdsPassthrough != passthroughOn && c.imdsPassthrough != passthroughOff {
		return configErrorf("--imds-passthrough (PROXY_IMDS_PASSTHROUGH) %q: say on or off", c.imdsPassthrough)
	}
	return nil
}

func (c *config) readPodEnvironment(getenv func(string) string) {
	c.defaultClientID = getenv(envClientID)
	c.tenantID = getenv(envTenantID)
	c.federatedTokenFile = getenv(envFederatedTokenFile)
	c.authorityHost = getenv(envAuthorityHost)
	c.binding = exchange.Binding{
		TokenProxy: getenv(envKubernetesTokenProxy),
		SNIName:    getenv(envKubernetesSNIName),
		CAFile:     getenv(envKubernetesCAFile),
		CAData:     getenv(envKubernetesCAData),
	}
	c.httpProxy = httpproxy.Config{
		HTTPSProxy: cmp.Or(getenv("HTTPS_PROXY"), getenv("https_proxy")),
		NoProxy:    cmp.Or(getenv("NO_PROXY"), getenv("no_proxy")),
	}
}

func (c *config) checkPodEnvironment() error {
	const injected = "azure-workload-identity's webhook sets it on pods labelled azure.workload.identity/use=true"
	if c.tenantID == "" {
		return configErrorf("%s is not set: it names the Entra tenant (%s)", envTenantID, injected)
	}
	if c.federatedTokenFile == "" {
		return configErrorf("%s is not set and has no default: it names the projected service-account token (%s)", envFederatedTokenFile, injected)
	}
	if err := c.checkHTTPProxy(); err != nil {
		return err
	}
	return c.checkPrefetch()
}

// checkHTTPProxy refuses what is no proxy's URL: package httpproxy passes by one that it
// cannot parse, without a word, and the assertion would go where it should not. The value
// stays out of the error, since it may hold a password.
func (c *config) checkHTTPProxy() error {
	value := c.httpProxy.HTTPSProxy
	if value == "" {
		return nil
	}
	if !strings.Contains(value, "://") {
		value = "http://" + value // as package httpproxy reads it
	}
	u, err := url.Parse(value)
	if err != nil || u.Hostname() == "" || !slices.Contains([]string{"http", "https", "socks5", "socks5h"}, u.Scheme) {
		return configErrorf("HTTPS_PROXY is not the URL of a proxy: say http://HOST:PORT; what is special in a user or password is percent-encoded")
	}
	if _, err := parsePort(cmp.Or(u.Port(), "80")); err != nil {
		return configErrorf("HTTPS_PROXY names a port that is none: %w", err)
	}
	return nil
}

func (c *config) checkPrefetch() error {
	if c.defaultClientID == "" && len(c.prefetch) > 0 {
		return configErrorf("--prefetch needs %s: tokens are fetched ahead for that identity", envClientID)
	}
	return nil
}
