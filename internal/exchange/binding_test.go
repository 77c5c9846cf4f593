package exchange_test

import (
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"imds-oidc-proxy/internal/exchange"
	"imds-oidc-proxy/test/entra"
)

// bindingPod has the stand-in behind what a cluster's identity binding is: a
// proxy under another name and CA, and with a path of its own. Entra's own name
// leads nowhere.
func bindingPod(t *testing.T, path, sni string) *pod {
	t.Helper()
	idp, err := entra.New(entra.Config{Host: "login.example.test", ServerNames: []string{sni}})
	if err != nil {
		t.Fatal(err)
	}
	front := httptest.NewUnstartedServer(http.StripPrefix(path, idp.Handler()))
	front.TLS = idp.ServerTLSConfig()
	front.Config.ErrorLog = log.New(io.Discard, "", 0) // of refused handshakes
	front.StartTLS()
	t.Cleanup(front.Close)
	p := newPod(t, idp)
	p.cfg.Dial = dialLoopback
	p.cfg.Binding = exchange.Binding{TokenProxy: front.URL + path, SNIName: sni}
	return p
}

func TestBindingKeepsThePathAndAsksForTheName(t *testing.T) {
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

// The proxy's roots are exclusive: what is trusted for Entra is not for it.
func TestBindingTrustsItsOwnRootsOnly(t *testing.T) {
	p := bindingPod(t, "", "localhost")
	stranger := startPod(t, entra.Config{})
	p.cfg.CAFile = caFile(t, p.idp)
	p.cfg.Binding.CAData = string(stranger.idp.CAPEM())
	err := p.service(t).Exchange(t.Context(), clientID, resource)
	wantKind(t, err, exchange.Unavailable)
	if got := p.idp.Counts(); got != (entra.Counts{}) {
		t.Errorf("requests went through: %+v", got)
	}

	p.cfg.Binding.CAData = "" // now it is verified like Entra
	if _, err := p.get(t, p.service(t)); err != nil {
		t.Error(err)
	}
}

func TestBindingFollowsItsCAFile(t *testing.T) {
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
		{"empty, in mid-rotation", "", true},
		{"half written", good[:len(good)/2], true},
		{"both", other + good, true},
		{"another again", other, false},
		{"empty again", "", false},
		{"the right one again", good, true},
	} {
		write(t, p.cfg.Binding.CAFile, c.content)
		err := s.Exchange(t.Context(), clientID, resource)
		if (err == nil) != c.works {
			t.Errorf("%s: got error %v, want one: %t", c.name, err, !c.works)
		}
	}
	if err := os.Remove(p.cfg.Binding.CAFile); err != nil {
		t.Fatal(err)
	}
	if err := s.Exchange(t.Context(), clientID, resource); err != nil {
		t.Errorf("file gone: %v", err)
	}
}
