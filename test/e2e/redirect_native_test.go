package e2e

import (
	"context"
	"fmt"
	"io"
	"strings"
	"testing"
)

// TestRedirectNativeAlone: the native backend needs no program, no privilege but NET_ADMIN, and
// no module of iptables.
func TestRedirectNativeAlone(t *testing.T) {
	t.Parallel()
	for _, o := range []initOptions{
		{caps: "-all,+net_admin", noPrograms: true},
		{noPrograms: true, keepInheritable: true, prefix: []string{"setpriv", "--reuid=1000", "--regid=1000", "--clear-groups",
			"--inh-caps=+net_admin", "--ambient-caps=+net_admin", "--"}},
	} {
		pod := newRedirectPod(t)
		for _, args := range [][]string{nil, {"--check"}, {"--backend=native", "--seal", "--deny=168.63.129.16:80,10.1.0.0/16"}, {"--cleanup"}, nil} {
			if r := pod.tryInit(o, args...); r.code != 0 {
				t.Fatalf("%q: exit code %d\n%s", args, r.code, r.stderr)
			}
		}
		pod.answerAs(proxyUser, byProxy+"=tcp/127.0.0.1:8000")
		pod.expect(appUser, metadata80, byProxy)
		listing := pod.mustRun("", "nft", "--debug=netlink", "list", "ruleset")
		if !strings.Contains(listing, "[ redir ") {
			t.Errorf("the listing has no expression of the redirect:\n%s", listing)
		}
		for _, xt := range []string{"[ match ", "[ target ", "xt "} {
			if strings.Contains(listing, xt) {
				t.Errorf("the listing has %q, an expression of iptables:\n%s", xt, listing)
			}
		}
	}
}

// TestRedirectManyDenies: as many destinations as --deny accepts are one set and not as many
// rules, which the kernel would not accept in one transaction.
func TestRedirectManyDenies(t *testing.T) {
	t.Parallel()
	pod := newRedirectPod(t)
	var targets []string
	for i := range 150 {
		targets = append(targets, fmt.Sprintf("10.%d.0.0/16", i), fmt.Sprintf("192.0.2.%d:%d", i, 1000+i))
	}
	targets = append(targets, "198.51.100.10:80", "168.63.129.16")
	args := []string{"--backend=native", "--deny=" + strings.Join(targets, ",")}
	pod.install(args...)
	pod.install(append(args, "--check")...)
	for _, u := range []asker{appUser, proxyUser} {
		pod.expect(u, "tcp/198.51.100.10:80", isRefused)
		pod.expect(u, "tcp/198.51.100.10:443", byOutside)
		pod.expect(u, "tcp/168.63.129.16:80", isRefused)
		pod.expect(u, "udp/168.63.129.16:53", isRefused)
	}
	if n := strings.Count(pod.rules(), "@deny"); n != 3 {
		t.Errorf("%d rules for the sets, want 3", n)
	}
}

// TestRedirectOwnedTable: another process owns a table with the name of ours. The error names this
// reason, and not the capability, which is there. Auto does not fall back to iptables.
func TestRedirectOwnedTable(t *testing.T) {
	t.Parallel()
	for _, backend := range []string{"native", "auto"} {
		pod := newRedirectPod(t)
		nft := pod.command("nft", "-i") // the table exists until it ends
		stdin, err := nft.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := nft.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(stdin, "add table inet imds_proxy { flags owner; }\n"); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), readyTimeout)
		defer cancel()
		waitUntil(t, ctx, "the table exists", func() bool {
			return strings.Contains(pod.mustRun("", "nft", "list", "tables"), "imds_proxy")
		})
		r := pod.tryInit(initOptions{}, "--backend="+backend)
		if r.code != 3 || !strings.Contains(r.stderr, "belongs to another process") || strings.Contains(r.stderr, "NET_ADMIN") {
			t.Errorf("%s: exit code %d, want 3 and the owner\n%s", backend, r.code, r.stderr)
		}
		if rules := pod.rules(); strings.Contains(rules, "IMDS_PROXY") {
			t.Errorf("%s: it fell back to iptables:\n%s", backend, rules)
		}
		stdin.Close()
		_ = nft.Wait() // its exit code does not matter
		pod.install("--backend=" + backend)
	}
}

// TestRedirectUserNamespace: in a user namespace of its own, proxy-init has all capabilities and
// still may not change the network namespace that it was started in. It may change one that
// belongs to the user namespace, as that of a pod with hostUsers: false.
func TestRedirectUserNamespace(t *testing.T) {
	t.Parallel()
	pod := newRedirectPod(t)
	for _, backend := range []string{"native", "auto", "nft"} {
		r := pod.tryInit(initOptions{caps: "+all", prefix: []string{"unshare", "--user", "--map-root-user", "--"}}, "--backend="+backend)
		if r.code != 3 || !strings.Contains(r.stderr, "user namespace") {
			t.Errorf("%s: exit code %d, want 3 and the user namespace\n%s", backend, r.code, r.stderr)
		}
	}
	own := []string{"unshare", "--user", "--map-root-user", "--net", "--", "sh", "-c", `ip link set lo up && ip address add 169.254.169.254/32 dev lo && exec "$@"`, "sh"}
	if r := pod.tryInit(initOptions{caps: "+all", prefix: own}, "--backend=native"); r.code != 0 || logField(t, r, "proven_by") != "connection" {
		t.Errorf("in a user namespace with its network namespace: exit code %d, want 0\n%s", r.code, r.stderr)
	}
}
