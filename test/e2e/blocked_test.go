package e2e

import (
	"context"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"imds-oidc-proxy/test/kit/pod"
)

// startSecondProxy starts another proxy in the pod, at port 8001, which may not become ready.
func startSecondProxy(t *testing.T, p *pod.Pod, args ...string) {
	t.Helper()
	cmd := exec.Command(p.ProxyProgram(), append([]string{"--proxy-port=8001", "--imds-passthrough=off"}, args...)...)
	cmd.Env = append(p.Environment(), quickExit)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: pod.ProxyUID, Gid: pod.ProxyUID}}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // an error means that it has exited already
		_ = cmd.Wait()
	})
}

// readiness returns the answer of the second proxy's /readyz.
func readiness(ctx context.Context, p *pod.Pod) string {
	out, _ := p.Application(ctx, nil, "curl", "-sS", "--max-time", "5", "http://127.0.0.1:8001/readyz?verbose")
	return out
}

// TestRequireIMDSBlocked: without a redirect, a proxy with --require-imds-blocked becomes ready only
// when the node's IMDS is blocked, and sends no bytes to it. `proxy check` fails for the same reason.
// A proxy without the flag is ready at once.
func TestRequireIMDSBlocked(t *testing.T) {
	p, ctx := startPod(t, pod.Config{})
	clearRules(t)
	t.Run("not required", func(t *testing.T) {
		startSecondProxy(t, p)
		waitUntil(t, ctx, "the proxy is ready", func() bool { return strings.Contains(readiness(ctx, p), "readyz check passed") })
		if got := readiness(ctx, p); strings.Contains(got, "imds-blocked") {
			t.Errorf("got a check that was not asked for:\n%s", got)
		}
	})
	startSecondProxy(t, p, "--require-imds-blocked")
	const reason = "[-]imds-blocked failed: this pod can reach the node's IMDS at 169.254.169.254:80"
	waitUntil(t, ctx, "the proxy sees the node's IMDS", func() bool { return strings.Contains(readiness(ctx, p), reason) })
	out, err := p.As(ctx, pod.ProxyUID, p.ProxyProgram(), "--probe", "--proxy-port=8001", "--probe-timeout=1s")
	if err == nil || !strings.Contains(out, "this pod can reach the node's IMDS") {
		t.Errorf("the probe: %v: %s", err, out)
	}
	checkDecoy(t, p)
	required := []string{"--no-redirect", "--imds-passthrough=off", "--require-imds-blocked"}
	report := runCheck(t, ctx, p, pod.ApplicationUID, required...)
	if got := report.text("imds", "node's IMDS"); report.FirstFailed != "imds" || !strings.HasPrefix(got, "fail: reachable from this pod") {
		t.Errorf("proxy check while it is reachable: %q, %q", report.FirstFailed, got)
	}

	foreignMetadataAddress(t) // from here on, packets to it get no answer, as with a NetworkPolicy
	waitUntil(t, ctx, "the proxy is ready", func() bool { return strings.Contains(readiness(ctx, p), "[+]imds-blocked ok") })
	report = runCheck(t, ctx, p, pod.ApplicationUID, required...)
	if got := report.text("imds", "node's IMDS"); report.ExitStatus != 0 || !strings.HasPrefix(got, "ok: blocked") {
		t.Errorf("proxy check while it is blocked: exit status %d, %q", report.ExitStatus, got)
	}
}

// TestSealedPodIsBlocked: in a sealed pod, the redirect leads the proxy's own connection back to it.
func TestSealedPodIsBlocked(t *testing.T) {
	p, _ := startPod(t, pod.Config{ProxyInitArgs: []string{"--seal"}, ProxyArgs: []string{"--imds-passthrough=off", "--require-imds-blocked"}})
	checkDecoy(t, p)
}
