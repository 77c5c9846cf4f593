package e2e

import (
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"imds-oidc-proxy/test/kit/pod"
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

// TestRequireRedirect: the proxy, which the redirect exempts, starts with --require-redirect if the
// native rules are there, and otherwise exits before it serves. It sends nothing to the node's IMDS.
func TestRequireRedirect(t *testing.T) {
	for name, seal := range map[string]bool{"forwarding": false, "sealed": true} {
		t.Run(name, func(t *testing.T) {
			config := pod.Config{ProxyArgs: []string{"--require-redirect"}}
			if seal {
				config.ProxyInitArgs, config.ProxyArgs = []string{"--seal"}, append(config.ProxyArgs, "--imds-passthrough=off")
			}
			p, ctx := startPod(t, config)
			refused := func(when, want string, args ...string) {
				t.Helper()
				out, err := p.RunProxy(ctx, append(args, "--require-redirect", "--imds-passthrough=off")...)
				text := fmt.Sprint(out, err)
				exit, _ := errors.AsType[*exec.ExitError](err)
				if exit == nil || exit.ExitCode() != 13 || !strings.Contains(text, "there is no redirect in this pod: the CNI plugin did not run on this node") || !strings.Contains(text, want) {
					t.Errorf("%s: %s; want exit code 13 and %q", when, text, want)
				}
			}
			refused("a redirect to another port", "another process answered", "--proxy-port=8001")
			if err := p.SignalProxy(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			if _, err := p.WaitProxy(ctx); err != nil {
				t.Fatal(err)
			}
			clearRules(t)
			refused("no rules", "connection refused")
			if out, err := p.RunProxyInit(ctx, "--backend=nft"); err != nil {
				t.Fatal(err, out)
			}
			refused("rules of iptables", "connection refused")
			checkDecoy(t, p)
		})
	}
}
