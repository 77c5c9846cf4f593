package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"imds-oidc-proxy/test/kit/pod"
)

// startAs starts redirectpod as a user of the pod. The caller must call stop to end it.
func startAs(t *testing.T, uid int, args ...string) (stop func()) {
	t.Helper()
	cmd := exec.Command(program("redirectpod"), args...)
	cmd.Env = append(os.Environ(), quickExit)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	h := startHelper(t, cmd)
	return func() {
		h.stdin.Close()
		for range h.lines {
		}
	}
}

// TestImposterAtThePort: while the proxy is not running, a process of another user binds its
// port. It answers in the proxy's place, unless there is a port guard: then its clients are
// refused. The probe, proxy-init and the check fail and name both users. They succeed once the
// proxy is running again.
func TestImposterAtThePort(t *testing.T) {
	for _, backend := range []string{"native", "nft"} { // legacy has no guard either
		t.Run(backend, func(t *testing.T) { testImposterAtThePort(t, backend) })
	}
}

func testImposterAtThePort(t *testing.T, backend string) {
	p, ctx := startPod(t, pod.Config{Backend: backend})
	foreignMetadataAddress(t)
	if err := p.SignalProxy(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if _, err := p.WaitProxy(ctx); err != nil {
		t.Fatal(err)
	}
	for _, address := range []string{"127.0.0.1:8000", "0.0.0.0:8000", "[::]:8000"} {
		for _, uid := range []int{pod.ApplicationUID, 0} {
			t.Run(fmt.Sprintf("%s as %d", address, uid), func(t *testing.T) {
				stop := startAs(t, uid, "impersonate", address)
				defer stop()
				out, err := p.Application(ctx, nil, "curl", "-sS", "--max-time", "30", "http://127.0.0.1:8000/readyz")
				if refused := strings.Contains(out, "Failed to connect"); backend == "native" && !refused || backend != "native" && out != "ok" {
					t.Fatalf("the imposter answers %q (%v), want it to be refused: %t", out, err, backend == "native")
				}
				wantImposterRefused(t, ctx, p, uid)
			})
		}
	}
	t.Run("not HTTP", func(t *testing.T) {
		stop := startAs(t, pod.ApplicationUID, "answer", "garbage=tcp/127.0.0.1:8000")
		defer stop()
		wantProbeRefused(t, ctx, p, pod.ApplicationUID)
	})
	if err := p.StartProxy(ctx); err != nil { // it runs the probe
		t.Fatal(err)
	}
	for _, args := range [][]string{nil, {"--verify=false"}} { // --check: TestRedirectCheck
		if out, err := p.RunProxyInit(ctx, args...); err != nil {
			t.Errorf("proxy-init %q while the proxy is running: %v: %s", args, err, out)
		}
	}
	if got := runCheck(t, ctx, p, pod.ProxyUID).text("imds", "127.0.0.1:8000"); got != "ok: the proxy is ready" {
		t.Errorf("proxy check: got %q", got)
	}
	checkDecoy(t, p)
}

// listensThere returns the part of an error that names both users.
func listensThere(uid int) string {
	return fmt.Sprintf("a process of UID %d listens there, and the proxy's user is UID %d", uid, pod.ProxyUID)
}

func wantProbeRefused(t *testing.T, ctx context.Context, p *pod.Pod, uid int) {
	t.Helper()
	out, err := p.As(ctx, pod.ProxyUID, p.ProxyProgram(), "--probe", "--probe-timeout=500ms")
	listens := listensThere(uid)
	if code := exitCode(t, err); code != 1 || !strings.Contains(out, listens) || strings.Count(out, "\n") != 0 {
		t.Errorf("--probe: exit code %d, want 1 and one line with %q: %s", code, listens, out)
	}
}

func wantImposterRefused(t *testing.T, ctx context.Context, p *pod.Pod, uid int) {
	t.Helper()
	wantProbeRefused(t, ctx, p, uid)

	listens := listensThere(uid)
	for _, args := range [][]string{nil, {"--check"}, {"--verify=false"}} {
		out, err := p.RunProxyInit(ctx, args...)
		if code := exitCode(t, err); code != 12 || !strings.Contains(out, listens) {
			t.Errorf("proxy-init %q: exit code %d, want 12 and %q: %s", args, code, listens, out)
		}
	}

	report := runCheck(t, ctx, p, pod.ProxyUID)
	want := fmt.Sprintf("fail: a process of UID %d listens on this port", uid)
	if got := report.text("imds", "127.0.0.1:8000"); !strings.HasPrefix(got, want) || report.ExitStatus != 15 {
		t.Errorf("proxy check: exit status %d, got %q, want 15 and %q", report.ExitStatus, got, want)
	}
}

// exitCode returns the exit code of a program from the error of its run.
func exitCode(t *testing.T, err error) int {
	t.Helper()
	if err == nil {
		return 0
	}
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok {
		t.Fatal(err)
	}
	return exit.ExitCode()
}
