package e2e

import (
	"strings"
	"testing"
	"time"
)

const metadata80 = "tcp/169.254.169.254:80"

// TestRedirectResetsOpenConnections: the nat table applies to new connections only, so rules
// in the filter table reset connections that were open before.
func TestRedirectResetsOpenConnections(t *testing.T) {
	onBackends(t, func(t *testing.T, pod *redirectPod, backend string) {
		apps := pod.keep(appUser, metadata80)
		proxys := pod.keep(proxyUser, metadata80)
		other := pod.keep(appUser, "tcp/169.254.169.254:443")
		for _, h := range []*helper{apps, proxys, other} {
			if h.first != byIMDS {
				t.Fatalf("before the rules: %s, want %s", h.first, byIMDS)
			}
		}
		pod.install("--backend=" + backend)
		for _, tt := range []struct {
			name string
			h    *helper
			want string
		}{{"the app's", apps, isReset}, {"the app's to 443", other, isReset}, {"the proxy's", proxys, byIMDS}} {
			if got := tt.h.again(); got != tt.want {
				t.Errorf("%s connection, forwarding: %s, want %s", tt.name, got, tt.want)
			}
		}
		pod.install("--backend="+backend, "--seal")
		if got := proxys.again(); got != isReset {
			t.Errorf("the proxy's connection, sealed: %s, want %s", got, isReset)
		}
	})
}

// TestRedirectLetsProxyClose: the last packets of a closed connection have no socket and so
// no owner. If a rule rejected them, the connection would stay open on the other side.
func TestRedirectLetsProxyClose(t *testing.T) {
	onBackends(t, func(t *testing.T, pod *redirectPod, backend string) {
		pod.install("--backend=" + backend)
		for range 5 {
			pod.expect(proxyUser, metadata80, byIMDS)
		}
		// The node's connections in all states except LISTEN (0A) and TIME_WAIT (06).
		unfinished := func() string {
			var lines []string
			for line := range strings.Lines(pod.node.mustRun("", "cat", "/proc/net/tcp")) {
				f := strings.Fields(line)
				if len(f) > 3 && strings.HasSuffix(f[1], ":0050") && f[3] != "0A" && f[3] != "06" {
					lines = append(lines, line)
				}
			}
			return strings.Join(lines, "")
		}
		deadline := time.Now().Add(readyTimeout)
		for unfinished() != "" {
			if time.Now().After(deadline) {
				t.Fatalf("connections that stay open:\n%s", unfinished())
			}
			time.Sleep(10 * time.Millisecond)
		}
	})
}

// TestRedirectOfLocalAddress: the redirect also works if the loopback device has the metadata
// address, as in the demo and in other tests.
func TestRedirectOfLocalAddress(t *testing.T) {
	onBackends(t, func(t *testing.T, pod *redirectPod, backend string) {
		pod.mustRun("", "ip", "address", "add", "169.254.169.254/32", "dev", "lo")
		pod.answer(byIMDS+"=tcp/169.254.169.254:80", byIMDS+"=tcp/169.254.169.254:443")
		for _, mode := range []string{"--seal=false", "--seal"} {
			r := pod.install("--backend="+backend, "--proxy-port=8001", mode)
			if got := logField(t, r, "proven_by"); got != "connection" {
				t.Errorf("%s: proven by %q, want a connection", mode, got)
			}
			pod.expect(appUser, "tcp/169.254.169.254:443", isRefused)
		}
		pod.install("--backend=" + backend)
		pod.answerAs(proxyUser, byProxy+"=tcp/127.0.0.1:8000")
		pod.expect(appUser, metadata80, byProxy)
		pod.expect(proxyUser, metadata80, byIMDS)
		pod.expect(appUser, "tcp/169.254.169.254:443", isRefused)
		pod.expect(proxyUser, "tcp/169.254.169.254:443", isRefused)
	})
}

func TestRedirectProof(t *testing.T) {
	onBackends(t, func(t *testing.T, pod *redirectPod, backend string) {
		mode := "--backend=" + backend
		if got := logField(t, pod.install(mode, "--verify=false"), "proven_by"); got != "rules (--verify=false)" {
			t.Errorf("--verify=false: proven by %q", got)
		}
		if got := logField(t, pod.install(mode), "proven_by"); got != "connection" {
			t.Errorf("proven by %q, want a connection", got)
		}
		// As the proxy's user proxy-init is exempt, and must not connect to the real IMDS.
		asProxy := []string{"setpriv", "--reuid=1501", "--regid=1501", "--clear-groups",
			"--inh-caps=+net_admin,+net_raw", "--ambient-caps=+net_admin,+net_raw", "--"}
		r := pod.tryInit(initOptions{prefix: asProxy, keepInheritable: true}, mode)
		if got := logField(t, r, "proven_by"); r.code != 0 || !strings.Contains(got, "exempt") {
			t.Errorf("as the proxy's user: exit code %d, proven by %q, want only the rules\n%s", r.code, got, r.stderr)
		}
		// If another rule drops the connection, the proof fails with its exit code, and
		// nothing reaches the metadata service.
		pod.iptables(backend, "-t mangle -A OUTPUT -p tcp --dport 80 -d 169.254.169.254 -j DROP")
		r = pod.tryInit(initOptions{}, mode)
		if r.code != 9 {
			t.Errorf("with the connection dropped: exit code %d, want 9\n%s", r.code, r.stderr)
		}
		pod.iptables(backend, "-t mangle -F OUTPUT")
		pod.answerAs(proxyUser, byProxy+"=tcp/127.0.0.1:8000")
		if got := logField(t, pod.install(mode), "proven_by"); !strings.Contains(got, "in use") {
			t.Errorf("with a running proxy: proven by %q, want only the rules", got)
		}
	})
}

// TestRedirectWithoutRoute: without a route the redirect does not work, because the kernel
// needs a route before it applies the nat table.
func TestRedirectWithoutRoute(t *testing.T) {
	t.Parallel()
	pod := newRedirectPod(t)
	pod.mustRun("", "ip", "route", "delete", "default")
	r := pod.tryInit(initOptions{})
	if r.code != 9 || !strings.Contains(logField(t, r, "remedy"), "no route") {
		t.Errorf("exit code %d, want 9 and a remedy about the missing route\n%s", r.code, r.stderr)
	}
}
