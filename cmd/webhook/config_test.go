package main

import (
	"io"
	"os"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"imds-oidc-proxy/internal/inject"
)

// required are the required flags.
var required = []string{
	"--proxy-image=registry.example.test/imds-oidc-proxy@sha256:0000000000000000000000000000000000000000000000000000000000000001",
	"--proxy-init-image=registry.example.test/imds-oidc-proxy-init:v0.1.0",
	"--namespace=imds-oidc-proxy",
}

func none(string) string { return "" }

func parse(t *testing.T, args ...string) config {
	t.Helper()
	cfg, err := parseConfig(append(append([]string{}, required...), args...), none, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func TestDefaults(t *testing.T) {
	cfg := parse(t)
	if cfg.address != ":9443" || cfg.tlsMinVersion != "1.3" || cfg.certificates.mode != certRotated || cfg.nativeSidecar != sidecarAuto {
		t.Errorf("got %+v", cfg)
	}
	if cfg.inject.Cloud != "AzurePublicCloud" || cfg.inject.TokenEndpoint != (inject.TokenEndpoint{}) || cfg.inject.ProxyResources != nil {
		t.Errorf("got %+v", cfg.inject)
	}
}

// TestFlagsReachInjection checks the field of inject.Config for each flag.
func TestFlagsReachInjection(t *testing.T) {
	const pem = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
	binding := []string{"--token-endpoint-annotation-suffix=identity-binding", "--token-endpoint-audience=api://binding", "--token-endpoint-proxy=https://binding.example.test"}
	for _, test := range []struct {
		name  string
		args  []string
		check func(config) bool
	}{
		{"images", nil, func(c config) bool {
			return strings.HasSuffix(c.inject.ProxyImage, "1") && strings.HasSuffix(c.inject.ProxyInitImage, ":v0.1.0")
		}},
		{"tenant", []string{"--tenant-id=" + testTenantID}, func(c config) bool { return c.inject.TenantID == testTenantID }},
		{"cloud", []string{"--cloud=AZUREUSGOVERNMENTCLOUD"}, func(c config) bool { return c.inject.Cloud == "AZUREUSGOVERNMENTCLOUD" }},
		{"authority", []string{"--authority-host=https://login.example.test"}, func(c config) bool {
			return c.inject.AuthorityHost == "https://login.example.test/"
		}},
		{"audience", []string{"--audience=api://other"}, func(c config) bool { return c.inject.Audience == "api://other" }},
		{"log level", []string{"--proxy-log-level=debug"}, func(c config) bool { return c.inject.LogLevel == "debug" }},
		{"resources", []string{`--proxy-resources={"limits":{"memory":"96Mi"}}`, `--proxy-init-resources={"requests":{"cpu":"1m"}}`}, func(c config) bool {
			return c.inject.ProxyResources.Limits[corev1.ResourceMemory] == resource.MustParse("96Mi") &&
				c.inject.ProxyInitResources.Requests[corev1.ResourceCPU] == resource.MustParse("1m")
		}},
		{"identity bindings", append(binding, "--token-endpoint-sni-name=sni.example.test", "--token-endpoint-ca-config-map=binding-ca"), func(c config) bool {
			e := c.inject.TokenEndpoint
			return e.AnnotationSuffix == "identity-binding" && e.Audience == "api://binding" && e.TokenProxy == "https://binding.example.test" &&
				e.SNIName == "sni.example.test" && e.CAConfigMap == "binding-ca" && e.ClusterTrustBundleLabels == nil
		}},
		{"CA data", append(binding, "--token-endpoint-ca-data="+pem), func(c config) bool { return c.inject.TokenEndpoint.CAData == pem }},
		{"bundle by labels", append(binding, "--token-endpoint-trust-bundle-signer=example.test/signer", "--token-endpoint-trust-bundle-labels=a=b"), func(c config) bool {
			return c.inject.TokenEndpoint.ClusterTrustBundleSigner == "example.test/signer" && c.inject.TokenEndpoint.ClusterTrustBundleLabels.MatchLabels["a"] == "b"
		}},
		{"all bundles", append(binding, "--token-endpoint-trust-bundle-signer=example.test/signer", "--token-endpoint-trust-bundle-labels=*"), func(c config) bool {
			l := c.inject.TokenEndpoint.ClusterTrustBundleLabels
			return l != nil && len(l.MatchLabels)+len(l.MatchExpressions) == 0
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if cfg := parse(t, test.args...); !test.check(cfg) {
				t.Errorf("got %+v, %+v", cfg.inject, cfg.inject.TokenEndpoint)
			}
		})
	}
}

// TestEnvironment checks that a flag takes precedence over its variable, and the variable over the
// default, and that a variable for a Service is ignored.
func TestEnvironment(t *testing.T) {
	getenv := func(name string) string {
		return map[string]string{"WEBHOOK_DRAIN": "7s", "WEBHOOK_LOG_LEVEL": "debug", "WEBHOOK_VERSION": "true", "WEBHOOK_TENANT_ID": testTenantID, "WEBHOOK_ADDRESS": "tcp://10.0.0.7:80"}[name]
	}
	cfg, err := parseConfig(append(required, "--tenant-id=tenant.example.test"), getenv, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if cfg.drain != 7*time.Second || cfg.logging.Level != "debug" || cfg.showVersion || cfg.inject.TenantID != "tenant.example.test" || cfg.address != ":9443" {
		t.Errorf("got %+v", cfg)
	}
}

// TestRefusals checks that each error is one line that names the flag to change.
func TestRefusals(t *testing.T) {
	for _, test := range []struct{ arg, want string }{
		{"--proxy-image=", "--proxy-image "},
		{"--proxy-image=a b", "--proxy-image "},
		{"--proxy-init-image=", "--proxy-init-image "},
		{"--tenant-id=a b", "--tenant-id "},
		{"--cloud=AzureMoonCloud", "--cloud (WEBHOOK_CLOUD)"},
		{"--authority-host=http://login.example.test", "--authority-host "},
		{"--proxy-log-level=loud", "--proxy-log-level "},
		{"--proxy-resources={\"limit\":{}}", "--proxy-resources (WEBHOOK_PROXY_RESOURCES)"},
		{"--proxy-init-resources=[", "--proxy-init-resources (WEBHOOK_PROXY_INIT_RESOURCES)"},
		{"--proxy-resources={\"limits\":{\"memory\":\"much\"}}", "--proxy-resources"},
		{"--token-endpoint-proxy=https://binding.example.test", "--token-endpoint-annotation-suffix (WEBHOOK_"},
		{"--token-endpoint-annotation-suffix=binding", "--token-endpoint-audience "},
		{"--token-endpoint-annotation-suffix=a/b", "--token-endpoint-annotation-suffix "},
		{"--native-sidecar=maybe", "--native-sidecar (WEBHOOK_NATIVE_SIDECAR)"},
		{"--address=9443", "--address (WEBHOOK_ADDRESS)"},
		{"--address=", "--address (WEBHOOK_ADDRESS)"},
		{"--health-address=:99999", "--health-address"},
		{"--metrics-address=here", "--metrics-address"},
		{"--tls-min-version=1.1", "--tls-min-version (WEBHOOK_TLS_MIN_VERSION)"},
		{"--drain=1h", "--drain (WEBHOOK_DRAIN)"},
		{"--drain=-1s", "--drain (WEBHOOK_DRAIN)"},
		{"--drain=soon", "--drain"},
		{"--cert-mode=magic", "--cert-mode (WEBHOOK_CERT_MODE)"},
		{"--cert-dir=", "--cert-dir (WEBHOOK_CERT_DIR)"},
		{"--namespace=", "--namespace (WEBHOOK_NAMESPACE)"},
		{"--cert-secret=A", "--cert-secret (WEBHOOK_CERT_SECRET)"},
		{"--service-name=", "--service-name (WEBHOOK_SERVICE_NAME)"},
		{"--webhook-configuration=", "--webhook-configuration (WEBHOOK_WEBHOOK_CONFIGURATION)"},
		{"--log-format=xml", "--log-format"},
		{"--unknown", "--unknown"},
		{"argument", `"argument"`},
		{"--proxy-imge=x", "unknown flag: --proxy-imge (did you mean --proxy-image?)"},
	} {
		t.Run(test.arg, func(t *testing.T) {
			var stdout, stderr strings.Builder
			code := run(t.Context(), append(append([]string{}, required...), test.arg), none, &stdout, &stderr)
			got := stderr.String()
			if code != exitUsage || strings.Count(got, "\n") != 1 || !strings.HasPrefix(got, "webhook: ") || !strings.Contains(got, test.want) {
				t.Errorf("exit %d, %q; want one line with %q", code, got, test.want)
			}
		})
	}
}

// TestRequired checks that all missing flags are named at once.
func TestRequired(t *testing.T) {
	for _, test := range []struct {
		args []string
		want string
	}{
		{nil, "--proxy-image (WEBHOOK_PROXY_IMAGE) and --proxy-init-image (WEBHOOK_PROXY_INIT_IMAGE) are required, for example registry.example.test/imds-oidc-proxy:v1.0.0; " +
			"--namespace (WEBHOOK_NAMESPACE) is required with --cert-mode=rotated"},
		{[]string{"--cert-mode=mounted", "--proxy-image=p:1", "--cert-dir=", "--token-endpoint-sni-name=s"},
			"--proxy-init-image (WEBHOOK_PROXY_INIT_IMAGE) is required, for example registry.example.test/imds-oidc-proxy:v1.0.0; " +
				"--token-endpoint-annotation-suffix (WEBHOOK_TOKEN_ENDPOINT_ANNOTATION_SUFFIX), --token-endpoint-audience (WEBHOOK_TOKEN_ENDPOINT_AUDIENCE) and " +
				"--token-endpoint-proxy (WEBHOOK_TOKEN_ENDPOINT_PROXY) are required with the other --token-endpoint flags; --cert-dir (WEBHOOK_CERT_DIR) is required"},
	} {
		if _, err := parseConfig(test.args, none, io.Discard); err == nil || err.Error() != test.want {
			t.Errorf("%q: got %v, want %s", test.args, err, test.want)
		}
	}
}

func TestMountedNeedsNoNames(t *testing.T) {
	if _, err := parseConfig(append(required, "--cert-mode=mounted", "--namespace="), none, io.Discard); err != nil {
		t.Error(err)
	}
}

func TestHelpAndVersion(t *testing.T) {
	for _, arg := range []string{"--help", "--version"} {
		var stdout strings.Builder
		if code := run(t.Context(), []string{arg}, none, &stdout, os.Stderr); code != exitOK || stdout.Len() == 0 {
			t.Errorf("%s: exit %d, %q", arg, code, stdout.String())
		}
	}
}
