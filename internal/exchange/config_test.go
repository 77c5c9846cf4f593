package exchange_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"imds-oidc-proxy/internal/exchange"
)

// Each error names the flag or environment variable to change, and quotes no secret.
func TestNewRefusesInvalidConfigurations(t *testing.T) {
	notPEM := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(notPEM, []byte(secret), 0o600); err != nil {
		t.Fatal(err)
	}
	bound := func(b exchange.Binding) func(*exchange.Config) {
		return func(c *exchange.Config) { c.Binding = b }
	}
	const proxy = "https://binding.example.test"
	for _, c := range []struct {
		name   string
		change func(*exchange.Config)
		want   string
	}{
		{"no tenant", func(c *exchange.Config) { c.TenantID = "" }, "AZURE_TENANT_ID"},
		{"no token file", func(c *exchange.Config) { c.FederatedTokenFile = "" }, "AZURE_FEDERATED_TOKEN_FILE"},
		{"CA file missing", func(c *exchange.Config) { c.CAFile = notPEM + "x" }, "--ca-file"},
		{"CA file without a certificate", func(c *exchange.Config) { c.CAFile = notPEM }, "--ca-file"},
		{"SNI without a proxy", bound(exchange.Binding{SNIName: "x"}), "AZURE_KUBERNETES_TOKEN_PROXY"},
		{"CA file without a proxy", bound(exchange.Binding{CAFile: "x"}), "AZURE_KUBERNETES_TOKEN_PROXY"},
		{"CA data without a proxy", bound(exchange.Binding{CAData: "x"}), "AZURE_KUBERNETES_TOKEN_PROXY"},
		{"two CAs", bound(exchange.Binding{TokenProxy: proxy, CAFile: notPEM, CAData: "y"}), "AZURE_KUBERNETES_CA_FILE and AZURE_KUBERNETES_CA_DATA"},
		{"CA file of the proxy missing", bound(exchange.Binding{TokenProxy: proxy, CAFile: notPEM + "x"}), "AZURE_KUBERNETES_CA_FILE"},
		{"CA file of the proxy without a certificate", bound(exchange.Binding{TokenProxy: proxy, CAFile: notPEM}), "AZURE_KUBERNETES_CA_FILE"},
		{"CA data without a certificate", bound(exchange.Binding{TokenProxy: proxy, CAData: secret}), "AZURE_KUBERNETES_CA_DATA"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := exchange.Config{TenantID: "example.test", FederatedTokenFile: "/token"}
			if _, err := exchange.New(cfg); err != nil {
				t.Fatalf("before the change: %v", err)
			}
			c.change(&cfg)
			s, err := exchange.New(cfg)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got error %v, want one with %q", err, c.want)
			}
			if s != nil {
				t.Error("got a service with the error")
			}
			if err != nil && (strings.Contains(err.Error(), secret) || strings.Contains(err.Error(), "\n")) {
				t.Errorf("the error quotes a secret, or is not one line: %v", err)
			}
		})
	}
}
