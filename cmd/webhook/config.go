package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"imds-oidc-proxy/internal/inject"
	"imds-oidc-proxy/internal/injectflags"
	"imds-oidc-proxy/internal/logging"
)

// config is everything that the flags and the environment say, parsed and
// checked as far as that takes no look outside the process.
type config struct {
	injection injectflags.Flags
	inject    inject.Config // made of injection; PostStart is decided while running

	nativeSidecar string

	address        string
	healthAddress  string
	metricsAddress string
	tlsMinVersion  string
	drain          time.Duration

	certificates certificateFlags

	kubeconfig  string
	logging     logging.Config
	showVersion bool
}

// certificateFlags say where the webhook's certificate comes from.
type certificateFlags struct {
	mode          string
	dir           string
	namespace     string
	secret        string
	service       string
	configuration string
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
	defaultAddress        = ":9443"
	defaultHealthAddress  = ":8081"
	defaultMetricsAddress = ":8080"
	defaultCertDir        = "/certs"

	// defaultDrain is how long the API server may go on sending requests here after
	// the signal to end, until every node knows that this replica is out of the
	// Service.
	defaultDrain = 5 * time.Second
	// maxDrain leaves time to end within a pod's usual 30 s.
	maxDrain = 20 * time.Second
)

// parseConfig reads the flags, then for each flag not given its environment twin.
// The error names the flag to change. Help goes to stdout, and is pflag.ErrHelp.
func parseConfig(args []string, getenv func(string) string, stdout io.Writer) (config, error) {
	var cfg config
	flags := newFlags(&cfg)
	flags.SetOutput(stdout)
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			return cfg, err
		}
		return cfg, fmt.Errorf("%w (see webhook --help)", err)
	}
	if flags.NArg() > 0 {
		return cfg, fmt.Errorf("unexpected argument %q: webhook takes flags only (see webhook --help)", flags.Arg(0))
	}
	if err := applyEnvironment(flags, getenv); err != nil || cfg.showVersion {
		return cfg, err
	}
	var err error
	if cfg.inject, err = cfg.injection.Config(); err != nil {
		return cfg, err
	}
	return cfg, cfg.check()
}

// newFlags defines every flag. Its usage texts are what --help shows.
func newFlags(cfg *config) *pflag.FlagSet {
	flags := pflag.NewFlagSet("webhook", pflag.ContinueOnError)
	flags.SortFlags = false
	cfg.injection.Named = bothNames
	cfg.injection.AddFlags(flags)
	flags.StringVar(&cfg.nativeSidecar, "native-sidecar", sidecarAuto,
		"auto, on or off: run the proxy as a sidecar among the init containers, which takes Kubernetes 1.29; auto asks the API server for its version")
	flags.StringVar(&cfg.address, "address", defaultAddress, "HOST:PORT or :PORT at which the API server finds the webhook")
	flags.StringVar(&cfg.healthAddress, "health-address", defaultHealthAddress, "HOST:PORT or :PORT of /healthz and /readyz")
	flags.StringVar(&cfg.metricsAddress, "metrics-address", defaultMetricsAddress, "HOST:PORT or :PORT of /metrics; empty means nowhere")
	flags.StringVar(&cfg.tlsMinVersion, "tls-min-version", "1.3", "1.2 or 1.3")
	flags.DurationVar(&cfg.drain, "drain", defaultDrain, "how long to go on answering after the signal to end, until the Service sends no more requests here")
	cfg.certificates.addFlags(flags)
	flags.StringVar(&cfg.kubeconfig, "kubeconfig", "", "file that says where the API server is; empty means that of the pod's cluster")
	cfg.logging.AddFlags(flags)
	flags.BoolVar(&cfg.showVersion, "version", false, "print the version and exit")
	flags.Usage = func() {
		fmt.Fprintf(flags.Output(), usageHead, flags.FlagUsages())
	}
	return flags
}

func (c *certificateFlags) addFlags(flags *pflag.FlagSet) {
	flags.StringVar(&c.mode, "cert-mode", certRotated,
		"rotated: make a certificate, renew it and tell the API server; mounted: somebody else does, such as cert-manager, and it is in --cert-dir")
	flags.StringVar(&c.dir, "cert-dir", defaultCertDir,
		"directory with tls.crt and tls.key, read again when they change; rotated: where it may write tls.crt, never the key")
	flags.StringVar(&c.namespace, "namespace", "", "rotated: the namespace of --service-name and --cert-secret")
	flags.StringVar(&c.secret, "cert-secret", "imds-oidc-proxy-webhook-cert", "rotated: the Secret that holds the certificate; it has to exist")
	flags.StringVar(&c.service, "service-name", "imds-oidc-proxy-webhook", "rotated: the Service that the certificate is for")
	flags.StringVar(&c.configuration, "webhook-configuration", "imds-oidc-proxy-webhook", "rotated: the MutatingWebhookConfiguration to write the authority's certificate into")
}

const usageHead = `webhook injects the proxy and its redirect into pods with the label
azure.workload.identity/use=true, when the API server asks it about them.

Flags, each with an environment twin (--tenant-id: WEBHOOK_TENANT_ID):

%s
Exit status: 0 done, 1 could not start or go on, 2 a flag or variable cannot be right.
`

// environmentTwin is the variable that stands in for a flag that is not given.
func environmentTwin(flag string) string {
	return "WEBHOOK_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

func applyEnvironment(flags *pflag.FlagSet, getenv func(string) string) error {
	var err error
	flags.VisitAll(func(f *pflag.Flag) {
		twin := environmentTwin(f.Name)
		value := getenv(twin)
		if err != nil || f.Changed || value == "" || f.Name == "version" || f.Name == "help" {
			return
		}
		if setErr := flags.Set(f.Name, value); setErr != nil {
			err = fmt.Errorf("%s=%q: %w (it stands for --%s)", twin, value, errors.Unwrap(setErr), f.Name)
		}
	})
	return err
}

// flagErrorf is an error about a flag, by both its names.
func flagErrorf(flag, value, format string, args ...any) error {
	return fmt.Errorf("%s %q: %w", bothNames(flag), value, fmt.Errorf(format, args...))
}

func bothNames(flag string) string { return fmt.Sprintf("--%s (%s)", flag, environmentTwin(flag)) }

func (c *config) check() error {
	if c.nativeSidecar != sidecarAuto && c.nativeSidecar != sidecarOn && c.nativeSidecar != sidecarOff {
		return flagErrorf("native-sidecar", c.nativeSidecar, "say auto, on or off")
	}
	for _, a := range []struct {
		flag, value string
		optional    bool
	}{{"address", c.address, false}, {"health-address", c.healthAddress, false}, {"metrics-address", c.metricsAddress, true}} {
		if err := checkAddress(a.value); err != nil && (a.value != "" || !a.optional) {
			return flagErrorf(a.flag, a.value, "%w", err)
		}
	}
	if _, known := tlsVersions[c.tlsMinVersion]; !known {
		return flagErrorf("tls-min-version", c.tlsMinVersion, "say 1.2 or 1.3")
	}
	if c.drain < 0 || c.drain > maxDrain {
		return flagErrorf("drain", c.drain.String(), "say a time of up to %s, such as 5s", maxDrain)
	}
	return c.certificates.check()
}

func (c *certificateFlags) check() error {
	if c.mode != certRotated && c.mode != certMounted {
		return flagErrorf("cert-mode", c.mode, "say rotated or mounted")
	}
	if c.dir == "" {
		return flagErrorf("cert-dir", c.dir, "say a directory")
	}
	if c.mode == certMounted {
		return nil
	}
	for _, name := range []struct{ flag, value string }{
		{"namespace", c.namespace}, {"cert-secret", c.secret}, {"service-name", c.service}, {"webhook-configuration", c.configuration},
	} {
		if err := checkName(name.value); err != nil {
			return flagErrorf(name.flag, name.value, "%w (--cert-mode=rotated needs it)", err)
		}
	}
	return nil
}
