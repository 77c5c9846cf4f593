package diagnose_test

import (
	"net/http"
	"net/url"
	"strings"
	"testing"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/diagnose"
)

// TestHostileText: untrusted text cannot control a terminal, break a line, or break out of
// the quotes of a command that users paste.
func TestHostileText(t *testing.T) {
	claims := goodClaims()
	claims["iss"] = "https://127.0.0.1:1/'; rm -rf ~;'\x1b[2J\nok  forged\u202e"
	claims["sub"] = subject + strings.Repeat("a", 60_000)
	report := diagnose.Run(t.Context(), config(t, claims), nil)
	got := text(t, report)
	for i, r := range got {
		if r != '\n' && (r < ' ' || r > '~') {
			t.Fatalf("the report has %q at %d", r, i)
		}
	}
	if strings.Contains(got, "\nok  forged") || len(got) > 20_000 {
		t.Errorf("got %d bytes:\n%.3000s", len(got), got)
	}
	if remedy := finding(t, report, diagnose.Issuer, "discovery").Remedy; strings.Count(remedy, "'") > 2 {
		t.Errorf("untrusted text breaks out of the command's quotes: %s", remedy)
	}
}

// TestPasswordsOfURLs: the report has no passwords of URLs.
func TestPasswordsOfURLs(t *testing.T) {
	cfg := config(t, goodClaims())
	via := &url.URL{Scheme: "http", Host: "127.0.0.1:1", User: url.UserPassword("user", secret)}
	cfg.Exchange.Proxy = func(*http.Request) (*url.URL, error) { return via, nil }
	report := diagnose.Run(t.Context(), cfg, nil)
	if got := finding(t, report, diagnose.Authority, "HTTPS_PROXY").Text; !strings.Contains(got, "http://127.0.0.1:1 ") {
		t.Errorf("got %q", got)
	}
	if got := text(t, report); strings.Contains(got, secret) {
		t.Errorf("the report contains the proxy's password:\n%s", got)
	}
	_, refused := azure.ParseAuthorityHost("https://user:" + secret + "@login.example.test/?" + secret)
	cfg.Exchange.AuthorityHost, cfg.Invalid = "", map[string]error{azure.EnvAuthorityHost: refused}
	report = diagnose.Run(t.Context(), cfg, nil)
	if got := text(t, report); strings.Contains(got, secret) {
		t.Errorf("the report contains the authority's password:\n%s", got)
	}
	if step, _ := report.FirstFailed(); step != diagnose.Environment {
		t.Errorf("the first failed step is %q, want the environment", step)
	}
}
