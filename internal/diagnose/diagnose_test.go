package diagnose_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/diagnose"
	"imds-oidc-proxy/internal/exchange"
	"imds-oidc-proxy/internal/sockets"
	"imds-oidc-proxy/test/kit/entra"
)

const (
	secret   = "bm90LWEtc2lnbmF0dXJl"
	clientID = "6c0ac4e6-9b6d-4d2a-8d5a-6f1f3a1f9b10"
	subject  = "system:serviceaccount:shop:cart"
)

// unsigned is a federated token whose signature is the canary.
func unsigned(t *testing.T, claims map[string]any) string {
	t.Helper()
	payload, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	encode := base64.RawURLEncoding.EncodeToString
	path := filepath.Join(t.TempDir(), "token")
	content := encode([]byte(`{"alg":"RS256","kid":"a-key"}`)) + "." + encode(payload) + "." + secret
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// silent is a pod in which nobody answers metadata requests.
func silent() diagnose.Metadata {
	refused := func(context.Context) (diagnose.Answer, error) { return diagnose.Answer{}, syscall.ECONNREFUSED }
	lost := func(context.Context) (diagnose.Answer, error) {
		return diagnose.Answer{}, context.DeadlineExceeded
	}
	nobody := func() (uint32, error) { return 0, sockets.ErrNoListener }
	return diagnose.Metadata{Port: 8000, ProxyUIDs: []uint32{1501}, PortOwner: nobody, AskPort: refused, AskRedirect: lost}
}

// config points everywhere at closed ports of this machine.
func config(t *testing.T, claims map[string]any) diagnose.Config {
	t.Helper()
	return diagnose.Config{
		Exchange: exchange.Config{
			TenantID: entra.DefaultTenantID, AuthorityHost: "https://127.0.0.1:1/", FederatedTokenFile: unsigned(t, claims),
		},
		DefaultClientID: clientID, Resource: "https://management.azure.com/", IMDS: silent(),
	}
}

func goodClaims() map[string]any {
	return map[string]any{"iss": "https://127.0.0.1:1/issuer", "sub": subject, "aud": "api://AzureADTokenExchange", "exp": 4102444800}
}

// text is the report as a person reads it.
func text(t *testing.T, r diagnose.Report) string {
	t.Helper()
	var b bytes.Buffer
	for _, s := range r.Steps {
		if err := diagnose.WriteText(&b, s); err != nil {
			t.Fatal(err)
		}
	}
	return b.String()
}

// finding is one of the report, by step and item.
func finding(t *testing.T, r diagnose.Report, step diagnose.StepName, item string) diagnose.Finding {
	t.Helper()
	for _, s := range r.Steps {
		for _, f := range s.Findings {
			if s.Name == step && f.Item == item {
				return f
			}
		}
	}
	t.Fatalf("no finding %q of step %q in:\n%s", item, step, text(t, r))
	return diagnose.Finding{}
}

// TestClaims: what is wrong with a token that can be told without asking anybody.
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
		{"a moment before its end", "sub", subject, now.Add(-1), "expiry (exp)", diagnose.Note},
		{"at its end", "sub", subject, now, "expiry (exp)", diagnose.Fail},
		{"should have been renewed", "sub", subject, now.Add(-89 * time.Second), "expiry (exp)", diagnose.Note},
		{"no issuer", "iss", "", now.Add(-time.Hour), "issuer (iss)", diagnose.Fail},
		{"plain http issuer", "iss", "http://oidc.example.test", now.Add(-time.Hour), "issuer (iss)", diagnose.Fail},
		{"not a service account", "sub", "someone@example.test", now.Add(-time.Hour), "subject (sub)", diagnose.Note},
		{"for the API server", "aud", []string{"https://kubernetes.default.svc"}, now.Add(-time.Hour), "audience (aud)", diagnose.Fail},
		{"for AKS's API server", "aud", "https://shop-1a2b3c.hcp.westeurope.azmk8s.io:443", now.Add(-time.Hour), "audience (aud)", diagnose.Fail},
		{"for an API server whose audience is the issuer", "aud", "https://127.0.0.1:1/issuer", now.Add(-time.Hour), "audience (aud)", diagnose.Fail},
		{"for an API server among others", "aud", []string{"api://of-my-own", "kubernetes.default.svc"}, now.Add(-time.Hour), "audience (aud)", diagnose.Fail},
		{"an audience of one's own", "aud", "api://of-my-own", now.Add(-time.Hour), "audience (aud)", diagnose.Note},
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
				t.Error("the report holds the token")
			}
		})
	}
}

// TestBindingAudience: an identity binding projects a token for its own audience.
func TestBindingAudience(t *testing.T) {
	claims := goodClaims()
	claims["aud"] = "api://AKSIdentityBinding"
	for _, test := range []struct {
		tokenProxy string
		want       diagnose.Status
	}{{"", diagnose.Note}, {"https://127.0.0.1:1", diagnose.OK}} {
		cfg := config(t, claims)
		cfg.Exchange.Binding.TokenProxy = azure.TokenProxy(test.tokenProxy)
		report := diagnose.Run(t.Context(), cfg, nil)
		if f := finding(t, report, diagnose.FederatedToken, "audience (aud)"); f.Status != test.want {
			t.Errorf("with the token proxy %q: got %+v, want %s", test.tokenProxy, f, test.want)
		}
	}
}

// TestUnreadableToken: each way in which the file is no token is a failure that says
// how to mend it, and nothing after it needs it.
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
			t.Error("the report holds the file's content")
		}
	}
}

// TestIssuerChoosesNoHost: a claim must not lead to the metadata address or to
// others that only this node can reach, and is asked over https alone.
func TestIssuerChoosesNoHost(t *testing.T) {
	for issuer, want := range map[string]string{
		"https://169.254.169.254/metadata":               "link-local",
		"https://[::ffff:169.254.169.254]/metadata":      "link-local",
		"https://[fe80::1]/":                             "link-local",
		"http://127.0.0.1:1/":                            "no https URL",
		"file:///etc/passwd":                             "no https URL",
		"https://kubernetes.default.svc":                 "the cluster's own",
		"https://kubernetes.default.svc.cluster.local/x": "the cluster's own",
		"https://127.0.0.1:1/":                           "refused",
	} {
		claims := goodClaims()
		claims["iss"] = issuer
		report := diagnose.Run(t.Context(), config(t, claims), nil)
		if f := finding(t, report, diagnose.Issuer, "discovery"); !strings.Contains(f.Text, want) {
			t.Errorf("issuer %s: got %q, want it to hold %q", issuer, f.Text, want)
		}
	}
}

// TestHostileWords: what others chose can neither drive a terminal, nor break a line,
// nor end the quotes of a command that is to be pasted.
func TestHostileWords(t *testing.T) {
	claims := goodClaims()
	claims["iss"] = "https://127.0.0.1:1/'; rm -rf ~;'\x1b[2J\nok  forged\u202e"
	claims["sub"] = subject + strings.Repeat("a", 60_000)
	report := diagnose.Run(t.Context(), config(t, claims), nil)
	got := text(t, report)
	for i, r := range got {
		if r != '\n' && (r < ' ' || r > '~') {
			t.Fatalf("the report holds %q at %d", r, i)
		}
	}
	if strings.Contains(got, "\nok  forged") || len(got) > 20_000 {
		t.Errorf("got %d bytes:\n%.3000s", len(got), got)
	}
	if remedy := finding(t, report, diagnose.Issuer, "discovery").Remedy; strings.Count(remedy, "'") > 2 {
		t.Errorf("the command's quotes can be ended: %s", remedy)
	}
}

// TestPasswordsOfURLs: addresses are shown without what is secret in them.
func TestPasswordsOfURLs(t *testing.T) {
	cfg := config(t, goodClaims())
	via := &url.URL{Scheme: "http", Host: "127.0.0.1:1", User: url.UserPassword("user", secret)}
	cfg.Exchange.Proxy = func(*http.Request) (*url.URL, error) { return via, nil }
	report := diagnose.Run(t.Context(), cfg, nil)
	if got := finding(t, report, diagnose.Authority, "HTTPS_PROXY").Text; !strings.Contains(got, "http://127.0.0.1:1 ") {
		t.Errorf("got %q", got)
	}
	if got := text(t, report); strings.Contains(got, secret) {
		t.Errorf("the report holds the proxy's password:\n%s", got)
	}
	_, refused := azure.ParseAuthorityHost("https://user:" + secret + "@login.example.test/?" + secret)
	cfg.Exchange.AuthorityHost, cfg.Invalid = "", map[string]error{azure.EnvAuthorityHost: refused}
	report = diagnose.Run(t.Context(), cfg, nil)
	if got := text(t, report); strings.Contains(got, secret) {
		t.Errorf("the report holds the authority's password:\n%s", got)
	}
	if step, _ := report.FirstFailed(); step != diagnose.Environment {
		t.Errorf("the first failed step is %q, want the environment", step)
	}
}

// TestClientID: the identity is what a person may get wrong in several ways, and of the
// one that is asked for in its place nothing follows for it.
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

// TestEach: steps are told as they end, in order, and those told are those reported.
func TestEach(t *testing.T) {
	var told []diagnose.StepName
	report := diagnose.Run(t.Context(), config(t, goodClaims()), func(s diagnose.Step) { told = append(told, s.Name) })
	want := []diagnose.StepName{diagnose.Environment, diagnose.FederatedToken, diagnose.Issuer, diagnose.Authority, diagnose.Exchange, diagnose.IMDS, diagnose.RedirectRules}
	if fmt.Sprint(told) != fmt.Sprint(want) || len(report.Steps) != len(want) {
		t.Errorf("told %v, want %v", told, want)
	}
}
