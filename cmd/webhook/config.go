package main

import (
	"crypto/tls"
	"fmt"
	"io"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/flagenv"
	"imds-oidc-proxy/internal/inject"
	"imds-oidc-proxy/internal/logging"
)

// config is the configuration from flags and environment variables. parseConfig validates it
// without access to files or to the network.
type config struct {
	inject inject.Config // without PostStart, which depends on the API server's version

	address, healthAddress, metricsAddress   string
	nativeSidecar, tlsMinVersion, kubeconfig string

	drain        time.Duration
	certificates certificateFlags
	logging      logging.Config
	showVersion  bool
}

// certificateFlags configures the source of the webhook's certificate.
type certificateFlags struct {
	mode, dir                                 string
	namespace, secret, service, configuration string
}

// The values of --cert-mode.
const (
	certRotated = "rotated"
	certMounted = "mounted"
)

// The values of --native-sidecar.
const (
	sidecarAuto = "auto"
	sidecarOn   = "on"
	sidecarOff  = "off"
)

// tlsVersions are the values of --tls-min-version. API servers support TLS 1.3 since about
// Kubernetes 1.20. 1.2 is for a TLS proxy between API server and webhook.
var tlsVersions = map[string]uint16{"1.2": tls.VersionTLS12, "1.3": tls.VersionTLS13}

const (
	defaultCertDir = "/certs"

	// defaultDrain is the default of --drain: after the signal, the API server may still
	// send requests until every node has removed this replica from the Service.
	defaultDrain = 5 * time.Second
	// maxDrain leaves time to exit within a pod's default grace period of 30 s.
	maxDrain = 20 * time.Second
)

// parseConfig parses the flags, and the variables of flags that are not given. The error names
// the flag to change. For --help it writes to stdout and returns pflag.ErrHelp.
func parseConfig(args []string, getenv func(string) string, stdout io.Writer) (config, error) {
	var cfg config
	flags := newFlags(&cfg)
	flags.Usage = func() { fmt.Fprintf(stdout, usage, flags.Usages()) }
	if err := flags.Parse(args, getenv); err != nil || cfg.showVersion {
		return cfg, err
	}
	return cfg, flags.Named(cfg.validate())
}

// newFlags defines all flags, with the usage texts of --help.
func newFlags(cfg *config) *flagenv.Set {
	set := flagenv.New("webhook", variable)
	flags := set.FlagSet
	cfg.inject.AddFlags(set)
	cfg.certificates.addFlags(set)
	cfg.nativeSidecar, cfg.tlsMinVersion = sidecarAuto, "1.3"
	cfg.address, cfg.healthAddress, cfg.metricsAddress = ":9443", ":8081", ":8080"
	set.Group("Server")
	flagenv.Var(flags, &cfg.address, "address", azure.ParseAddress, "`address` (HOST:PORT or :PORT) of the webhook, for the API server")
	flagenv.Var(flags, &cfg.healthAddress, "health-address", azure.ParseAddress, "`address` of /healthz and /readyz")
	flagenv.Var(flags, &cfg.metricsAddress, "metrics-address", flagenv.Optional(azure.ParseAddress), "`address` of /metrics; empty means none")
	flagenv.Var(flags, &cfg.tlsMinVersion, "tls-min-version", flagenv.OneOf("1.2", "1.3"), "minimum TLS `version`: 1.2 or 1.3")
	flags.DurationVar(&cfg.drain, "drain", defaultDrain, "how long to serve requests after SIGTERM, until the Service sends no more (0s to 20s)")
	set.Group("Kubernetes")
	flagenv.Var(flags, &cfg.nativeSidecar, "native-sidecar", flagenv.OneOf(sidecarAuto, sidecarOn, sidecarOff),
		"auto, on or off: inject the proxy as a native sidecar, which needs Kubernetes 1.29; auto checks the API server's version")
	flags.StringVar(&cfg.kubeconfig, "kubeconfig", "", "kubeconfig `file`; empty means the pod's own cluster")
	set.Group("Log")
	cfg.logging.AddFlags(flags)
	set.Group("Other")
	flags.BoolVar(&cfg.showVersion, "version", false, "print the version and exit")
	return set
}

func (c *certificateFlags) addFlags(set *flagenv.Set) {
	flags := set.FlagSet
	c.mode = certRotated
	set.Group(inject.GroupRequired)
	flags.StringVar(&c.namespace, "namespace", "", "`namespace` of --service-name and --cert-secret (required with --cert-mode=rotated)")
	set.Group("Certificate")
	flagenv.Var(flags, &c.mode, "cert-mode", flagenv.OneOf(certRotated, certMounted),
		"`mode`: rotated creates and renews the certificate and configures it in the API server; mounted uses the certificate in --cert-dir, for example of cert-manager")
	flags.StringVar(&c.dir, "cert-dir", defaultCertDir,
		"`directory` with tls.crt and tls.key, which are read again when they change; with --cert-mode=rotated tls.crt is written there, never the key")
	flags.StringVar(&c.secret, "cert-secret", "imds-oidc-proxy-webhook-cert", "`name` of the existing Secret for the certificate, with --cert-mode=rotated")
	flags.StringVar(&c.service, "service-name", "imds-oidc-proxy-webhook", "`name` of the webhook's Service, for the certificate, with --cert-mode=rotated")
	flags.StringVar(&c.configuration, "webhook-configuration", "imds-oidc-proxy-webhook", "`name` of the MutatingWebhookConfiguration that gets the certificate authority, with --cert-mode=rotated")
}

const usage = `Usage: webhook --proxy-image=IMAGE --proxy-init-image=IMAGE --namespace=NAMESPACE [flags]
       webhook ask

webhook is the admission webhook that injects the proxy and its redirect into pods with the label
azure.workload.identity/use=true. webhook ask, which the chart's test runs in such a pod, requests a
token from IMDS as an application does, and prints for which identity it is.

Each flag except --version has an environment variable: --tenant-id has WEBHOOK_TENANT_ID.
%s
Exit codes:
  0  success
  1  failed to start or to run
  2  invalid flag or environment variable
`

// variable returns the environment variable of a flag.
var variable = flagenv.Prefix("WEBHOOK_")

// flagError returns an error about the object of a flag, such as a file.
func flagError(flag, value string, err error) error {
	return fmt.Errorf("--%s (%s) %q: %w", flag, variable(flag), value, err)
}

func (c *config) validate() error {
	if err := flagenv.Join(c.inject.Required(), c.certificates.required()); err != nil {
		return err
	}
	if err := c.inject.Validate(); err != nil {
		return err
	}
	if c.drain < 0 || c.drain > maxDrain {
		return flagenv.Errorf("drain", "%q: must be between 0s and %s", c.drain, maxDrain)
	}
	return c.certificates.validate()
}

// names returns the flags with names of Kubernetes objects, which only certRotated uses.
func (c *certificateFlags) names() []struct{ flag, value string } {
	if c.mode == certMounted {
		return nil
	}
	return []struct{ flag, value string }{
		{"namespace", c.namespace}, {"cert-secret", c.secret}, {"service-name", c.service}, {"webhook-configuration", c.configuration},
	}
}

func (c *certificateFlags) required() error {
	var missing []string
	for _, name := range c.names() {
		if name.value == "" {
			missing = append(missing, name.flag)
		}
	}
	var dir error
	if c.dir == "" {
		dir = flagenv.Required([]string{"cert-dir"}, "")
	}
	return flagenv.Join(flagenv.Required(missing, " with --cert-mode="+certRotated), dir)
}

func (c *certificateFlags) validate() error {
	for _, name := range c.names() {
		if len(validation.IsDNS1123Subdomain(name.value)) > 0 {
			return flagenv.Errorf(name.flag, "%q: must be the name of a Kubernetes object: lower-case letters, digits, dots and hyphens", name.value)
		}
	}
	return nil
}
