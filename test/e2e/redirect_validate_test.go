package e2e

import (
	"strings"
	"testing"
)

// validator is a user without privileges that is not the proxy.
var validator = asker{name: "validator", uid: 65532, gid: 65532}

// validate runs netrules.Validate in the pod, and checks its proof or the kind of its error.
func (p *redirectPod) validate(u asker, want string) {
	p.t.Helper()
	if got := strings.TrimSpace(p.mustRun("", u.as(program("redirectpod"), "validate")...)); got != want {
		p.t.Errorf("validated as %s: %s, want %s", u.name, got, want)
	}
}

// TestValidate: another program has installed the redirect, from outside of the pod's namespace. A
// process without privileges proves redirect and port guard by one connection, which sends
// nothing to the metadata service if they are missing.
func TestValidate(t *testing.T) {
	t.Parallel()
	pod := newRedirectPod(t)
	pod.validate(validator, "no redirect")
	for _, backend := range iptablesBackends {
		pod.install("--backend=" + backend)
		pod.validate(validator, "no guard")
		pod.install("--cleanup")
	}
	pod.node.mustRun("", program("redirectpod"), "install", pod.ns)
	for _, u := range []asker{validator, rootUser, otherGroup, otherUser} {
		pod.validate(u, "connection")
	}
	pod.validate(proxyUser, "other") // the rules do not apply to it
	pod.install("--check")           // it is the redirect of proxy-init

	pod.mustRun("", "sysctl", "-q", "-w", "net.ipv4.tcp_syncookies=2")
	pod.validate(validator, "connection")
	pod.mustRun("delete chain inet imds_proxy guard_out", "nft", "-f", "-")
	pod.validate(validator, "no guard")
	pod.mustRun("", "sysctl", "-q", "-w", "net.ipv4.tcp_syncookies=1")
	pod.validate(validator, "no guard")
	pod.node.mustRun("", program("redirectpod"), "install", pod.ns)

	pod.mustRun("insert rule inet imds_proxy nat_out ip daddr 169.254.169.254 tcp dport 80 dnat ip to 198.51.100.10:80", "nft", "-f", "-")
	pod.validate(validator, "no redirect")
	pod.node.mustRun("", program("redirectpod"), "install", pod.ns)
	proxy := pod.answerAs(proxyUser, byProxy+"=tcp/127.0.0.1:8000")
	pod.validate(validator, "connection (to the running proxy)")
	proxy.stdin.Close()
	for range proxy.lines {
	}
	pod.answerAs(appUser, byOther+"=tcp/127.0.0.1:8000")
	pod.validate(validator, "port taken")
}
