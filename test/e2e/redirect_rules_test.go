package e2e

import (
	"encoding/json"
	"strings"
	"sync"
	"testing"
)

// onBackends runs a test once for each backend, each time in a new pod.
func onBackends(t *testing.T, test func(t *testing.T, pod *redirectPod, backend string)) {
	t.Helper()
	t.Parallel()
	for _, backend := range backends {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			test(t, newRedirectPod(t), backend)
		})
	}
}

// iptables runs iptables of a backend with each of the lines as arguments, or iptables-nft for
// the native backend.
func (p *redirectPod) iptables(backend string, lines ...string) {
	p.t.Helper()
	if backend == "native" {
		backend = "nft"
	}
	for _, line := range lines {
		p.mustRun("", append([]string{"iptables-" + backend, "--wait", "10"}, strings.Fields(line)...)...)
	}
}

// azwiScript has the commands of azure-workload-identity's proxy-init script.
var azwiScript = []string{
	"-t nat -N AZWI_PROXY_OUTPUT",
	"-t nat -N AZWI_PROXY_REDIRECT",
	"-t nat -A AZWI_PROXY_REDIRECT -p tcp -j REDIRECT --to-port 8000",
	"-t nat -A OUTPUT -p tcp -d 169.254.169.254 --dport 80 -j AZWI_PROXY_OUTPUT",
	"-t nat -A AZWI_PROXY_OUTPUT -m owner --uid-owner 1501 -j ACCEPT",
	"-t nat -A AZWI_PROXY_OUTPUT -j AZWI_PROXY_REDIRECT",
}

// meshScript has rules of another program, such as a service mesh, at the start of the chains.
var meshScript = []string{
	"-t nat -N OTHERS",
	"-t nat -A OTHERS -d 198.51.100.10/32 -p tcp --dport 443 -j REDIRECT --to-ports 15001",
	"-t nat -A OUTPUT -p tcp -j OTHERS",
	"-A OUTPUT -d 203.0.113.1/32 -j REJECT",
}

func TestRedirectIsIdempotent(t *testing.T) {
	onBackends(t, func(t *testing.T, pod *redirectPod, backend string) {
		mode := "--backend=" + backend
		pod.iptables(backend, meshScript...)
		before := pod.rules()
		pod.install(mode)
		once := pod.rules()
		for range 9 {
			pod.install(mode)
		}
		if got := pod.rules(); got != once {
			t.Errorf("after ten runs:\n%s\nafter one:\n%s", got, once)
		}
		pod.install(mode, "--proxy-port=9000", "--seal", "--deny=168.63.129.16:80")
		if got := strings.ToLower(pod.rules()); strings.Contains(got, "8000") || strings.Contains(got, "dnat") {
			t.Errorf("rules with the old port or mode are left:\n%s", got)
		}
		pod.install(mode)
		if got := pod.rules(); got != once {
			t.Errorf("after changing port and mode and back:\n%s\nwant:\n%s", got, once)
		}
		pod.install(mode, "--cleanup")
		if got := pod.rules(); got != before {
			t.Errorf("after --cleanup:\n%s\nwant the rules from before:\n%s", got, before)
		}
		pod.expect(appUser, "tcp/169.254.169.254:80", byIMDS)
		pod.install(mode, "--cleanup") // it succeeds although there is nothing to remove
	})
}

// TestRedirectConcurrentRuns: after concurrent runs, the rules are those of a single run.
func TestRedirectConcurrentRuns(t *testing.T) {
	onBackends(t, func(t *testing.T, pod *redirectPod, backend string) {
		mode := "--backend=" + backend
		var wg sync.WaitGroup
		codes := make([]int, 4)
		for i := range codes {
			wg.Go(func() { codes[i] = pod.tryInit(initOptions{}, mode, "--seal").code })
		}
		wg.Wait()
		if r := pod.tryInit(initOptions{}, mode, "--seal", "--check"); r.code != 0 {
			t.Errorf("four concurrent runs ended with %v, and --check after them with %d\n%s", codes, r.code, r.stderr)
		}
		for _, code := range codes {
			if code != 0 && code != 8 {
				t.Errorf("exit codes %v: want 0, or 8 for a run that gave up", codes)
			}
		}
	})
}

// TestRedirectTakesOver: proxy-init replaces the rules of azure-workload-identity's script on
// either iptables backend, with each of its own backends.
func TestRedirectTakesOver(t *testing.T) {
	t.Parallel()
	for _, theirs := range iptablesBackends {
		for _, ours := range append(backends, "auto") {
			t.Run(theirs+" to "+ours, func(t *testing.T) {
				t.Parallel()
				pod := newRedirectPod(t)
				for range 2 { // the script is not idempotent: its second run fails half-way
					for _, line := range azwiScript {
						_ = pod.command(append([]string{"iptables-" + theirs, "--wait", "10"}, strings.Fields(line)...)...).Run()
					}
				}
				if got := pod.rules(); strings.Count(got, "-j AZWI_PROXY_OUTPUT") != 2 {
					t.Fatalf("want the rules of two runs of the script, got:\n%s", got)
				}
				pod.answerAs(proxyUser, byProxy+"=tcp/127.0.0.1:9000")
				pod.install("--backend="+ours, "--proxy-port=9000")
				if got := pod.rules(); strings.Contains(got, "AZWI") || strings.Contains(got, "8000") {
					t.Errorf("rules of the script are left:\n%s", got)
				}
				pod.expect(appUser, metadata80, byProxy)
				pod.expect(otherGroup, metadata80, byProxy)
			})
		}
	}
}

// TestRedirectAuto: the native backend is used whatever rules iptables has, and those of other
// programs stay.
func TestRedirectAuto(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		backend string // has rules before proxy-init runs
		lines   []string
	}{
		"no rules":           {"nft", nil},
		"mesh on nft":        {"nft", meshScript},
		"mesh on legacy":     {"legacy", meshScript},
		"script on legacy":   {"legacy", azwiScript},
		"filter on legacy":   {"legacy", []string{"-A OUTPUT -d 203.0.113.1/32 -j REJECT"}},
		"earlier proxy-init": {"legacy", []string{"-t nat -N IMDS_PROXY_OUTPUT"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pod := newRedirectPod(t)
			pod.iptables(tt.backend, tt.lines...)
			if got := logField(t, pod.install(), "backend"); got != "native" {
				t.Errorf("backend %s, want native", got)
			}
			got := pod.rules()
			if strings.Contains(got, "-j IMDS_PROXY") || strings.Contains(got, "AZWI") {
				t.Errorf("rules of an earlier redirect are left:\n%s", got)
			}
			if strings.Contains(name, "mesh") && !strings.Contains(got, "-A OUTPUT -p tcp -j OTHERS") {
				t.Errorf("the mesh's rules are gone:\n%s", got)
			}
			pod.install("--check")
		})
	}
}

// TestRedirectNFTTable: the table nat has rules of the nft tool that iptables-nft cannot read.
// The native backend does not need to.
func TestRedirectNFTTable(t *testing.T) {
	t.Parallel()
	pod := newRedirectPod(t)
	pod.mustRun(`table ip nat {
	chain OUTPUT {
		type nat hook output priority -100
		ip daddr { 203.0.113.1, 203.0.113.2 } tcp dport { 80, 81 } ct mark set 7 redirect to :15001
	}
}`, "nft", "-f", "-")
	if r := pod.tryInit(initOptions{}, "--backend=nft"); r.code != 7 {
		t.Errorf("on nft: exit code %d, want 7\n%s", r.code, r.stderr)
	}
	for _, backend := range []string{"legacy", "auto"} {
		pod.install("--backend=" + backend)
		pod.install("--backend="+backend, "--check")
	}
}

// TestRedirectNFTBaseChain: the table nat has a base chain of the nft tool besides those of
// iptables. Then iptables-nft prints a remark at the start of its listing, and cannot list the
// rules of proxy-init, which are there. By netlink they can be read, and removed.
func TestRedirectNFTBaseChain(t *testing.T) {
	t.Parallel()
	for _, action := range []string{"--cleanup", "--verify"} {
		pod := newRedirectPod(t)
		pod.install("--backend=nft")
		pod.mustRun("add chain ip nat early { type nat hook output priority -150; }", "nft", "-f", "-")
		before := pod.mustRun("", "nft", "list", "table", "ip", "nat")
		for _, withIPTables := range []string{"--verify", "--check", "--cleanup"} {
			if r := pod.tryInit(initOptions{}, "--backend=nft", withIPTables); r.code != 7 {
				t.Errorf("%s: exit code %d, want 7\n%s", withIPTables, r.code, r.stderr)
			}
		}
		if got := pod.mustRun("", "nft", "list", "table", "ip", "nat"); got != before {
			t.Errorf("rules:\n%s\nwant those from before:\n%s", got, before)
		}
		pod.install(action)
		if got := pod.mustRun("", "nft", "list", "ruleset"); strings.Contains(got, "IMDS") || !strings.Contains(got, "chain early") {
			t.Errorf("%s: rules of iptables-nft are left, or those of others are gone:\n%s", action, got)
		}
	}
}

// TestRedirectMovesBackend: if a backend is chosen, no rules are left on the others.
func TestRedirectMovesBackend(t *testing.T) {
	t.Parallel()
	pod := newRedirectPod(t)
	pod.iptables("nft", meshScript...)
	pod.iptables("legacy", meshScript...)
	before := pod.rules()
	for _, backend := range []string{"native", "nft", "legacy", "native", "legacy", "nft", "native"} {
		pod.install("--backend=" + backend)
		rules := pod.rules()
		jumps, tables := strings.Count(rules, "-A OUTPUT -j IMDS_PROXY_"), strings.Count(rules, "table inet imds_proxy")
		if backend == "native" && (jumps != 0 || tables != 1) || backend != "native" && (jumps != 2 || tables != 0) {
			t.Errorf("%d jumps and %d native tables after installing on %s:\n%s", jumps, tables, backend, rules)
		}
		pod.install("--backend="+backend, "--check")
		for _, other := range backends {
			if r := pod.tryInit(initOptions{}, "--backend="+other, "--check"); other != backend && r.code != 8 {
				t.Errorf("--check on %s: exit code %d, want 8, since the redirect is on %s\n%s", other, r.code, backend, r.stderr)
			}
		}
		pod.install("--check") // it finds the backend
	}
	pod.install("--cleanup")
	if got := pod.rules(); got != before {
		t.Errorf("after --cleanup:\n%s\nwant:\n%s", got, before)
	}
}

// TestRedirectBesideOthers: --check fails for a redirect that is on two backends, as it can be
// after a downgrade.
func TestRedirectBesideOthers(t *testing.T) {
	t.Parallel()
	for _, backend := range iptablesBackends {
		pod := newRedirectPod(t)
		pod.install("--backend=native")
		pod.iptables(backend, azwiScript...)
		for _, checked := range []string{"auto", "native", backend} {
			if r := pod.tryInit(initOptions{}, "--backend="+checked, "--check"); r.code != 8 {
				t.Errorf("%s beside native, --check on %s: exit code %d, want 8\n%s", backend, checked, r.code, r.stderr)
			}
		}
		pod.install()
		pod.install("--check")
	}
}

func TestRedirectCheck(t *testing.T) {
	onBackends(t, func(t *testing.T, pod *redirectPod, backend string) {
		mode := "--backend=" + backend
		check := func(what string, want int, args ...string) {
			t.Helper()
			before := pod.rules()
			r := pod.tryInit(initOptions{}, append([]string{mode, "--check"}, args...)...)
			if r.code != want {
				t.Errorf("%s: exit code %d, want %d\n%s", what, r.code, want, r.stderr)
			}
			if pod.rules() != before {
				t.Errorf("%s: --check changed the rules", what)
			}
		}
		check("no rules", 8)
		pod.install(mode)
		check("installed", 0)
		pod.answerAs(proxyUser, byProxy+"=tcp/127.0.0.1:8000")
		check("the proxy's user listens", 0)
		check("another user listens", 12, "--proxy-uid=1502")
		check("another port", 8, "--proxy-port=9000")
		check("another mode", 8, "--seal")
		pod.iptables(backend, "-t nat -I OUTPUT -p tcp -j ACCEPT")
		if backend == "native" {
			check("other rules on iptables", 0) // they are asked later
			return
		}
		check("not first in nat", 8)
		pod.install(mode)
		check("installed again", 0)
		pod.iptables(backend, "-F IMDS_PROXY_FILTER")
		check("filter emptied", 8)
	})
}

// TestRedirectCheckNative: --check notices every change of the native table, and another run
// repairs it.
func TestRedirectCheckNative(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]string{
		"no table":          "delete table inet imds_proxy",
		"no chain":          "delete chain inet imds_proxy guard_out",
		"empty chain":       "flush chain inet imds_proxy filter_out",
		"another chain":     "add chain inet imds_proxy more",
		"another rule":      "insert rule inet imds_proxy filter_out accept",
		"a rule at the end": "add rule inet imds_proxy nat_out accept",
		"a changed rule":    "flush chain inet imds_proxy nat_out; add rule inet imds_proxy nat_out accept; add rule inet imds_proxy nat_out accept",
		"another set":       "add set inet imds_proxy more { type ipv4_addr; }",
		"a smaller set":     "delete element inet imds_proxy deny { 10.1.0.0/16 }",
		"a larger set":      "add element inet imds_proxy deny_ports { 192.0.2.1 . 80 }",
		"a policy":          "add chain inet imds_proxy nat_out { policy drop; }",
		"an unknown match":  "insert rule inet imds_proxy filter_out socket transparent 1 accept",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pod := newRedirectPod(t)
			args := []string{"--backend=native", "--deny=10.1.0.0/16,168.63.129.16:80"}
			pod.install(args...)
			pod.install(append(args, "--check")...)
			pod.mustRun(change, "nft", "-f", "-")
			if r := pod.tryInit(initOptions{}, append(args, "--check")...); r.code != 8 {
				t.Errorf("exit code %d, want 8\n%s", r.code, r.stderr)
			}
			pod.install(args...)
			pod.install(append(args, "--check")...)
		})
	}
}

// TestRedirectDryRun: --dry-run prints the rules that proxy-init installs, for the program that
// can load them.
func TestRedirectDryRun(t *testing.T) {
	onBackends(t, func(t *testing.T, pod *redirectPod, backend string) {
		load := []string{"iptables-" + backend + "-restore", "--noflush"}
		if backend == "native" {
			load = []string{"nft", "-f", "-"}
		}
		for _, more := range [][]string{nil, {"--seal", "--deny=168.63.129.16:80,168.63.129.16:32526,11.0.0.0/8,12.0.0.0/8,224.0.0.0/3"}} {
			args := append(more, "--backend="+backend)
			before := pod.rules()
			plan := pod.tryInit(initOptions{caps: "-all"}, append(args, "--dry-run")...)
			if plan.code != 0 || pod.rules() != before {
				t.Fatalf("--dry-run: exit code %d\n%s", plan.code, plan.stderr)
			}
			pod.mustRun(plan.stdout, load...)
			if backend == "native" {
				pod.install(append(args, "--check")...) // nft makes the same expressions of the text
				pod.mustRun(plan.stdout, load...)       // and replaces the table
			}
			printed := pod.rules()
			pod.install("--backend="+backend, "--cleanup")
			pod.install(args...)
			if got := pod.rules(); got != printed {
				t.Errorf("installed:\n%s\nprinted:\n%s", got, printed)
			}
			pod.install("--backend="+backend, "--cleanup")
		}
	})
}

func TestRedirectDeny(t *testing.T) {
	onBackends(t, func(t *testing.T, pod *redirectPod, backend string) {
		pod.install("--backend="+backend, "--deny=168.63.129.16:80,168.63.129.16:32526")
		for _, u := range []asker{rootUser, appUser, proxyUser} {
			pod.expect(u, "tcp/168.63.129.16:80", isRefused)
			pod.expect(u, "tcp/168.63.129.16:32526", isRefused)
			pod.expect(u, "udp/168.63.129.16:53", byWireServer)
			pod.expect(u, "tcp/198.51.100.10:80", byOutside)
		}
		pod.install("--backend=" + backend)
		pod.expect(appUser, "tcp/168.63.129.16:80", byWireServer)
	})
}

// TestRedirectDropIn runs proxy-init as azure-workload-identity's webhook does, without flags
// and with the variable PROXY_PORT only.
func TestRedirectDropIn(t *testing.T) {
	t.Parallel()
	pod := newRedirectPod(t)
	r := pod.tryInit(initOptions{env: []string{"PROXY_PORT=8123"}})
	if r.code != 0 {
		t.Fatalf("exit code %d\n%s", r.code, r.stderr)
	}
	if got := logField(t, r, "proven_by"); got != "connection" {
		t.Errorf("proven by %q, want a connection", got)
	}
	pod.answerAs(proxyUser, byProxy+"=tcp/127.0.0.1:8123")
	pod.expect(appUser, "tcp/169.254.169.254:80", byProxy)
	pod.expect(proxyUser, "tcp/169.254.169.254:80", byIMDS)
}

// TestRedirectLeavesIPv6: proxy-init redirects and rejects nothing on IPv6, because IPv4-mapped
// addresses need no rules of their own.
func TestRedirectLeavesIPv6(t *testing.T) {
	onBackends(t, func(t *testing.T, pod *redirectPod, backend string) {
		pod.install("--backend=" + backend)
		for _, b := range iptablesBackends {
			if got := pod.mustRun("", "ip6tables-"+b+"-save"); strings.Contains(got, "IMDS") {
				t.Errorf("ip6tables-%s has rules:\n%s", b, got)
			}
		}
		pod.answerAs(proxyUser, byProxy+"=tcp/127.0.0.1:8000")
		pod.expect(appUser, "mapped/169.254.169.254:80", byProxy)
		pod.expect(appUser, "mapped/169.254.169.254:443", isRefused)
	})
}

// logField returns a field of the last log line of proxy-init.
func logField(t *testing.T, r initResult, name string) string {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(r.stderr), "\n")
	var entry map[string]any
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &entry); err != nil {
		t.Fatalf("%v in the log:\n%s", err, r.stderr)
	}
	value, _ := entry[name].(string)
	return value
}
