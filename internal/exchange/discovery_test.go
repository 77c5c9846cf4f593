package exchange_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"imds-oidc-proxy/internal/exchange"
	"imds-oidc-proxy/internal/tokens"
	"imds-oidc-proxy/test/kit/entra"
)

// An OpenID configuration that is older than a day is still used: no exchange waits for a new
// one, or fails because it cannot be fetched.
func TestOldDiscoveryIsUsedWhileItIsFetchedAgain(t *testing.T) {
	for name, f := range map[string]entra.Fault{
		"503":  entra.FaultStatus(503, ""),
		"hang": entra.FaultHang(),
		"HTML": entra.FaultHTML(200),
		"gone": entra.FaultAADSTS(90002),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := bubblePod(t, entra.Config{TokenLifetime: time.Hour})
				s := p.service(t)
				if _, err := p.get(t, s); err != nil {
					t.Fatal(err)
				}
				p.idp.FailAlways(f.On(entra.TenantDiscovery))
				time.Sleep(25 * time.Hour)
				for n := 1; n <= 5; n++ { // within half a minute, before the fetch is retried
					if err := p.token.Renew(); err != nil {
						t.Fatal(err)
					}
					began := time.Now()
					if err := s.exchange(t.Context(), clientID, resource); err != nil || time.Since(began) > 0 {
						t.Errorf("exchange %d: error %v after %s", n, err, time.Since(began))
					}
				}
				synctest.Wait()
				if got := p.idp.Counts().TenantDiscovery; got != 2 {
					t.Errorf("%d discovery requests, want 2", got)
				}
				time.Sleep(tryTimeout)
				synctest.Wait() // a fetch that hangs has timed out and returned
				p.idp.Heal()
				time.Sleep(30 * time.Second)
				for range 5 {
					if err := s.exchange(t.Context(), clientID, resource); err != nil {
						t.Error(err)
					}
					synctest.Wait()
				}
				if got := p.idp.Counts().TenantDiscovery; got != 3 {
					t.Errorf("after the fault: %d discovery requests, want 3", got)
				}
			})
		})
	}
}

// A successful exchange with the old document says nothing about a document that was fetched
// meanwhile. If the new one is wrong, it is soon fetched again.
func TestNewDiscoveryIsNotProvenByTheOld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := bubblePod(t, entra.Config{TokenLifetime: time.Hour})
		s := p.service(t)
		if _, err := p.get(t, s); err != nil {
			t.Fatal(err)
		}
		time.Sleep(25 * time.Hour)
		if err := p.token.Renew(); err != nil {
			t.Fatal(err)
		}
		p.idp.FailNext(1, entra.FaultSlow(time.Second).On(entra.TokenEndpoint))
		p.idp.FailNext(1, entra.FaultEdit("moved", func(answer map[string]any) {
			answer["token_endpoint"] = "https://moved.example.test/token"
		}).On(entra.TenantDiscovery))
		if err := s.exchange(t.Context(), clientID, resource); err != nil {
			t.Fatalf("with the old document: %v", err)
		}
		synctest.Wait()
		if err := s.exchange(t.Context(), clientID, resource); err == nil {
			t.Fatal("an exchange succeeded with a document that names a wrong token endpoint")
		}
		time.Sleep(30 * time.Second)
		if err := s.exchange(t.Context(), clientID, resource); err != nil {
			t.Errorf("half a minute later: %v", err)
		}
	})
}

// A valid document of another authority, or one without the required fields, has its own kind of
// fault and hint, for exchanges as for Discover. It is not quoted.
func TestDocumentOfAnotherAuthority(t *testing.T) {
	for name, c := range map[string]struct {
		fault  entra.Fault
		misfit bool
	}{
		"a foreign issuer":         {discovered("https://"+secret+".example.test/", "https://login.example.test/token"), true},
		"an issuer that is no URL": {discovered("https://"+secret+"%zz/", "https://login.example.test/token"), true},
		"a foreign token endpoint": {discovered("https://login.example.test/", "https://"+secret+".example.test/token"), true},
		"another port":             {discovered("https://login.example.test/", "https://login.example.test:8443/token"), true},
		"a token endpoint, http":   {discovered("https://login.example.test/", "http://login.example.test/token"), true},
		"not a URL":                {discovered("https://login.example.test/", "https://"+secret+"%zz/token"), true},
		"an empty document":        {entra.FaultStatus(200, "{}"), true},
		"no token endpoint":        {entra.FaultWithout("token_endpoint"), true},
		"HTML":                     {entra.FaultHTML(200), false},
		"503":                      {entra.FaultStatus(503, ""), false},
		"reset":                    {entra.FaultReset(), false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := bubblePod(t, entra.Config{})
				p.idp.FailAlways(c.fault.On(entra.TenantDiscovery))
				_, exchanged := p.get(t, p.service(t))
				for _, err := range []error{exchanged, p.service(t).Discover(t.Context())} {
					e := wantKind(t, err, exchange.Unavailable)
					if misfit := e.Fault != nil && e.Fault.Kind == exchange.FaultMisfit; misfit != c.misfit || strings.Contains(e.Hint, "AZURE_AUTHORITY_HOST") != c.misfit {
						t.Errorf("got %q, hint %q, want a misfit: %t", e, e.Hint, c.misfit)
					}
				}
				checkNoSecret(t, p, tokens.Result{}, exchanged)
			})
		})
	}
}

// hostRecorder records the hosts of all requests.
type hostRecorder struct {
	next http.RoundTripper

	mu    sync.Mutex // guards hosts
	hosts []string
}

func (r *hostRecorder) RoundTrip(req *http.Request) (*http.Response, error) {
	r.mu.Lock()
	r.hosts = append(r.hosts, req.URL.Host)
	r.mu.Unlock()
	return r.next.RoundTrip(req)
}

// The assertion is sent to the authority host only, even if a document is ambiguous: MSAL may
// then use another token endpoint than the one that this package reads.
func TestAssertionIsSentToTheAuthorityOnly(t *testing.T) {
	const own, foreign = "https://login.example.test/token", "https://foreign.example.test/token"
	for name, endpoints := range map[string]string{
		"foreign":               fmt.Sprintf(`"token_endpoint":%q`, foreign),
		"given twice":           fmt.Sprintf(`"token_endpoint":%q,"token_endpoint":%q`, own, foreign),
		"given twice, reversed": fmt.Sprintf(`"token_endpoint":%q,"token_endpoint":%q`, foreign, own),
		"another case":          fmt.Sprintf(`"token_endpoint":%q,"Token_Endpoint":%q`, foreign, own),
		"another case, first":   fmt.Sprintf(`"TOKEN_ENDPOINT":%q,"token_endpoint":%q`, own, foreign),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := bubblePod(t, entra.Config{})
				sent := &hostRecorder{next: p.transport}
				p.transport = sent
				p.idp.FailAlways(entra.FaultStatus(200,
					`{"issuer":"https://login.example.test/","authorization_endpoint":"https://login.example.test/a",`+endpoints+`}`).On(entra.TenantDiscovery))
				_, _ = p.get(t, p.service(t))
				if len(sent.hosts) == 0 || slices.ContainsFunc(sent.hosts, func(host string) bool { return host != "login.example.test" }) {
					t.Errorf("got requests to %q, want login.example.test only", sent.hosts)
				}
			})
		})
	}
}

// Hosts of one cloud are the same service: azure-workload-identity sets login.chinacloudapi.cn, and
// documents there name the host's newer name.
func TestTokenEndpointWithAnotherNameOfTheCloud(t *testing.T) {
	for endpoint, want := range map[string]bool{
		"login.partner.microsoftonline.cn": true,
		"login.chinacloudapi.cn":           true,
		"login.microsoftonline.com":        false,
	} {
		synctest.Test(t, func(t *testing.T) {
			p := bubblePod(t, entra.Config{Host: "login.chinacloudapi.cn"})
			p.idp.FailAlways(entra.FaultEdit("endpoint", func(answer map[string]any) {
				answer["token_endpoint"] = "https://" + endpoint + "/" + p.idp.TenantID() + "/oauth2/v2.0/token"
			}).On(entra.TenantDiscovery))
			_, err := p.get(t, p.service(t))
			if (err == nil) != want {
				t.Errorf("%s: got error %v, want a token: %t", endpoint, err, want)
			}
		})
	}
}
