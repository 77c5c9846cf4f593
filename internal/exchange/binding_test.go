package exchange_test

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/exchange"
	"imds-oidc-proxy/test/kit/entra"
)

// bindingPod returns a pod with an identity binding: a token proxy with its own name, CA and
// path in front of the fake Entra. Entra itself cannot be reached.
func bindingPod(t *testing.T, path, sni string) *pod {
	t.Helper()
	idp, err := entra.New(entra.Config{Host: "login.example.test", ServerNames: []string{sni}})
	if err != nil {
		t.Fatal(err)
	}
	front := httptest.NewUnstartedServer(http.StripPrefix(path, idp.Handler()))
	front.TLS = idp.ServerTLSConfig()
	front.Config.ErrorLog = log.New(io.Discard, "", 0) // discards errors of handshakes
	front.StartTLS()
	t.Cleanup(front.Close)
	p := newPod(t, idp)
	p.cfg.Dial = dialLoopback
	p.cfg.Binding = exchange.Binding{TokenProxy: azure.TokenProxy(front.URL + path), SNIName: sni}
	return p
}

func TestBindingPathAndServerName(t *testing.T) {
	const sni = "tenant.binding.example.test"
	for _, path := range []string{"", "/some/prefix"} {
		p := bindingPod(t, path, sni)
		p.cfg.Binding.CAData = string(p.idp.CAPEM())
		if _, err := p.get(t, p.service(t)); err != nil {
			t.Fatalf("with the path %q: %v", path, err)
		}
		x := p.idp.Exchanges()
		if len(x) != 1 || x[0].SNI != sni {
			t.Fatalf("got %d token requests: %+v", len(x), x)
		}
		if want := path + "/" + p.idp.TenantID() + "/oauth2/v2.0/token"; x[0].Path != want {
			t.Errorf("path: got %s, want %s", x[0].Path, want)
		}
	}
}

// The token proxy gets the token request, whatever host its discovery document names.
func TestBindingIgnoresTheHostOfTheTokenEndpoint(t *testing.T) {
	p := bindingPod(t, "", "localhost")
	p.cfg.Binding.CAData = string(p.idp.CAPEM())
	p.idp.FailAlways(entra.FaultEdit("endpoint", func(answer map[string]any) {
		answer["token_endpoint"] = "https://binding.example.test/" + p.idp.TenantID() + "/oauth2/v2.0/token"
	}).On(entra.TenantDiscovery))
	if _, err := p.get(t, p.service(t)); err != nil || p.idp.Counts().Token != 1 {
		t.Errorf("got error %v after %d token requests, want a token from the token proxy", err, p.idp.Counts().Token)
	}
}

// The token proxy has its own roots: certificates that are trusted for Entra are not trusted for it.
func TestBindingTrustsItsOwnRootsOnly(t *testing.T) {
	p := bindingPod(t, "", "localhost")
	stranger := startPod(t, entra.Config{})
	p.cfg.CAFile = caFile(t, p.idp)
	p.cfg.Binding.CAData = string(stranger.idp.CAPEM())
	err := p.service(t).exchange(t.Context(), clientID, resource)
	wantKind(t, err, exchange.Unavailable)
	if got := p.idp.Counts(); got != (entra.Counts{}) {
		t.Errorf("requests were sent: %+v", got)
	}

	p.cfg.Binding.CAData = "" // verified like Entra
	if _, err := p.get(t, p.service(t)); err != nil {
		t.Error(err)
	}
}

func TestBindingRereadsItsCAFile(t *testing.T) {
	p := bindingPod(t, "", "localhost")
	stranger := startPod(t, entra.Config{})
	p.cfg.Binding.CAFile = filepath.Join(t.TempDir(), "ca.crt")
	good, other := string(p.idp.CAPEM()), string(stranger.idp.CAPEM())
	write(t, p.cfg.Binding.CAFile, other)
	s := p.service(t)
	for _, c := range []struct {
		name, content string
		works         bool
	}{
		{"another authority", other, false},
		{"the right one", good, true},
		{"empty during a rotation", "", true},
		{"half written", good[:len(good)/2], true},
		{"both", other + good, true},
		{"another again", other, false},
		{"empty again", "", false},
		{"the right one again", good, true},
	} {
		write(t, p.cfg.Binding.CAFile, c.content)
		err := s.exchange(t.Context(), clientID, resource)
		if (err == nil) != c.works {
			t.Errorf("%s: got error %v, want an error: %t", c.name, err, !c.works)
		}
	}
	if err := os.Remove(p.cfg.Binding.CAFile); err != nil {
		t.Fatal(err)
	}
	if err := s.exchange(t.Context(), clientID, resource); err != nil {
		t.Errorf("the file is removed: %v", err)
	}
}

// A failed rotation is logged once, and once again when it is fixed. Meanwhile the previous roots
// are used.
func TestBindingLogsThatItsCAFileCannotBeUsed(t *testing.T) {
	const broken, fixed = "cannot read the CA file of the identity binding, using the previous certificates",
		"the CA file of the identity binding can be read again"
	p := bindingPod(t, "", "localhost")
	p.cfg.Binding.CAFile = filepath.Join(t.TempDir(), "ca.crt")
	write(t, p.cfg.Binding.CAFile, string(p.idp.CAPEM()))
	s := p.service(t)
	for i, c := range []struct {
		content       string
		broken, fixed int
	}{
		{string(p.idp.CAPEM()), 0, 0},
		{"", 1, 0},
		{"not a certificate", 1, 0},
		{string(p.idp.CAPEM()), 1, 1},
		{"", 2, 1},
	} {
		write(t, p.cfg.Binding.CAFile, c.content)
		for range 3 {
			if err := s.exchange(t.Context(), clientID, resource); err != nil {
				t.Errorf("step %d: %v", i, err)
			}
		}
		if b, f := len(p.lines(t, broken)), len(p.lines(t, fixed)); b != c.broken || f != c.fixed {
			t.Errorf("step %d: %d warnings and %d lines about the fix, want %d and %d: %s", i, b, f, c.broken, c.fixed, p.log.String())
		}
	}
	if line := p.lines(t, broken)[0]; line["level"] != "warn" || !strings.Contains(fmt.Sprint(line["hint"]), "AZURE_KUBERNETES_CA_FILE") ||
		!strings.Contains(fmt.Sprint(line["error"]), "no PEM certificate") {
		t.Errorf("got log line %v", line)
	}
}

// If the token proxy is not trusted, error and hint name the setting of its authorities, not that
// of Entra's.
func TestUntrustedTokenProxy(t *testing.T) {
	stranger := startPod(t, entra.Config{})
	other := string(stranger.idp.CAPEM())
	for name, c := range map[string]struct {
		change func(*testing.T, *pod)
		detail string
	}{
		"by file":  {func(t *testing.T, p *pod) { p.cfg.Binding.CAFile = caFile(t, stranger.idp) }, "is not in AZURE_KUBERNETES_CA_FILE"},
		"by value": {func(_ *testing.T, p *pod) { p.cfg.Binding.CAData = other }, "is not in AZURE_KUBERNETES_CA_DATA"},
		"by none":  {func(t *testing.T, p *pod) { p.cfg.CAFile = caFile(t, stranger.idp) }, "neither AZURE_KUBERNETES_CA_FILE nor"},
	} {
		t.Run(name, func(t *testing.T) {
			p := bindingPod(t, "", "localhost")
			c.change(t, p)
			err := p.service(t).Discover(t.Context())
			e := wantKind(t, err, exchange.Unavailable)
			if !strings.Contains(e.Detail, c.detail) || strings.Contains(e.Detail, "--ca-file adds one") || !strings.Contains(e.Hint, "AZURE_KUBERNETES_CA_FILE") {
				t.Errorf("detail %q, hint %q", e.Detail, e.Hint)
			}
		})
	}
}

// Errors of requests to the token proxy name the token proxy, not Entra.
func TestFaultsOfTheTokenProxy(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*exchange.Binding)
		detail string
		hint   string
	}{
		"a name that its certificate does not have": {
			func(b *exchange.Binding) { b.SNIName = "typo.binding.example.test" },
			"the token proxy's certificate is for another host", "AZURE_KUBERNETES_SNI_NAME"},
		"nothing listens": {
			func(b *exchange.Binding) { b.TokenProxy = "https://127.0.0.1:1" },
			"the connection to the token proxy was refused", ""},
	} {
		t.Run(name, func(t *testing.T) {
			p := bindingPod(t, "", "localhost")
			p.cfg.Binding.CAData = string(p.idp.CAPEM())
			c.change(&p.cfg.Binding)
			e := wantKind(t, p.service(t).exchange(t.Context(), clientID, resource), exchange.Unavailable)
			if e.Detail != c.detail {
				t.Errorf("got detail %q, want %q", e.Detail, c.detail)
			}
			if c.hint != "" && !strings.Contains(p.service(t).Discover(t.Context()).(*exchange.Error).Hint, c.hint) {
				t.Errorf("the hint does not mention %s", c.hint)
			}
		})
	}
}

// Without its own authorities, the token proxy is verified with those of Entra, and by SNIName.
func TestBindingWithoutItsOwnRoots(t *testing.T) {
	const sni = "tenant.binding.example.test"
	p := bindingPod(t, "", sni)
	p.cfg.CAFile = caFile(t, p.idp)
	if _, err := p.get(t, p.service(t)); err != nil {
		t.Fatal(err)
	}
	if x := p.idp.Exchanges(); len(x) != 1 || x[0].SNI != sni {
		t.Errorf("got %+v, want one token request for %s", x, sni)
	}
}

// If the old roots no longer verify the token proxy and the CA file cannot be used, the error says
// both.
func TestUntrustedTokenProxyWithUnusableCAFile(t *testing.T) {
	p := bindingPod(t, "", "localhost")
	stranger := startPod(t, entra.Config{})
	p.cfg.Binding.CAFile = caFile(t, stranger.idp)
	s := p.service(t)
	write(t, p.cfg.Binding.CAFile, "")
	err := s.exchange(t.Context(), clientID, resource)
	if e := wantKind(t, err, exchange.Unavailable); !strings.Contains(e.Detail, "AZURE_KUBERNETES_CA_FILE contains no PEM certificate") {
		t.Errorf("detail %q", e.Detail)
	}
}

// As in azidentity, HTTPS_PROXY applies to the token proxy too.
func TestHTTPProxyIsUsedForTheTokenProxy(t *testing.T) {
	p := bindingPod(t, "/path", "localhost")
	p.cfg.Binding.CAData = string(p.idp.CAPEM())
	host := strings.TrimSuffix(strings.TrimPrefix(string(p.cfg.Binding.TokenProxy), "https://"), "/path")
	proxy, asked := connectProxy(t, host)
	p.cfg.Proxy = http.ProxyURL(proxy)
	if _, err := p.get(t, p.service(t)); err != nil {
		t.Fatal(err)
	}
	if got := asked(); len(got) != 2 || got[0] != "CONNECT" || got[1] != host {
		t.Errorf("the proxy was asked for %q, want one CONNECT to %s", got, host)
	}
}
