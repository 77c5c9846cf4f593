package main

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// TestAsk checks what the command prints for an answer of the proxy, and that every other answer is
// an error of one line without the token.
func TestAsk(t *testing.T) {
	const secret = "sign-ature"
	jwt := func(payload string) string {
		return `{"access_token":"e30.` + base64.RawURLEncoding.EncodeToString([]byte(payload)) + "." + secret + `"}`
	}
	for what, tt := range map[string]struct {
		server, body, want string
		status, code       int
	}{
		"token":       {"imds-oidc-proxy/v1.2.3", jwt(`{"aud":"https://management.azure.com/","oid":"11111111-2222-4333-8444-555555555555","exp":1700000000}`), "webhook: token for https://management.azure.com/, object ID 11111111-2222-4333-8444-555555555555, valid until 2023-11-14T22:13:20Z\n", 200, exitOK},
		"refused":     {"imds-oidc-proxy/v1.2.3", `{"error":"invalid_request","error_description":"Identity not found"}`, "webhook: the proxy answered 400 Bad Request: \"Identity not found\"\n", 400, exitFailure},
		"no redirect": {"IMDS/150.870.65.1854", jwt(`{}`), "(Server \"IMDS/150.870.65.1854\"): the pod is not injected, or has no redirect\n", 200, exitFailure},
		"no token":    {"imds-oidc-proxy/v1.2.3", `{}`, "webhook: the proxy's answer has no access_token\n", 200, exitFailure},
		"no JWT":      {"imds-oidc-proxy/v1.2.3", `{"access_token":"` + secret + `"}`, "webhook: the access token is not a JWT\n", 200, exitFailure},
		"cut off":     {"imds-oidc-proxy/v1.2.3", `{"access_token":"` + strings.Repeat("a", askLimit), "webhook: the proxy's answer has no access_token\n", 200, exitFailure},
	} {
		t.Run(what, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/metadata/identity/oauth2/token" || r.Header.Get("Metadata") != "true" || r.URL.Query().Get("resource") != askResource {
					t.Errorf("got %s %v", r.URL, r.Header)
				}
				w.Header().Set("Server", tt.server)
				w.WriteHeader(tt.status)
				fmt.Fprint(w, tt.body)
			}))
			defer server.Close()
			getenv := func(name string) string {
				return map[string]string{"AZURE_POD_IDENTITY_AUTHORITY_HOST": server.URL + "/"}[name]
			}
			var stdout, stderr strings.Builder
			code := run(t.Context(), []string{"ask"}, getenv, &stdout, &stderr)
			got := stdout.String() + stderr.String()
			if code != tt.code || !strings.HasSuffix(got, tt.want) || strings.Count(got, "\n") != 1 || strings.Contains(got, secret) {
				t.Errorf("exit code %d, %q, want %d, %q", code, got, tt.code, tt.want)
			}
		})
	}
}

// TestAskForResource checks that the command requests a token for the resource that it names.
func TestAskForResource(t *testing.T) {
	const resource = "https://management.core.usgovcloudapi.net/"
	got := ""
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = r.URL.Query().Get("resource") }))
	defer server.Close()
	var stdout, stderr strings.Builder
	run(t.Context(), []string{"ask", resource}, func(string) string { return server.URL }, &stdout, &stderr)
	if got != resource {
		t.Errorf("got %q, want %q; %s", got, resource, stderr.String())
	}
}

func TestAskWithoutServer(t *testing.T) {
	server := httptest.NewServer(nil)
	server.Close()
	var stdout, stderr strings.Builder
	code := run(t.Context(), []string{"ask"}, func(string) string { return server.URL }, &stdout, &stderr)
	if got := stderr.String(); code != exitFailure || !strings.HasPrefix(got, "webhook: no answer from "+server.URL) || strings.Count(got, "\n") != 1 {
		t.Errorf("exit code %d, %q", code, got)
	}
}
