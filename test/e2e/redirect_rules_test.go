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

// iptables runs iptables of a backend with each of the lines as arguments.
func (p *redirectPod) iptables(backend string, lines ...string) {
	p.t.Helper()
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
		mode := "--iptables-mode=" + backend
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
		if got := pod.rules(); strings.Contains(got, "8000") || strings.Contains(got, "1501") {
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
		mode := "--iptables-mode=" + backend
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

// TestRedirectTakesOver: proxy-init replaces the rules of azure-workload-identity's script.
func TestRedirectTakesOver(t *testing.T) {
	onBackends(t, func(t *testing.T, pod *redirectPod, backend string) {
		for range 2 { // the script is not idempotent: its second run fails half-way
			for _, line := range azwiScript {
				_ = pod.command(append([]string{"iptables-" + backend, "--wait", "10"}, strings.Fields(line)...)...).Run()
			}
		}
		if got := pod.rules(); strings.Count(got, "-j AZWI_PROXY_OUTPUT") != 2 {
			t.Fatalf("want the rules of two runs of the script, got:\n%s", got)
		}
		pod.answerAs(proxyUser, byProxy+"=tcp/127.0.0.1:9000")
		pod.install("--proxy-port=9000") // finds the backend by itself
		if got := pod.rules(); strings.Contains(got, "AZWI") || strings.Contains(got, "8000") {
			t.Errorf("rules of the script are left:\n%s", got)
		}
		pod.expect(appUser, "tcp/169.254.169.254:80", byProxy)
		pod.expect(otherGroup, "tcp/169.254.169.254:80", byProxy)
	})
}

// TestRedirectFindsBackend: proxy-init chooses the backend that already has rules in nat.
func TestRedirectFindsBackend(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		backend string // has rules before proxy-init runs
		lines   []string
		want    string
	}{
		"no rules":              {"nft", nil, "nft"},
		"mesh on nft":           {"nft", meshScript, "nft"},
		"mesh on legacy":        {"legacy", meshScript, "legacy"},
		"script on legacy":      {"legacy", azwiScript, "legacy"},
		"empty table on legacy": {"legacy", []string{"-t nat -S"}, "nft"},
		"filter on legacy":      {"legacy", []string{"-A OUTPUT -d 203.0.113.1/32 -j REJECT"}, "nft"},
		"earlier proxy-init":    {"legacy", []string{"-t nat -N IMDS_PROXY_OUTPUT"}, "legacy"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pod := newRedirectPod(t)
			pod.iptables(tt.backend, tt.lines...)
			if got := logField(t, pod.install(), "backend"); got != tt.want {
				t.Errorf("backend %s, want %s", got, tt.want)
			}
		})
	}
}

// TestRedirectNFTTable: the table nat has rules of the nft tool that iptables-nft cannot read.
func TestRedirectNFTTable(t *testing.T) {
	t.Parallel()
	pod := newRedirectPod(t)
	pod.mustRun(`table ip nat {
	chain OUTPUT {
		type nat hook output priority -100
		ip daddr { 203.0.113.1, 203.0.113.2 } tcp dport { 80, 81 } ct mark set 7 redirect to :15001
	}
}`, "nft", "-f", "-")
	if r := pod.tryInit(initOptions{}, "--iptables-mode=nft"); r.code != 7 {
		t.Errorf("on nft: exit code %d, want 7\n%s", r.code, r.stderr)
	}
	r := pod.install()
	if got := logField(t, r, "backend"); got != "legacy" || !strings.Contains(r.stderr, "cannot be read") {
		t.Errorf("auto: backend %s, want legacy and a warning\n%s", got, r.stderr)
	}
}

// TestRedirectNFTBaseChain: the table nat has a base chain of the nft tool besides those of
// iptables. Then iptables-nft prints a remark at the start of its listing, and proxy-init
// cannot list its own rules, which are there.
func TestRedirectNFTBaseChain(t *testing.T) {
	t.Parallel()
	pod := newRedirectPod(t)
	pod.install("--iptables-mode=nft")
	pod.mustRun("add chain ip nat early { type nat hook output priority -150; }", "nft", "-f", "-")
	before := pod.mustRun("", "nft", "list", "table", "ip", "nat")
	for _, action := range []string{"--verify", "--check", "--cleanup"} {
		if r := pod.tryInit(initOptions{}, "--iptables-mode=nft", action); r.code != 7 {
			t.Errorf("%s: exit code %d, want 7\n%s", action, r.code, r.stderr)
		}
	}
	if got := pod.mustRun("", "nft", "list", "table", "ip", "nat"); got != before {
		t.Errorf("rules:\n%s\nwant those from before:\n%s", got, before)
	}
	// It must not succeed because the other backend has no rules of proxy-init.
	if r := pod.tryInit(initOptions{}, "--cleanup"); r.code != 7 {
		t.Errorf("--cleanup on auto: exit code %d, want 7\n%s", r.code, r.stderr)
	}
}

// TestRedirectMovesBackend: if a backend is chosen, no rules are left on the other one.
func TestRedirectMovesBackend(t *testing.T) {
	t.Parallel()
	pod := newRedirectPod(t)
	pod.iptables("nft", meshScript...)
	pod.iptables("legacy", meshScript...)
	for _, backend := range []string{"nft", "legacy", "nft"} {
		pod.install("--iptables-mode="+backend, "--check=false")
		if got := strings.Count(pod.rules(), "-A OUTPUT -j IMDS_PROXY_"); got != 2 {
			t.Errorf("%d jumps after installing on %s, want 2, all on this backend:\n%s", got, backend, pod.rules())
		}
		pod.install("--iptables-mode="+backend, "--check")
	}
	pod.install("--cleanup")
	if got := pod.rules(); strings.Contains(got, "IMDS") {
		t.Errorf("after --cleanup:\n%s", got)
	}
}

func TestRedirectCheck(t *testing.T) {
	onBackends(t, func(t *testing.T, pod *redirectPod, backend string) {
		mode := "--iptables-mode=" + backend
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
		check("not first in nat", 8)
		pod.install(mode)
		check("installed again", 0)
		pod.iptables(backend, "-F IMDS_PROXY_FILTER")
		check("filter emptied", 8)
	})
}

// TestRedirectDryRun: --dry-run prints the rules that proxy-init installs.
func TestRedirectDryRun(t *testing.T) {
	onBackends(t, func(t *testing.T, pod *redirectPod, backend string) {
		for _, args := range [][]string{nil, {"--seal", "--deny=168.63.129.16:80,168.63.129.16:32526"}} {
			before := pod.rules()
			plan := pod.tryInit(initOptions{caps: "-all"}, append(args, "--dry-run")...)
			if plan.code != 0 || pod.rules() != before {
				t.Fatalf("--dry-run: exit code %d\n%s", plan.code, plan.stderr)
			}
			pod.mustRun(plan.stdout, "iptables-"+backend+"-restore", "--noflush")
			printed := pod.rules()
			pod.install("--iptables-mode="+backend, "--cleanup")
			pod.install(append(args, "--iptables-mode="+backend)...)
			if got := pod.rules(); got != printed {
				t.Errorf("installed:\n%s\nprinted:\n%s", got, printed)
			}
			pod.install("--iptables-mode="+backend, "--cleanup")
		}
	})
}

func TestRedirectDeny(t *testing.T) {
	onBackends(t, func(t *testing.T, pod *redirectPod, backend string) {
		pod.install("--iptables-mode="+backend, "--deny=168.63.129.16:80,168.63.129.16:32526")
		for _, u := range []asker{rootUser, appUser, proxyUser} {
			pod.expect(u, "tcp/168.63.129.16:80", isRefused)
			pod.expect(u, "tcp/168.63.129.16:32526", isRefused)
			pod.expect(u, "udp/168.63.129.16:53", byWireServer)
			pod.expect(u, "tcp/198.51.100.10:80", byOutside)
		}
		pod.install("--iptables-mode=" + backend)
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
	pod.answer(byProxy + "=tcp/127.0.0.1:8123")
	pod.expect(appUser, "tcp/169.254.169.254:80", byProxy)
	pod.expect(proxyUser, "tcp/169.254.169.254:80", byIMDS)
}

// TestRedirectLeavesIPv6: proxy-init installs no rules for IPv6, because IPv4-mapped addresses
// need none.
func TestRedirectLeavesIPv6(t *testing.T) {
	onBackends(t, func(t *testing.T, pod *redirectPod, backend string) {
		pod.install("--iptables-mode=" + backend)
		for _, b := range backends {
			if got := pod.mustRun("", "ip6tables-"+b+"-save"); strings.Contains(got, "IMDS") {
				t.Errorf("ip6tables-%s has rules:\n%s", b, got)
			}
		}
		pod.answer(byProxy + "=tcp/127.0.0.1:8000")
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
