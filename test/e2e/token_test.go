package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"imds-oidc-proxy/test/kit/entra"
	"imds-oidc-proxy/test/kit/netns"
	"imds-oidc-proxy/test/kit/pod"
)

const (
	vault    = "https://vault.azure.net"
	tokenURL = "http://" + netns.MetadataAddress + "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=" + vault

	// patience bounds one test. It is long enough for a busy machine with the race
	// detector, and minutes shorter than the timeout of go test.
	patience = 2 * time.Minute

	// pollInterval is the time between two checks of a condition.
	pollInterval = 20 * time.Millisecond
)

// startPod starts a pod in the network namespace of this process.
func startPod(t *testing.T, cfg pod.Config) (*pod.Pod, context.Context) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	clearRules(t)
	cfg.Proxy, cfg.ProxyInit = program("proxy"), program("proxy-init")
	cfg.ProxyArgs = append([]string{"--log-level=debug"}, cfg.ProxyArgs...)
	p, err := pod.Start(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Stop)
	return p, ctx
}

// curl runs curl as the application's user.
func curl(t *testing.T, ctx context.Context, p *pod.Pod, args ...string) string {
	t.Helper()
	out, err := p.Application(ctx, nil, append([]string{"curl", "-sS", "--max-time", "30"}, args...)...)
	if err != nil {
		t.Fatalf("curl: %v: %s", err, out)
	}
	return out
}

// checkToken checks the client ID and the resource of a token.
func checkToken(t *testing.T, token, clientID, resource string) {
	t.Helper()
	got, err := entra.DecodeAccessToken(token)
	if err != nil {
		t.Fatal(err)
	}
	if got.ClientID != clientID || got.Resource != resource {
		t.Errorf("got a token for client %s and resource %s, want %s and %s", got.ClientID, got.Resource, clientID, resource)
	}
}

// checkDecoy checks that nothing reached the node's IMDS.
func checkDecoy(t *testing.T, p *pod.Pod) {
	t.Helper()
	if got := p.Decoy.Requests(); len(got) > 0 {
		t.Errorf("the node's IMDS saw %q, want nothing", got)
	}
}

// TestCurl: the documented curl command gets a token through the redirect, on both backends.
// The second request is a cache hit.
func TestCurl(t *testing.T) {
	for _, backend := range backends {
		t.Run(backend, func(t *testing.T) {
			p, ctx := startPod(t, pod.Config{Backend: backend})
			for range 2 {
				var answer map[string]string
				body := curl(t, ctx, p, "-H", "Metadata: true", tokenURL)
				if err := json.Unmarshal([]byte(body), &answer); err != nil {
					t.Fatalf("%v: %s", err, body)
				}
				checkToken(t, answer["access_token"], pod.ClientID, vault)
			}
			if got := len(p.Entra.Exchanges()); got != 1 {
				t.Errorf("two requests caused %d exchanges, want 1", got)
			}
			checkDecoy(t, p)
			if got := strings.Count(p.ProxyLog.String(), "successfully acquired token"); got != 2 {
				t.Errorf("the log has %d lines about acquired tokens, want 2:\n%s", got, p.ProxyLog)
			}
		})
	}
}

// TestExemption: requests of all users are redirected to the proxy, except those of the proxy's
// user and group, which reach the decoy.
func TestExemption(t *testing.T) {
	p, ctx := startPod(t, pod.Config{})
	versions := "http://" + netns.MetadataAddress + "/metadata/instance?api-version=2021-02-01"
	for _, test := range []struct {
		name    string
		uid     int
		decoyed bool
	}{
		{"the application", pod.ApplicationUID, false},
		{"root", 0, false},
		{"the proxy", pod.ProxyUID, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			headers, err := p.As(ctx, test.uid, "curl", "-sS", "--max-time", "30", "-o", "/dev/null", "-D", "-", "-H", "Metadata: true", versions)
			if err != nil {
				t.Fatalf("curl: %v: %s", err, headers)
			}
			if got := !strings.Contains(headers, "Server: imds-oidc-proxy"); got != test.decoyed {
				t.Errorf("answered by the decoy: %v, want %v:\n%s", got, test.decoyed, headers)
			}
		})
	}
}

// TestAzidentity runs unmodified versions of the Go SDK, the oldest is its first release.
func TestAzidentity(t *testing.T) {
	p, ctx := startPod(t, pod.Config{})
	for _, version := range azidentityVersions {
		for _, args := range [][]string{nil, {"--client-id=" + pod.ClientID}, {"--default-chain"}} {
			t.Run(fmt.Sprint(version, " ", strings.Join(args, "")), func(t *testing.T) {
				// Old credential chains give up after a second, which may be too short on a
				// busy machine, so the test tries twice.
				client := append([]string{program("azidentity-" + version)}, args...)
				out, err := p.Application(ctx, nil, client...)
				if err != nil {
					t.Logf("trying again after %v: %s", err, out)
					out, err = p.Application(ctx, nil, client...)
				}
				if err != nil {
					t.Fatalf("%v: %s", err, out)
				}
				var answer struct {
					Token     string
					ExpiresOn int64 `json:"expires_on"`
				}
				if err := json.Unmarshal([]byte(out), &answer); err != nil {
					t.Fatalf("%v: %s", err, out)
				}
				checkToken(t, answer.Token, pod.ClientID, vault)
				if life := time.Until(time.Unix(answer.ExpiresOn, 0)); life < time.Hour {
					t.Errorf("in the SDK the token expires in %s, want an hour or more", life)
				}
			})
		}
	}
	if got := len(p.Entra.Exchanges()); got != 1 {
		t.Errorf("all clients together caused %d exchanges, want 1", got)
	}
	checkDecoy(t, p)
}

// TestEntraFailure: if an exchange fails, the client gets IMDS's JSON error without secrets,
// and a later request gets a token.
func TestEntraFailure(t *testing.T) {
	const secret = "a-secret-of-entra"
	for _, test := range []struct {
		name   string
		fault  entra.Fault
		status string
	}{
		{"unknown application", entra.FaultAADSTS(700016), "400"},
		{"server error", entra.FaultStatus(500, secret), "500"},
		{"malformed answer", entra.FaultMalformedJSON(secret), "500"},
	} {
		t.Run(test.name, func(t *testing.T) {
			p, ctx := startPod(t, pod.Config{})
			p.Entra.FailAlways(test.fault)
			body := curl(t, ctx, p, "-H", "Metadata: true", "-w", "\n%{http_code}", tokenURL)
			body, status, _ := strings.Cut(body, "\n")
			var answer map[string]string
			if err := json.Unmarshal([]byte(body), &answer); err != nil {
				t.Fatalf("%v: %s", err, body)
			}
			if status != test.status || answer["error"] == "" || answer["error_description"] == "" {
				t.Errorf("got %s %s, want %s and an IMDS error", status, body, test.status)
			}
			p.Entra.Heal()
			waitForToken(t, ctx, p)
			for where, text := range map[string]string{"answer": body, "log": p.ProxyLog.String()} {
				for _, secret := range []string{secret, p.Token.Token()} {
					if strings.Contains(text, secret) {
						t.Errorf("the %s contains a secret:\n%s", where, text)
					}
				}
			}
			checkDecoy(t, p)
		})
	}
}

// waitForToken sends requests until one gets a token. The first ones may fail, because the
// proxy caches a failure for a while.
func waitForToken(t *testing.T, ctx context.Context, p *pod.Pod) {
	t.Helper()
	waitUntil(t, ctx, "a request gets a token", func() bool {
		body, err := p.Application(ctx, nil, "curl", "-sS", "--max-time", "30", "-H", "Metadata: true", tokenURL)
		if err != nil {
			t.Fatalf("no token after the end of Entra's failure: %v: %s", err, body)
		}
		return strings.Contains(body, "access_token")
	})
}

// TestTermination: graceful shutdown. After SIGTERM the request in flight gets its token, and
// the proxy ends with exit code 0.
func TestTermination(t *testing.T) {
	p, ctx := startPod(t, pod.Config{})
	p.Entra.FailAlways(entra.FaultHang())
	type answer struct {
		body string
		err  error
	}
	answers := make(chan answer, 1)
	go func() {
		body, err := p.Application(ctx, nil, "curl", "-sS", "--max-time", "30", "-H", "Metadata: true", tokenURL)
		answers <- answer{body, err}
	}()
	waitUntil(t, ctx, "the exchange hangs", func() bool { return p.Entra.InFlight() == 1 })
	if err := p.SignalProxy(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := p.ProxyLog.WaitFor(ctx, "stopping the proxy server"); err != nil {
		t.Fatal(err)
	}
	p.Entra.Heal()
	if got := <-answers; got.err != nil || !strings.Contains(got.body, "access_token") {
		t.Errorf("the request in flight got %q, %v; want a token", got.body, got.err)
	}
	if code, err := p.WaitProxy(ctx); err != nil || code != 0 {
		t.Errorf("exit code %d, %v; want 0\n%s", code, err, p.ProxyLog)
	}
}

// TestRotation: after the kubelet has renewed the federated token, the next exchange uses the
// new one.
func TestRotation(t *testing.T) {
	p, ctx := startPod(t, pod.Config{})
	curl(t, ctx, p, "-H", "Metadata: true", tokenURL)
	if err := p.Token.Renew(); err != nil {
		t.Fatal(err)
	}
	curl(t, ctx, p, "-H", "Metadata: true", strings.Replace(tokenURL, vault, "https://management.azure.com/", 1))
	var ids []string
	for _, exchange := range p.Entra.Exchanges() {
		ids = append(ids, exchange.AssertionID)
	}
	if len(ids) != 2 || ids[0] == ids[1] {
		t.Errorf("the exchanges used the assertions %q, want two different ones", ids)
	}
}

// TestNodeIdentity: no form of a path gets a token for the node's identity (CVE-2022-23551).
func TestNodeIdentity(t *testing.T) {
	p, ctx := startPod(t, pod.Config{})
	for _, path := range []string{
		"/metadata/Identity/oauth2/token", "/metadata/identity/OAuth2/Token", "/metadata/identity%5coauth2/token",
		"/metadata/instance/../identity/oauth2/token", "/metadata/identity/oauth2/token;a", "/metadata/identity/issuecredential",
	} {
		body := curl(t, ctx, p, "--path-as-is", "-H", "Metadata: true",
			"http://"+netns.MetadataAddress+path+"?api-version=2018-02-01&resource="+vault)
		if strings.Contains(body, pod.DecoyToken) {
			t.Errorf("%s: got a token for the node's identity", path)
		}
	}
	for _, request := range p.Decoy.Requests() {
		if strings.Contains(strings.ToLower(request), "identity") {
			t.Errorf("the node's IMDS saw %s", request)
		}
	}
	body := curl(t, ctx, p, "-H", "Metadata: true", "http://"+netns.MetadataAddress+"/metadata/instance?api-version=2021-02-01")
	if want := "GET /metadata/instance"; !slices.Contains(p.Decoy.Requests(), want) {
		t.Errorf("instance metadata was not forwarded: got %s; the decoy saw %q", body, p.Decoy.Requests())
	}
}

// TestWrongUser: a proxy whose user is not exempt from the redirect would forward requests to
// itself. It refuses to start, unless forwarding is off.
func TestWrongUser(t *testing.T) {
	// Without the port guard, which refuses a proxy of another user: see TestPortGuardOfAnotherUser.
	p, ctx := startPod(t, pod.Config{Backend: "nft", ProxyInitArgs: []string{"--proxy-uid=1502"}, ProxyArgs: []string{"--imds-passthrough=off"}})
	if body := curl(t, ctx, p, "-H", "Metadata: true", tokenURL); !strings.Contains(body, "access_token") {
		t.Errorf("a proxy without forwarding answered %s", body)
	}
	if err := p.SignalProxy(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code, err := p.WaitProxy(ctx); err != nil || code != 0 {
		t.Fatalf("exit code %d, %v; want 0", code, err)
	}

	out, err := p.RunProxy(ctx, "--imds-passthrough=on")
	if err == nil || !strings.Contains(out, "runAsUser") {
		t.Errorf("got %v, %q; want an error that says how to fix it", err, out)
	}
	checkDecoy(t, p)
}

// waitUntil waits until a condition holds.
func waitUntil(t *testing.T, ctx context.Context, what string, condition func() bool) {
	t.Helper()
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	for !condition() {
		select {
		case <-ctx.Done():
			t.Fatalf("timeout while waiting until %s", what)
		case <-ticker.C:
		}
	}
}
