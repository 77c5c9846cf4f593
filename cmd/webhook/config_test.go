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

// needed are the flags without which nothing works.
var needed = []string{
	"--proxy-image=registry.example.test/imds-oidc-proxy@sha256:0000000000000000000000000000000000000000000000000000000000000001",
	"--proxy-init-image=registry.example.test/imds-oidc-proxy-init:v0.1.0",
	"--namespace=imds-oidc-proxy",
}

func none(string) string { return "" }

func parse(t *testing.T, args ...string) config {
	t.Helper()
	cfg, err := parseConfig(append(append([]string{}, needed...), args...), none, io.Discard)
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

// TestFlagsReachInjection: each flag, in the field that it stands for.
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

// TestEnvironmentTwins: a flag wins over its variable, which wins over the default. A
// variable that is the link to a Service is not one.
func TestEnvironmentTwins(t *testing.T) {
	getenv := func(name string) string {
		return map[string]string{"WEBHOOK_DRAIN": "7s", "WEBHOOK_LOG_LEVEL": "debug", "WEBHOOK_VERSION": "true", "WEBHOOK_TENANT_ID": testTenantID, "WEBHOOK_ADDRESS": "tcp://10.0.0.7:80"}[name]
	}
	cfg, err := parseConfig(append(needed, "--tenant-id=tenant.example.test"), getenv, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if cfg.drain != 7*time.Second || cfg.logging.Level != "debug" || cfg.showVersion || cfg.inject.TenantID != "tenant.example.test" || cfg.address != ":9443" {
		t.Errorf("got %+v", cfg)
	}
}

// TestRefusals: one line each, which names the flag to change.
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
	} {
		t.Run(test.arg, func(t *testing.T) {
			var stdout, stderr strings.Builder
			code := run(t.Context(), append(append([]string{}, needed...), test.arg), none, &stdout, &stderr)
			got := stderr.String()
			if code != exitUsage || strings.Count(got, "\n") != 1 || !strings.HasPrefix(got, "webhook: ") || !strings.Contains(got, test.want) {
				t.Errorf("exit %d, %q; want one line with %q", code, got, test.want)
			}
		})
	}
}

func TestMountedNeedsNoNames(t *testing.T) {
	if _, err := parseConfig(append(needed, "--cert-mode=mounted", "--namespace="), none, io.Discard); err != nil {
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
