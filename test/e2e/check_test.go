package e2e

import (
	"context"
	"encoding/json"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"imds-oidc-proxy/test/kit/netns"
	"imds-oidc-proxy/test/kit/pod"
)

// foreignMetadataAddress removes the metadata address from the loopback device, so that it
// is not a local address, as in a pod. Then a connection that is bound to the loopback device
// gets no answer unless it is redirected.
func foreignMetadataAddress(t *testing.T) {
	t.Helper()
	address := netns.MetadataAddress + "/32"
	ip(t, "address", "delete", address, "dev", "lo")
	ip(t, "route", "add", address, "dev", "lo")
	t.Cleanup(func() {
		ip(t, "route", "delete", address, "dev", "lo")
		ip(t, "address", "add", address, "dev", "lo")
	})
}

func ip(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// checkReport has the fields of `proxy check --output=json` that these tests read.
type checkReport struct {
	ExitStatus  int    `json:"exit_status"`
	FirstFailed string `json:"first_failed"`
	Steps       []struct {
		Step     string
		Findings []struct{ Status, Item, Text string }
	}
}

// text returns the status and the text of a finding.
func (r checkReport) text(step, item string) string {
	for _, s := range r.Steps {
		for _, f := range s.Findings {
			if s.Step == step && f.Item == item {
				return f.Status + ": " + f.Text
			}
		}
	}
	return ""
}

// runCheck runs `proxy check` in the pod as a user.
func runCheck(t *testing.T, ctx context.Context, p *pod.Pod, uid int, args ...string) checkReport {
	t.Helper()
	env := append([]string{"env", "-i"}, p.Environment()...)
	command := slices.Concat(env, []string{p.ProxyProgram(), "check", "--output=json", "--resource=" + vault}, args)
	out, err := p.As(ctx, uid, command...)
	var report checkReport
	if jsonErr := json.NewDecoder(strings.NewReader(out)).Decode(&report); jsonErr != nil {
		t.Fatalf("%v, %v: %s", err, jsonErr, out)
	}
	if (err == nil) != (report.ExitStatus == 0) {
		t.Errorf("the report has exit status %d, but the process ended with %v", report.ExitStatus, err)
	}
	for _, secret := range []string{p.Token.Token(), "eyJ"} {
		if strings.Contains(out, secret) {
			t.Errorf("the report contains a token:\n%s", out)
		}
	}
	return report
}

// TestCheck: `proxy check` finds no failure in a healthy pod. As the application's user it
// reports that the redirect leads to the proxy. As the proxy's user it can check this only with
// the native rules.
func TestCheck(t *testing.T) {
	for _, backend := range backends {
		t.Run(backend, func(t *testing.T) {
			p, ctx := startPod(t, pod.Config{Backend: backend})
			foreignMetadataAddress(t)
			asProxy := "skipped: the proxy's user is exempt from the redirect"
			if backend == "native" {
				asProxy = "ok: the rules are in place and lead to the proxy"
			}
			for _, test := range []struct {
				uid      int
				redirect string
			}{
				{pod.ProxyUID, asProxy},
				{pod.ApplicationUID, "ok: requests to the metadata address reach the proxy"},
			} {
				report := runCheck(t, ctx, p, test.uid)
				if report.ExitStatus != 0 {
					t.Errorf("UID %d: got %+v", test.uid, report)
				}
				if got := report.text("imds", "redirect"); !strings.HasPrefix(got, test.redirect) {
					t.Errorf("UID %d: got %q, want %q", test.uid, got, test.redirect)
				}
				if got := report.text("exchange", "token"); !strings.HasPrefix(got, "ok: ") {
					t.Errorf("UID %d: got %q", test.uid, got)
				}
			}
			checkDecoy(t, p)
		})
	}
}

// TestPortGuardOfAnotherUser: proxy-init was configured for another user than the proxy's, so the
// port guard refuses the proxy's answers. The probe and the check say so.
func TestPortGuardOfAnotherUser(t *testing.T) {
	p, ctx := startPod(t, pod.Config{})
	foreignMetadataAddress(t)
	for _, args := range [][]string{{"--seal", "--proxy-uid=1502"}, {"--seal", "--proxy-gid=1502"}} {
		// It fails for another user, since the proxy holds the port, and the rules stay.
		if out, err := p.RunProxyInit(ctx, args...); exitCode(t, err) != 12 && err != nil {
			t.Fatalf("proxy-init %q: %v: %s", args, err, out)
		}
		out, err := p.As(ctx, pod.ProxyUID, p.ProxyProgram(), "--probe", "--probe-timeout=500ms")
		if want := "the port guard of proxy-init expects another user or group"; exitCode(t, err) != 1 || !strings.Contains(out, want) {
			t.Errorf("%q: --probe: %v, want exit code 1 and %q: %s", args, err, want, out)
		}
		if got := runCheck(t, ctx, p, pod.ProxyUID).text("imds", "127.0.0.1:8000"); !strings.HasPrefix(got, "fail: the proxy listens on this port, but its answers are refused") {
			t.Errorf("%q: proxy check: %q", args, got)
		}
	}
	if out, err := p.RunProxyInit(ctx); err != nil {
		t.Fatalf("proxy-init: %v: %s", err, out)
	}
	if got := runCheck(t, ctx, p, pod.ProxyUID).text("imds", "127.0.0.1:8000"); got != "ok: the proxy is ready" {
		t.Errorf("proxy check with the right user: %q", got)
	}
	checkDecoy(t, p)
}

// TestCheckWithoutRedirect: as the application's user, the check reports that metadata
// requests do not reach the proxy. This is a failure unless --no-redirect is set.
func TestCheckWithoutRedirect(t *testing.T) {
	p, ctx := startPod(t, pod.Config{})
	clearRules(t)
	foreignMetadataAddress(t)
	report := runCheck(t, ctx, p, pod.ApplicationUID)
	if got := report.text("imds", "redirect"); report.FirstFailed != "imds" || !strings.HasPrefix(got, "fail: there is no redirect") {
		t.Errorf("got %q, %q", report.FirstFailed, got)
	}
	report = runCheck(t, ctx, p, pod.ApplicationUID, "--no-redirect")
	if got := report.text("imds", "redirect"); report.ExitStatus != 0 || !strings.HasPrefix(got, "note: ") {
		t.Errorf("got exit status %d, %q", report.ExitStatus, got)
	}
	checkDecoy(t, p)
}

// TestCheckAskIMDS: the check sends requests to the node's IMDS only with --ask-imds, and
// none that needs an identity.
func TestCheckAskIMDS(t *testing.T) {
	p, ctx := startPod(t, pod.Config{})
	runCheck(t, ctx, p, pod.ProxyUID)
	checkDecoy(t, p)
	report := runCheck(t, ctx, p, pod.ProxyUID, "--ask-imds")
	if got, want := p.Decoy.Requests(), []string{"GET /metadata/versions"}; !slices.Equal(got, want) {
		t.Errorf("the node's IMDS saw %q, want %q", got, want)
	}
	if got := report.text("imds", "node's IMDS"); !strings.HasPrefix(got, "ok: reachable for the proxy's user") {
		t.Errorf("got %q", got)
	}
	report = runCheck(t, ctx, p, pod.ApplicationUID, "--ask-imds")
	if got := report.text("imds", "node's IMDS"); !strings.HasPrefix(got, "ok: not reachable for this user") {
		t.Errorf("got %q", got)
	}
}

// TestProxyOnPrivilegedPort: the proxy's user must not use such a port, and the error says
// how to fix it.
func TestProxyOnPrivilegedPort(t *testing.T) {
	p, ctx := startPod(t, pod.Config{})
	out, err := p.RunProxy(ctx, "--proxy-port=88", "--imds-passthrough=off")
	if err == nil || !strings.Contains(out, "--proxy-port (PROXY_PORT) 88") || !strings.Contains(out, "of 1024 or more") {
		t.Errorf("got %v: %s", err, out)
	}
}
