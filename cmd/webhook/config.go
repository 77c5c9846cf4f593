package main

import (
	"crypto/tls"
	"fmt"
	"io"
	"time"

	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/util/validation"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/flagenv"
	"imds-oidc-proxy/internal/inject"
	"imds-oidc-proxy/internal/logging"
)

// config is everything that the flags and the environment say, parsed and
// checked as far as that takes no look outside the process.
type config struct {
	inject inject.Config // PostStart is decided while running

	address, healthAddress, metricsAddress   string
	nativeSidecar, tlsMinVersion, kubeconfig string

	drain        time.Duration
	certificates certificateFlags
	logging      logging.Config
	showVersion  bool
}

// certificateFlags say where the webhook's certificate comes from.
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

// tlsVersions are the values of --tls-min-version. API servers speak 1.3 since
// Kubernetes 1.20 or so; 1.2 is for a proxy or an inspecting device between.
var tlsVersions = map[string]uint16{"1.2": tls.VersionTLS12, "1.3": tls.VersionTLS13}

const (
	defaultCertDir = "/certs"

	// defaultDrain is how long the API server may go on sending requests here after
	// the signal to end, until every node knows that this replica is out of the
	// Service.
	defaultDrain = 5 * time.Second
	// maxDrain leaves time to end within a pod's usual 30 s.
	maxDrain = 20 * time.Second
)

// parseConfig reads the flags, and the environment for those that are not given. The error
// names the flag to change. Help goes to stdout, and is pflag.ErrHelp.
func parseConfig(args []string, getenv func(string) string, stdout io.Writer) (config, error) {
	var cfg config
	flags := newFlags(&cfg)
	flags.Usage = func() { fmt.Fprintf(stdout, usageHead, flags.FlagUsages()) }
	if err := flags.Parse(args, getenv); err != nil || cfg.showVersion {
		return cfg, err
	}
	if err := cfg.inject.Validate(); err != nil {
		return cfg, flags.Named(err)
	}
	return cfg, flags.Named(cfg.check())
}

// newFlags defines every flag. Its usage texts are what --help shows.
func newFlags(cfg *config) *flagenv.Set {
	set := flagenv.New("webhook", variable)
	flags := set.FlagSet
	cfg.inject.AddFlags(set)
	cfg.nativeSidecar, cfg.tlsMinVersion = sidecarAuto, "1.3"
	cfg.address, cfg.healthAddress, cfg.metricsAddress = ":9443", ":8081", ":8080"
	flagenv.Var(flags, &cfg.nativeSidecar, "native-sidecar", flagenv.OneOf(sidecarAuto, sidecarOn, sidecarOff),
		"auto, on or off: run the proxy as a sidecar among the init containers, which takes Kubernetes 1.29; auto asks the API server for its version")
	flagenv.Var(flags, &cfg.address, "address", azure.ParseAddress, "`address` (HOST:PORT or :PORT) at which the API server finds the webhook")
	flagenv.Var(flags, &cfg.healthAddress, "health-address", azure.ParseAddress, "`address` of /healthz and /readyz")
	flagenv.Var(flags, &cfg.metricsAddress, "metrics-address", flagenv.Optional(azure.ParseAddress), "`address` of /metrics; empty means nowhere")
	flagenv.Var(flags, &cfg.tlsMinVersion, "tls-min-version", flagenv.OneOf("1.2", "1.3"), "1.2 or 1.3")
	flags.DurationVar(&cfg.drain, "drain", defaultDrain, "how long to go on answering after the signal to end, until the Service sends no more requests here")
	cfg.certificates.addFlags(flags)
	flags.StringVar(&cfg.kubeconfig, "kubeconfig", "", "file that says where the API server is; empty means that of the pod's cluster")
	cfg.logging.AddFlags(flags)
	flags.BoolVar(&cfg.showVersion, "version", false, "print the version and exit")
	return set
}

func (c *certificateFlags) addFlags(flags *pflag.FlagSet) {
	c.mode = certRotated
	flagenv.Var(flags, &c.mode, "cert-mode", flagenv.OneOf(certRotated, certMounted),
		"rotated: make a certificate, renew it and tell the API server; mounted: somebody else does, such as cert-manager, and it is in --cert-dir")
	flags.StringVar(&c.dir, "cert-dir", defaultCertDir,
		"directory with tls.crt and tls.key, read again when they change; rotated: where it may write tls.crt, never the key")
	flags.StringVar(&c.namespace, "namespace", "", "rotated: the namespace of --service-name and --cert-secret")
	flags.StringVar(&c.secret, "cert-secret", "imds-oidc-proxy-webhook-cert", "rotated: the Secret that holds the certificate; it has to exist")
	flags.StringVar(&c.service, "service-name", "imds-oidc-proxy-webhook", "rotated: the Service that the certificate is for")
	flags.StringVar(&c.configuration, "webhook-configuration", "imds-oidc-proxy-webhook", "rotated: the MutatingWebhookConfiguration to write the authority's certificate into")
}

const usageHead = `Usage: webhook [flags]

webhook injects the proxy and its redirect into pods with the label
azure.workload.identity/use=true, when the API server asks it about them.

Flags. Each but --version has an environment variable (--tenant-id has WEBHOOK_TENANT_ID):

%s
Exit status: 0 done, 1 could not start or go on, 2 a flag or variable cannot be right.
`

// variable names the environment variable of a flag.
var variable = flagenv.Prefix("WEBHOOK_")

// flagError is an error of what a flag names, such as a file.
func flagError(flag, value string, err error) error {
	return fmt.Errorf("--%s (%s) %q: %w", flag, variable(flag), value, err)
}

func (c *config) check() error {
	if c.drain < 0 || c.drain > maxDrain {
		return flagenv.Errorf("drain", "%q: must be between 0s and %s", c.drain, maxDrain)
	}
	return c.certificates.check()
}

func (c *certificateFlags) check() error {
	names := []struct{ flag, value string }{
		{"namespace", c.namespace}, {"cert-secret", c.secret}, {"service-name", c.service}, {"webhook-configuration", c.configuration},
	}
	if c.mode == certMounted {
		names = nil
	}
	var missing []string
	for _, name := range names {
		if name.value == "" {
			missing = append(missing, name.flag)
		} else if len(validation.IsDNS1123Subdomain(name.value)) > 0 {
			return flagenv.Errorf(name.flag, "%q: must be the name of a Kubernetes object: lower-case letters, digits, dots and hyphens", name.value)
		}
	}
	if c.dir == "" {
		return flagenv.Required([]string{"cert-dir"}, "")
	}
	return flagenv.Required(missing, " with --cert-mode="+certRotated)
}
