package e2e

import (
	"fmt"
	"strings"
	"testing"
	"text/tabwriter"
)

const (
	direct4 = "tcp/127.0.0.1:8000"
	direct6 = "tcp6/[::1]:8000"
	byOther = "impostor" // the server of another user than the proxy's
)

// impostors are users that are not the proxy.
var impostors = []asker{appUser, rootUser, otherGroup, otherUser}

// TestPortGuard: with the native backend nobody but the proxy answers at its port, by either
// address of the loopback device. A client is refused at once, as if no process listened there.
// The iptables backends have no guard.
func TestPortGuard(t *testing.T) {
	t.Parallel()
	var log strings.Builder
	table := tabwriter.NewWriter(&log, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "backend\tserver\tredirected\t127.0.0.1\t::1\tmptcp")
	endpoints := []string{metadata80, direct4, direct6, "mptcp/127.0.0.1:8000"}
	for _, backend := range backends {
		for _, u := range append(impostors, proxyUser) {
			pod := newRedirectPod(t)
			r := pod.install("--backend="+backend, "--seal") // sealed: the proxy's user is redirected as others
			guarded := strings.HasPrefix(logField(t, r, "port_guard"), "on")
			if guarded != (backend == "native") {
				t.Errorf("%s: port_guard %q", backend, logField(t, r, "port_guard"))
			}
			pod.answerAs(u, byOther+"=tcp/127.0.0.1:8000", byOther+"=tcp6/[::1]:8000")
			want := byOther
			if guarded && u != proxyUser {
				want = isRefused
			}
			got := pod.ask(asker{name: "client", uid: 3000, gid: 3000}, endpoints...)
			for i, answer := range got {
				if answer != want {
					t.Errorf("%s: %s as server at %s: %s, want %s", backend, u.name, endpoints[i], answer, want)
				}
			}
			fmt.Fprintf(table, "%s\t%s\t%s\n", backend, u.name, strings.Join(got, "\t"))
		}
	}
	table.Flush()
	t.Logf("what a client gets from a server at the proxy's port\n%s", &log)
}

// TestPortGuardLeavesOthers: the guard is about the proxy's port at 127.0.0.1 and ::1 only.
func TestPortGuardLeavesOthers(t *testing.T) {
	t.Parallel()
	pod := newRedirectPod(t)
	pod.install("--backend=native")
	pod.expect(appUser, metadata80, isRefused) // no process listens
	pod.expect(appUser, direct4, isRefused)
	pod.answerAs(appUser, byOther+"=tcp/127.0.0.2:8000", byOther+"=tcp/10.244.0.7:8000", byOther+"=tcp/127.0.0.1:8001", byOther+"=udp/127.0.0.1:8000")
	for _, endpoint := range []string{"tcp/127.0.0.2:8000", "tcp/10.244.0.7:8000", "tcp/127.0.0.1:8001", "udp/127.0.0.1:8000"} {
		pod.expect(rootUser, endpoint, byOther)
	}
}

// TestPortGuardCutsOpenConnections: a connection to an impostor from before the rules ends with
// its next packet. proxy-init fails, because the impostor holds the port; the rules stay.
func TestPortGuardCutsOpenConnections(t *testing.T) {
	t.Parallel()
	pod := newRedirectPod(t)
	pod.answerAs(appUser, byOther+"=tcp/127.0.0.1:8000")
	held := pod.keep(rootUser, direct4)
	if held.first != byOther {
		t.Fatalf("before the rules: %s, want %s", held.first, byOther)
	}
	if r := pod.tryInit(initOptions{}, "--backend=native"); r.code != 12 {
		t.Errorf("exit code %d, want 12\n%s", r.code, r.stderr)
	}
	if got := held.again(); got != isReset {
		t.Errorf("after the rules: %s, want %s", got, isReset)
	}
	pod.expect(rootUser, direct4, isRefused)
}

// TestPortGuardSYNCookies: with SYN cookies the kernel answers a connection itself, in packets
// without an owner, so that a client can connect to an impostor. It gets no byte: the first
// packet with data belongs to the impostor. The proxy answers as without them.
func TestPortGuardSYNCookies(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, network, sysctl string }{
		{"for each connection", "tcp", "2"},
		{"by a queue of no length", "backlog0", "1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cookies := func(u asker, install bool) *redirectPod {
				pod := newRedirectPod(t)
				pod.mustRun("", "sysctl", "-q", "-w", "net.ipv4.tcp_syncookies="+tt.sysctl)
				if install {
					r := pod.install("--backend=native") // its proof works with SYN cookies, too
					if got := logField(t, r, "proven_by"); got != "connection" {
						t.Errorf("proven by %q, want a connection", got)
					}
				}
				pod.answerAs(u, byOther+"="+tt.network+"/127.0.0.1:8000")
				return pod
			}
			cookies(appUser, false).expect(rootUser, direct4, byOther) // the test can see an answer
			pod := cookies(appUser, true)
			connected := 0
			for range 20 {
				for _, got := range pod.ask(rootUser, direct4, metadata80) {
					switch got {
					case isReset:
						connected++
					case isRefused: // the kernel uses no cookie if it remembers the client's port
					default:
						t.Errorf("from an impostor: %s, want %s or %s", got, isReset, isRefused)
					}
				}
			}
			if connected == 0 {
				t.Error("no connection was made by a SYN cookie")
			}
			pod = cookies(proxyUser, true)
			for range 5 {
				pod.expect(rootUser, direct4, byOther)
				pod.expect(appUser, metadata80, byOther)
			}
		})
	}
}

// TestPortGuardSimultaneousOpen: an impostor needs no listener to answer. If it connects from the
// proxy's port to the port of a client, while that client connects to the proxy, the kernel
// joins the two.
func TestPortGuardSimultaneousOpen(t *testing.T) {
	t.Parallel()
	for backend, want := range map[string]string{"nft": byOther, "native": isRefused} {
		pod := newRedirectPod(t)
		pod.install("--backend=" + backend)
		// The client's closed port refuses the impostor's connection. Without these resets
		// the impostor need not try again and again until both are at the same time.
		pod.mustRun(`table inet hold {
	chain input { type filter hook input priority 0; tcp dport 8000 tcp flags & rst == rst drop; }
}`, "nft", "-f", "-")
		pod.answerAsOpen(appUser, byOther+"=127.0.0.1:8000/127.0.0.1:40000")
		if got := pod.ask(rootUser, "tcp:40000/127.0.0.1:8000")[0]; got != want {
			t.Errorf("%s: %s, want %s", backend, got, want)
		}
	}
}

// TestPortGuardLetsProxyClose: packets that the kernel sends for a connection that the proxy has
// closed have no owner. They must pass, since they carry the rest of an answer.
func TestPortGuardLetsProxyClose(t *testing.T) {
	onBackends(t, func(t *testing.T, pod *redirectPod, backend string) {
		pod.install("--backend=" + backend)
		pod.answerAs(proxyUser, "x=bulk/127.0.0.1:8000")
		for range 5 {
			pod.expect(appUser, "bulk/169.254.169.254:80", "500000")
			pod.expect(appUser, "bulk/127.0.0.1:8000", "500000")
		}
	})
}
