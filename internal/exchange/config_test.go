package exchange_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"imds-oidc-proxy/internal/exchange"
)

// Each error names the flag or variable that has to change, and quotes no secret.
func TestNewRefusesBadConfigurations(t *testing.T) {
	notPEM := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(notPEM, []byte(secret), 0o600); err != nil {
		t.Fatal(err)
	}
	proxied := func(b exchange.Binding) func(*exchange.Config) {
		return func(c *exchange.Config) { c.Binding = b }
	}
	authority := func(host string) func(*exchange.Config) {
		return func(c *exchange.Config) { c.AuthorityHost = host }
	}
	tenant := func(id string) func(*exchange.Config) {
		return func(c *exchange.Config) { c.TenantID = id }
	}
	const proxy = "https://binding.example.test"
	for _, c := range []struct {
		name   string
		change func(*exchange.Config)
		want   string
	}{
		{"no tenant", tenant(""), "AZURE_TENANT_ID"},
		{"the common tenant", tenant("Common"), "AZURE_TENANT_ID"},
		{"a path that MSAL takes for AD FS", tenant("adfs"), "AZURE_TENANT_ID"},
		{"a path that MSAL takes for dSTS", tenant("DSTSv2"), "AZURE_TENANT_ID"},
		{"a path for a tenant", tenant("../x"), "AZURE_TENANT_ID"},
		{"a query for a tenant", tenant("x?y"), "AZURE_TENANT_ID"},
		{"no token file", func(c *exchange.Config) { c.FederatedTokenFile = "" }, "AZURE_FEDERATED_TOKEN_FILE"},
		{"authority in the clear", authority("http://login.example.test"), "AZURE_AUTHORITY_HOST"},
		{"authority without a scheme", authority("login.example.test"), "AZURE_AUTHORITY_HOST"},
		{"authority without a host", authority("https:///"), "AZURE_AUTHORITY_HOST"},
		{"authority with a tenant", authority("https://login.example.test/tenant"), "AZURE_AUTHORITY_HOST"},
		{"authority with a user", authority("https://user:" + secret + "@login.example.test"), "AZURE_AUTHORITY_HOST"},
		{"authority at a port that is none", authority("https://login.example.test:65536"), "AZURE_AUTHORITY_HOST names a port that is none"},
		{"authority at port zero", authority("https://login.example.test:0/"), "AZURE_AUTHORITY_HOST names a port that is none"},
		{"authority that is no URL", authority("https://login.example.test:x\x7f"), "AZURE_AUTHORITY_HOST"},
		{"CA file missing", func(c *exchange.Config) { c.CAFile = notPEM + "x" }, "--ca-file"},
		{"CA file without a certificate", func(c *exchange.Config) { c.CAFile = notPEM }, "--ca-file"},
		{"SNI without a proxy", proxied(exchange.Binding{SNIName: "x"}), "AZURE_KUBERNETES_TOKEN_PROXY"},
		{"CA file without a proxy", proxied(exchange.Binding{CAFile: "x"}), "AZURE_KUBERNETES_TOKEN_PROXY"},
		{"CA data without a proxy", proxied(exchange.Binding{CAData: "x"}), "AZURE_KUBERNETES_TOKEN_PROXY"},
		{"proxy in the clear", proxied(exchange.Binding{TokenProxy: "http://binding.example.test"}), "AZURE_KUBERNETES_TOKEN_PROXY"},
		{"proxy at a port that is none", proxied(exchange.Binding{TokenProxy: proxy + ":99999/x"}), "AZURE_KUBERNETES_TOKEN_PROXY names a port that is none"},
		{"proxy with a user", proxied(exchange.Binding{TokenProxy: "https://user:" + secret + "@b.example.test"}), "AZURE_KUBERNETES_TOKEN_PROXY"},
		{"proxy with a query", proxied(exchange.Binding{TokenProxy: proxy + "?x"}), "AZURE_KUBERNETES_TOKEN_PROXY"},
		{"proxy with an empty query", proxied(exchange.Binding{TokenProxy: proxy + "?"}), "AZURE_KUBERNETES_TOKEN_PROXY"},
		{"proxy with a fragment", proxied(exchange.Binding{TokenProxy: proxy + "#x"}), "AZURE_KUBERNETES_TOKEN_PROXY"},
		{"proxy with an empty fragment", proxied(exchange.Binding{TokenProxy: proxy + "#"}), "AZURE_KUBERNETES_TOKEN_PROXY"},
		{"two CAs", proxied(exchange.Binding{TokenProxy: proxy, CAFile: "x", CAData: "y"}), "AZURE_KUBERNETES_CA_FILE and AZURE_KUBERNETES_CA_DATA"},
		{"CA file of the proxy missing", proxied(exchange.Binding{TokenProxy: proxy, CAFile: notPEM + "x"}), "AZURE_KUBERNETES_CA_FILE"},
		{"CA file of the proxy without a certificate", proxied(exchange.Binding{TokenProxy: proxy, CAFile: notPEM}), "AZURE_KUBERNETES_CA_FILE"},
		{"CA data without a certificate", proxied(exchange.Binding{TokenProxy: proxy, CAData: secret}), "AZURE_KUBERNETES_CA_DATA"},
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
