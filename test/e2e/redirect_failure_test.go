package e2e

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"text/tabwriter"
	"time"
)

// brokenIPTables is a script that fails at one step, and runs the real program at all other
// steps. It replaces iptables-nft and iptables-nft-restore.
const brokenIPTables = `#!/bin/sh
name=$(basename "$0")
real=/usr/sbin/$name
case "$name" in
*-restore)
	input=$(cat)
	step="commit $(printf '%%s\n' "$input" | sed -n 's/^\*//p')"
	;;
*)
	step="$*"
	;;
esac
run() {
	case "$name" in
	*-restore) printf '%%s\n' "$input" | "$real" "$@" ;;
	*) "$real" "$@" ;;
	esac
}
case "$step" in
%s) %s ;;
*) run "$@" ;;
esac
`

// failures are the failures of iptables, by the step and the action of the script, with the
// expected result of proxy-init.
var failures = map[string]struct {
	step, action string
	code         int
	message      string // part of the termination message
	again        string // replaces message if there is already a redirect
}{
	"version":             {"--version", "exit 1", 1, "cannot be used", ""},
	"list, no privilege":  {"*'-t nat -S'*", "echo 'Could not fetch rule set generation id: Permission denied (you must be root)' >&2; exit 4", 3, "NET_ADMIN", ""},
	"list, garbage":       {"*'-t filter -S OUTPUT'*", "echo 'garbage'", 8, "not the first rule", ""},
	"filter, lock":        {"'commit filter'", "echo 'Another app is currently holding the xtables lock. Stopped waiting after 5s.' >&2; exit 4", 5, "xtables lock", ""},
	"filter, no owner":    {"'commit filter'", "echo 'Warning: Extension owner revision 0 not supported, missing kernel module?' >&2; exit 4", 6, "xt_owner", ""},
	"filter, no effect":   {"'commit filter'", "exit 0", 8, "no chain IMDS_PROXY_FILTER", "rules instead of"},
	"filter, killed":      {"'commit filter'", "kill -9 $$", 1, "was killed", ""},
	"nat, no redirect":    {"'commit nat'", "echo 'Warning: Extension REDIRECT revision 0 not supported, missing kernel module?' >&2; exit 4", 6, "xt_REDIRECT, nft_redir, nf_nat", ""},
	"nat, no table":       {"'commit nat'", "echo 'CHAIN_ADD failed (No such file or directory): chain OUTPUT' >&2; exit 4", 6, "nf_nat", ""},
	"nat, no effect":      {"'commit nat'", "exit 0", 8, "no chain IMDS_PROXY_OUTPUT", "rules instead of"},
	"nat, incomplete":     {"'commit nat'", `input=$(printf '%s\n' "$input" | sed '/REDIRECT/d'); run "$@"`, 8, "rules instead of", ""},
	"nat, without a jump": {"'commit nat'", `input=$(printf '%s\n' "$input" | sed '/-I OUTPUT/d'); run "$@"`, 8, "not the first rule", ""},
	"nat, does not end":   {"'commit nat'", "sleep 60", 11, "did not exit within", ""},
}

// TestRedirectFailsClosed: proxy-init fails closed at each step, in a new pod and in a pod with
// a redirect. It ends with the exit code of the failure and with the cause in the termination
// message, which the kubelet reads. The rules are the same as before, or they block the
// metadata address.
func TestRedirectFailsClosed(t *testing.T) {
	t.Parallel()
	for name, tt := range failures {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			for _, program := range []string{"iptables-nft", "iptables-nft-restore"} {
				script := fmt.Sprintf(brokenIPTables, tt.step, tt.action)
				if err := os.WriteFile(filepath.Join(dir, program), []byte(script), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			pod := newRedirectPod(t)
			broken := initOptions{env: []string{"PATH=" + dir + ":/usr/sbin:/usr/bin:/sbin:/bin"}}
			states := []string{"new", "redirected"}
			if tt.code == 11 {
				states = states[:1] // it takes ten seconds
			}
			for _, state := range states {
				before := pod.rules()
				message := tt.message
				if state == "redirected" {
					message = cmp.Or(tt.again, tt.message)
				}
				checkFailure(t, pod, state, broken, tt.code, message)
				closed := pod.ask(appUser, metadata80)[0] == isRefused && pod.ask(appUser, "tcp/169.254.169.254:443")[0] == isRefused
				if !closed && pod.rules() != before {
					t.Errorf("%s: the rules have changed, but do not block the metadata address:\n%s", state, pod.rules())
				}
				pod.install("--backend=nft")
			}
			pod.install("--backend=nft", "--check")
		})
	}
}

// checkFailure runs proxy-init and checks how it fails. It uses sealed mode and a port that
// no existing redirect has, so that proxy-init must change the rules.
func checkFailure(t *testing.T, pod *redirectPod, state string, o initOptions, code int, wantMessage string) {
	t.Helper()
	log := filepath.Join(t.TempDir(), "termination-log")
	if err := os.WriteFile(log, []byte("from before"), 0o644); err != nil {
		t.Fatal(err)
	}
	r := pod.tryInit(o, "--backend=nft", "--seal", "--proxy-port=9000", "--termination-log="+log)
	message, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	if r.code != code {
		t.Errorf("%s: exit code %d, want %d\n%s", state, r.code, code, r.stderr)
	}
	if text := string(message); !strings.Contains(text, wantMessage) || strings.Contains(text, "\n") || !strings.HasPrefix(text, "proxy-init: ") {
		t.Errorf("%s: termination message %q, want one line with %q", state, text, wantMessage)
	}
}

// TestRedirectCapabilities: the exit code of proxy-init for each set of capabilities.
func TestRedirectCapabilities(t *testing.T) {
	t.Parallel()
	var log strings.Builder
	table := tabwriter.NewWriter(&log, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "capabilities\tnative, auto\tnft\tlegacy")
	for _, tt := range []struct {
		name, caps          string
		native, nft, legacy int
	}{
		{"all", "+all", 0, 0, 0},
		{"NET_ADMIN, NET_RAW", "-all,+net_admin,+net_raw", 0, 0, 0},
		{"NET_ADMIN", "-all,+net_admin", 0, 0, 3},
		{"NET_RAW", "-all,+net_raw", 3, 3, 3},
		{"all but NET_ADMIN", "+all,-net_admin", 3, 3, 3},
		{"all but NET_RAW", "+all,-net_raw", 0, 0, 3},
		{"none", "-all", 3, 3, 3},
	} {
		pod := newRedirectPod(t)
		codes := map[string]int{}
		for backend, want := range map[string]int{"native": tt.native, "auto": tt.native, "nft": tt.nft, "legacy": tt.legacy} {
			r := pod.tryInit(initOptions{caps: tt.caps}, "--backend="+backend)
			if r.code != want {
				t.Errorf("%s, %s: exit code %d, want %d\n%s", tt.name, backend, r.code, want, r.stderr)
			}
			if r.code != 0 && !strings.Contains(r.stderr, "NET_ADMIN") {
				t.Errorf("%s, %s: the error does not name the missing capability: %s", tt.name, backend, r.stderr)
			}
			codes[backend] = r.code
		}
		fmt.Fprintf(table, "%s\t%d\t%d\t%d\n", tt.name, codes["native"], codes["nft"], codes["legacy"])
	}
	table.Flush()
	t.Logf("proxy-init's exit code by capabilities\n%s", &log)
}

// TestRedirectBesideLegacyTables: with NET_ADMIN only, proxy-init can read which chains legacy
// has. A mesh there does not matter. An earlier redirect does: without iptables-legacy and
// NET_RAW it cannot be removed, so proxy-init changes nothing.
func TestRedirectBesideLegacyTables(t *testing.T) {
	t.Parallel()
	netAdmin := initOptions{caps: "-all,+net_admin"}
	noPrograms := initOptions{noPrograms: true}
	for _, backend := range []string{"auto", "native", "nft"} {
		args := []string{"--backend=" + backend}
		pod := newRedirectPod(t)
		pod.iptables("legacy", meshScript...)
		if r := pod.tryInit(netAdmin, args...); r.code != 0 || logField(t, r, "proven_by") != "connection" {
			t.Errorf("%s beside a mesh: exit code %d, want 0 and a proof\n%s", backend, r.code, r.stderr)
		}
		if r := pod.tryInit(netAdmin, append(args, "--check")...); r.code != 0 {
			t.Errorf("%s beside a mesh, --check: exit code %d, want 0\n%s", backend, r.code, r.stderr)
		}
		pod.install("--cleanup")

		pod.iptables("legacy", azwiScript...)
		before := pod.rules()
		for _, tt := range []struct {
			name    string
			o       initOptions
			want    int
			message string
		}{
			{"NET_ADMIN", netAdmin, 3, "NET_RAW"},
			{"no programs", noPrograms, 4, "iptables-legacy"},
		} {
			if backend == "nft" && tt.name == "no programs" {
				continue
			}
			for _, action := range []string{"--verify", "--cleanup"} {
				r := pod.tryInit(tt.o, append(args, action)...)
				if r.code != tt.want || !strings.Contains(r.stderr, "AZWI_PROXY") || !strings.Contains(r.stderr, tt.message) {
					t.Errorf("%s beside an earlier redirect, %s, %s: exit code %d, want %d, its chain and %s\n%s", backend, tt.name, action, r.code, tt.want, tt.message, r.stderr)
				}
			}
			if r := pod.tryInit(tt.o, append(args, "--check")...); r.code != 8 && r.code != tt.want {
				t.Errorf("%s beside an earlier redirect, %s, --check: exit code %d\n%s", backend, tt.name, r.code, r.stderr)
			}
		}
		if got := pod.rules(); got != before {
			t.Errorf("%s: rules:\n%s\nwant unchanged:\n%s", backend, got, before)
		}
		pod.install(args...)
		pod.install(append(args, "--check")...)
	}
}

// TestRedirectPrivilegedPort: proxy-init refuses a port that only root can use, as the proxy
// does, and the error says how to fix it.
func TestRedirectPrivilegedPort(t *testing.T) {
	t.Parallel()
	pod := newRedirectPod(t)
	r := pod.tryInit(initOptions{caps: "-all,+net_admin"}, "--backend=nft", "--proxy-port=88")
	if r.code != 1 || !strings.Contains(r.stderr, "to 1024 or more") {
		t.Errorf("proxy-init: exit code %d, want 1 and the remedy\n%s", r.code, r.stderr)
	}
}

// TestRedirectSIGTERMWhileListing: proxy-init does not wait for an iptables that hangs after a
// SIGTERM, which it gets if the pod is deleted while it starts.
func TestRedirectSIGTERMWhileListing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	begun := filepath.Join(dir, "begun")
	script := fmt.Sprintf(brokenIPTables, "*'-t filter -S'*", "touch "+begun+"; exec sleep 30")
	for _, name := range []string{"iptables-nft", "iptables-nft-restore"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	pod := newRedirectPod(t)
	stderr, err := os.Create(filepath.Join(dir, "stderr")) // not a pipe, which the remaining iptables would keep open
	if err != nil {
		t.Fatal(err)
	}
	defer stderr.Close()
	cmd := pod.command(program("proxy-init"), "--backend=nft", "--termination-log=")
	cmd.Env = []string{"PATH=" + dir + ":/usr/sbin:/usr/bin:/sbin:/bin", quickExit}
	cmd.Stderr = stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(readyTimeout); ; time.Sleep(time.Millisecond) {
		if _, err := os.Stat(begun); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("proxy-init did not list the rules")
		}
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // the exit code is checked below
	output, err := os.ReadFile(stderr.Name())
	if code := cmd.ProcessState.ExitCode(); code != 1 || err != nil || !strings.Contains(string(output), "context canceled") {
		t.Errorf("exit code %d, want 1 and the cause: %s", code, output)
	}
}

// TestRedirectReadOnly: proxy-init works if the root file system and /run are read-only.
func TestRedirectReadOnly(t *testing.T) {
	onBackends(t, func(t *testing.T, pod *redirectPod, backend string) {
		readOnly := []string{"unshare", "--mount", "sh", "-c", `
			mount -o remount,bind,ro / && mount -t tmpfs -o ro none /run && mount -t tmpfs -o ro none /tmp/none 2>/dev/null
			if touch /run/probe /probe 2>/dev/null; then echo "not read-only" >&2; exit 99; fi
			exec "$@"`, "sh"}
		r := pod.tryInit(initOptions{prefix: readOnly}, "--backend="+backend)
		if r.code != 0 {
			t.Errorf("exit code %d, want 0\n%s", r.code, r.stderr)
		}
	})
}

// TestRedirectHostNetwork: proxy-init refuses to run in the network namespace of a node.
func TestRedirectHostNetwork(t *testing.T) {
	t.Parallel()
	// The parent process runs in the machine's network namespace. Without capabilities
	// proxy-init cannot change that namespace, even if it has a bug.
	host := &redirectPod{t: t, ns: fmt.Sprintf("/proc/%d/ns/net", os.Getppid())}
	want := 3
	if host.command("test", "-e", "/proc/sys/net/core/netdev_max_backlog").Run() == nil {
		want = 10 // otherwise the machine is itself a container, which proxy-init cannot detect
	}
	for _, args := range [][]string{nil, {"--cleanup"}} {
		if r := host.tryInit(initOptions{caps: "-all"}, args...); r.code != want {
			t.Errorf("in the machine's own namespace, %v: exit code %d, want %d\n%s", args, r.code, want, r.stderr)
		}
	}

	pod := newRedirectPod(t)
	pod.iptables("nft", "-t mangle -N KUBE-KUBELET-CANARY")
	if r := pod.tryInit(initOptions{}); r.code != 10 || !strings.Contains(r.stderr, "KUBE-KUBELET-CANARY") {
		t.Errorf("with a kubelet's chain: exit code %d, want 10\n%s", r.code, r.stderr)
	}
	if r := pod.tryInit(initOptions{}, "--check"); r.code != 8 {
		t.Errorf("--check with a kubelet's chain: exit code %d, want 8\n%s", r.code, r.stderr)
	}
	pod.install("--force")
}
