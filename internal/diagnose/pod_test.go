package diagnose_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/diagnose"
)

// TestClaims: the findings about a token that need no request.
func TestClaims(t *testing.T) {
	now := time.Unix(4102444800, 0)
	for _, test := range []struct {
		name  string
		claim string
		value any
		now   time.Time
		item  string
		want  diagnose.Status
	}{
		{"good", "sub", subject, now.Add(-time.Hour), "expiry (exp)", diagnose.OK},
		{"just before its expiry", "sub", subject, now.Add(-1), "expiry (exp)", diagnose.Note},
		{"at its expiry", "sub", subject, now, "expiry (exp)", diagnose.Fail},
		{"should have been renewed", "sub", subject, now.Add(-89 * time.Second), "expiry (exp)", diagnose.Note},
		{"no issuer", "iss", "", now.Add(-time.Hour), "issuer (iss)", diagnose.Fail},
		{"plain http issuer", "iss", "http://oidc.example.test", now.Add(-time.Hour), "issuer (iss)", diagnose.Fail},
		{"not a service account", "sub", "someone@example.test", now.Add(-time.Hour), "subject (sub)", diagnose.Note},
		{"for the API server", "aud", []string{"https://kubernetes.default.svc"}, now.Add(-time.Hour), "audience (aud)", diagnose.Fail},
		{"for AKS's API server", "aud", "https://shop-1a2b3c.hcp.westeurope.azmk8s.io:443", now.Add(-time.Hour), "audience (aud)", diagnose.Fail},
		{"for an API server whose audience is the issuer", "aud", "https://127.0.0.1:1/issuer", now.Add(-time.Hour), "audience (aud)", diagnose.Fail},
		{"for an API server among others", "aud", []string{"api://of-my-own", "kubernetes.default.svc"}, now.Add(-time.Hour), "audience (aud)", diagnose.Fail},
		{"a custom audience", "aud", "api://of-my-own", now.Add(-time.Hour), "audience (aud)", diagnose.Note},
		{"no audience", "aud", []string{}, now.Add(-time.Hour), "audience (aud)", diagnose.Fail},
		{"a second audience", "aud", []string{"other", "api://AzureADTokenExchange"}, now.Add(-time.Hour), "audience (aud)", diagnose.OK},
		{"a national cloud's audience", "aud", "api://AzureADTokenExchangeUSGov", now.Add(-time.Hour), "audience (aud)", diagnose.OK},
	} {
		t.Run(test.name, func(t *testing.T) {
			claims := goodClaims()
			claims[test.claim] = test.value
			cfg := config(t, claims)
			cfg.Now = func() time.Time { return test.now }
			report := diagnose.Run(t.Context(), cfg, nil)
			f := finding(t, report, diagnose.FederatedToken, test.item)
			if f.Status != test.want {
				t.Errorf("got %+v, want %s", f, test.want)
			}
			if f.Status != diagnose.OK && f.Remedy == "" {
				t.Errorf("no remedy for %q", f.Text)
			}
			if strings.Contains(text(t, report), secret) {
				t.Error("the report contains the token")
			}
		})
	}
}

// TestBindingAudience: the token of an identity binding has its own audience, and needs a token
// proxy. Nobody outside of the cluster reads its issuer.
func TestBindingAudience(t *testing.T) {
	claims := goodClaims()
	claims["iss"] = "http://issuer.example.test"
	for _, test := range []struct {
		audience, tokenProxy string
		want                 diagnose.Status
		remedy               string
	}{
		{"api://AKSIdentityBinding", "https://127.0.0.1:1", diagnose.OK, ""},
		{"api://another", "https://127.0.0.1:1", diagnose.OK, ""},
		{"api://AKSIdentityBinding", "", diagnose.Note, "check that AKS's webhook runs"},
		{"api://AzureADTokenExchange", "https://127.0.0.1:1", diagnose.Note, "set serviceAccountToken.audience: api://AKSIdentityBinding"},
	} {
		claims["aud"] = test.audience
		cfg := config(t, claims)
		cfg.Exchange.Binding.TokenProxy = azure.TokenProxy(test.tokenProxy)
		report := diagnose.Run(t.Context(), cfg, nil)
		if f := finding(t, report, diagnose.FederatedToken, "audience (aud)"); f.Status != test.want || !strings.HasPrefix(f.Remedy, test.remedy) || (f.Remedy == "") != (test.remedy == "") {
			t.Errorf("%s with the token proxy %q: got %+v, want %s and %q", test.audience, test.tokenProxy, f, test.want, test.remedy)
		}
		wantIssuer := diagnose.OK
		if test.tokenProxy == "" {
			wantIssuer = diagnose.Fail
		}
		if f := finding(t, report, diagnose.FederatedToken, "issuer (iss)"); f.Status != wantIssuer {
			t.Errorf("with the token proxy %q: got %+v, want %s", test.tokenProxy, f, wantIssuer)
		}
	}
}

// TestUnreadableToken: if the file has no token, the step fails with a remedy, and the steps
// that need the token are skipped.
func TestUnreadableToken(t *testing.T) {
	dir := t.TempDir()
	key := filepath.Join(dir, "key")
	if err := os.WriteFile(key, []byte("-----BEGIN PRIVATE KEY-----\n"+secret), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{filepath.Join(dir, "missing"), dir, key} {
		cfg := config(t, goodClaims())
		cfg.Exchange.FederatedTokenFile = path
		report := diagnose.Run(t.Context(), cfg, nil)
		f := finding(t, report, diagnose.FederatedToken, "file")
		if f.Status != diagnose.Fail || f.Remedy == "" {
			t.Errorf("%s: got %+v", path, f)
		}
		if step, _ := report.FirstFailed(); step != diagnose.FederatedToken {
			t.Errorf("%s: the first failed step is %q", path, step)
		}
		if got := finding(t, report, diagnose.Exchange, "token").Status; got != diagnose.Skipped {
			t.Errorf("%s: the exchange is %s, want skipped", path, got)
		}
		if strings.Contains(text(t, report), secret) {
			t.Error("the report contains the content of the file")
		}
	}
}

// TestClientID: the finding about AZURE_CLIENT_ID depends on its value only, also if the
// check requests a token for another identity.
func TestClientID(t *testing.T) {
	for id, want := range map[string]diagnose.Status{
		clientID: diagnose.OK, strings.ToUpper(clientID): diagnose.OK,
		"": diagnose.Note, "my-identity": diagnose.Fail, clientID + "0": diagnose.Fail,
	} {
		for _, asked := range []azure.ClientID{"", "77777777-7777-4777-8777-777777777777"} {
			cfg := config(t, goodClaims())
			cfg.ClientID = asked
			if cfg.DefaultClientID = ""; id != "" {
				var err error
				if cfg.DefaultClientID, err = azure.ParseClientID(id); err != nil {
					cfg.Invalid = map[string]error{azure.EnvClientID: err}
				}
			}
			report := diagnose.Run(t.Context(), cfg, nil)
			f := finding(t, report, diagnose.Environment, "AZURE_CLIENT_ID")
			if f.Status != want || id != "" && !strings.Contains(f.Text, strings.ToLower(id)) || strings.Contains(f.Remedy, "--client-id") != (id == "" && asked == "") {
				t.Errorf("client ID %q, asked for %q: got %+v, want %s", id, asked, f, want)
			}
			if asked == "" {
				continue
			}
			if f := finding(t, report, diagnose.Environment, "--client-id"); f.Status != diagnose.OK || f.Text != string(asked) {
				t.Errorf("client ID %q, asked for %q: got %+v", id, asked, f)
			}
		}
	}
}
