package diagnose_test

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"testing"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/diagnose"
	"imds-oidc-proxy/internal/exchange"
	"imds-oidc-proxy/test/kit/entra"
)

// TestWrongDocument: the report quotes a bounded part of a discovery document that does not
// match the authority. The check requests the document only once.
func TestWrongDocument(t *testing.T) {
	idp, err := entra.Start(entra.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { idp.Close() })
	cfg := config(t, goodClaims())
	cfg.Exchange.AuthorityHost = azure.AuthorityHost(idp.AuthorityHost())
	cfg.Exchange.CAFile = filepath.Join(t.TempDir(), "ca.pem")
	if err := idp.WriteCA(cfg.Exchange.CAFile); err != nil {
		t.Fatal(err)
	}
	issuer := func(value string) entra.Fault {
		return entra.FaultEdit("issuer", func(answer map[string]any) { answer["issuer"] = value })
	}
	for _, test := range []struct {
		fault entra.Fault
		want  string
	}{
		{issuer("https://sts.example.test/"), `has the issuer "https://sts.example.test/": ` + idp.AuthorityHost()},
		{issuer("https://\x1b[2J\n.example.test/" + strings.Repeat("x", 60_000)), `has the issuer "https://?[2J?.example.test/xxx`},
		{entra.FaultEdit("endpoint", func(answer map[string]any) { answer["token_endpoint"] = "https://login.example.test/token" }),
			`/v2.0", the token_endpoint "https://login.example.test/token": `},
		{entra.FaultWithout("token_endpoint"), `/v2.0", no token_endpoint: `},
		{entra.FaultStatus(200, `{"hello": "`+secret+`"}`), "has no issuer, no authorization_endpoint, no token_endpoint: "},
	} {
		idp.Reset()
		idp.FailAlways(test.fault.On(entra.TenantDiscovery))
		report := diagnose.Run(t.Context(), cfg, nil)
		if got := idp.Counts().TenantDiscovery; got != 1 {
			t.Errorf("%d requests for the document, want one", got)
		}
		if f := finding(t, report, diagnose.Authority, "discovery"); f.Status != diagnose.Fail || !strings.Contains(f.Remedy, "AZURE_AUTHORITY_HOST") {
			t.Errorf("%s: got %+v", test.want, f)
		}
		if f := finding(t, report, diagnose.Authority, "document"); !strings.Contains(f.Text, test.want) || len(f.Text) > 600 {
			t.Errorf("got %q, want it to contain %q", f.Text, test.want)
		}
		if got := text(t, report); strings.Contains(got, "works now") || strings.Contains(got, secret) {
			t.Errorf("got:\n%s", got)
		}
	}
}

// TestUntrustedCertificate: the report shows the certificate and how to fix its fault.
func TestUntrustedCertificate(t *testing.T) {
	idp, err := entra.Start(entra.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { idp.Close() })
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := idp.WriteCA(ca); err != nil {
		t.Fatal(err)
	}
	anotherHost := func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, strings.Trim(strings.TrimPrefix(idp.AuthorityHost(), "https://"), "/"))
	}
	for _, test := range []struct {
		name   string
		change func(*exchange.Config)
		want   string
	}{
		{"of an unknown authority", func(c *exchange.Config) { c.AuthorityHost = azure.AuthorityHost(idp.AuthorityHost()) }, "--ca-file"},
		{"for another host", func(c *exchange.Config) {
			c.AuthorityHost, c.CAFile, c.Dial = "https://login.example.test/", ca, anotherHost
		}, "the certificate of another host"},
	} {
		cfg := config(t, goodClaims())
		test.change(&cfg.Exchange)
		report := diagnose.Run(t.Context(), cfg, nil)
		if f := finding(t, report, diagnose.Authority, "discovery"); f.Status != diagnose.Fail || !strings.Contains(f.Remedy, test.want) {
			t.Errorf("%s: got %+v, want a remedy with %s", test.name, f, test.want)
		}
		if f := finding(t, report, diagnose.Authority, "certificate"); !strings.Contains(f.Text, `"CN=stand-in Entra", signed by "CN=stand-in Entra CA"`) {
			t.Errorf("%s: got %+v", test.name, f)
		}
	}
}

// TestConnectionRemedies: the remedy depends on what is between the pod and Entra.
func TestConnectionRemedies(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*exchange.Config)
		want   string
	}{
		{"directly", func(*exchange.Config) {}, "NetworkPolicy"},
		{"to a port without TLS", func(c *exchange.Config) {
			plain := httptest.NewServer(http.NotFoundHandler())
			t.Cleanup(plain.Close)
			c.AuthorityHost = azure.AuthorityHost("https://" + plain.Listener.Addr().String() + "/")
		}, "the port in AZURE_AUTHORITY_HOST"},
		{"through an HTTP proxy", func(c *exchange.Config) {
			c.Proxy = http.ProxyURL(&url.URL{Scheme: "http", Host: "127.0.0.1:1"})
		}, "HTTPS_PROXY"},
		{"through an HTTP proxy that requires credentials", func(c *exchange.Config) {
			refusing := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(http.StatusProxyAuthRequired)
			}))
			t.Cleanup(refusing.Close)
			c.Proxy = func(*http.Request) (*url.URL, error) { return url.Parse(refusing.URL) }
		}, "USER:PASSWORD@"},
		{"through an identity binding", func(c *exchange.Config) {
			c.Binding.TokenProxy = "https://127.0.0.1:1/"
		}, "AZURE_KUBERNETES_TOKEN_PROXY"},
		{"through both", func(c *exchange.Config) {
			c.Binding.TokenProxy = "https://binding.example.test/"
			c.Proxy = func(r *http.Request) (*url.URL, error) {
				if r.URL.Host != "binding.example.test" {
					return nil, nil
				}
				return &url.URL{Scheme: "http", Host: "127.0.0.1:1"}, nil
			}
		}, "through HTTPS_PROXY"},
	} {
		cfg := config(t, goodClaims())
		test.change(&cfg.Exchange)
		report := diagnose.Run(t.Context(), cfg, nil)
		f := finding(t, report, diagnose.Authority, "discovery")
		if f.Status != diagnose.Fail || !strings.Contains(f.Remedy, test.want) {
			t.Errorf("%s: got %+v, want a remedy with %s", test.name, f, test.want)
		}
		if step, _ := report.FirstFailed(); step != diagnose.Authority {
			t.Errorf("%s: the first failed step is %q", test.name, step)
		}
	}
}
