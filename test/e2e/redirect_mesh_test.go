package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"text/tabwriter"
)

// mesh has rules like those of a service mesh: connections from the pod go to the mesh's proxy,
// except those of this proxy itself.
type mesh struct {
	name string
	user asker
	port int
	// iptables are the rules for iptables, or nft those for nftables.
	iptables []string
	nft      string
}

var meshes = []mesh{
	{"istio-like", asker{name: "mesh", uid: 1337, gid: 1337}, 15001, []string{
		"-t nat -N ISTIO_OUTPUT",
		"-t nat -N ISTIO_REDIRECT",
		"-t nat -A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001",
		"-t nat -A ISTIO_OUTPUT -o lo -m owner ! --uid-owner 1337 -j RETURN",
		"-t nat -A ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN",
		"-t nat -A ISTIO_OUTPUT -m owner --gid-owner 1337 -j RETURN",
		"-t nat -A ISTIO_OUTPUT -d 127.0.0.1/32 -j RETURN",
		"-t nat -A ISTIO_OUTPUT -j ISTIO_REDIRECT",
		"-t nat -A OUTPUT -p tcp -j ISTIO_OUTPUT",
	}, ""},
	{"linkerd-like", asker{name: "mesh", uid: 2102, gid: 2102}, 4140, []string{
		"-t nat -N PROXY_INIT_OUTPUT",
		"-t nat -A PROXY_INIT_OUTPUT -m owner --uid-owner 2102 -j RETURN",
		"-t nat -A PROXY_INIT_OUTPUT -o lo -j RETURN",
		"-t nat -A PROXY_INIT_OUTPUT -p tcp -j REDIRECT --to-port 4140",
		"-t nat -A OUTPUT -j PROXY_INIT_OUTPUT",
	}, ""},
	{"istio-like, nft mode", asker{name: "mesh", uid: 1337, gid: 1337}, 15001, nil, `
table inet istio-proxy-nat {
	chain istio-redirect { meta l4proto tcp redirect to :15001; }
	chain istio-output {
		oifname "lo" meta skuid != 1337 return
		meta skuid 1337 return
		meta skgid 1337 return
		ip daddr 127.0.0.1 return
		jump istio-redirect
	}
	chain output { type nat hook output priority -100; jump istio-output; }
}
table inet istio-proxy-raw {
	chain output { type filter hook output priority -300; udp dport 53 ct zone set 1; }
}
`},
	// The mesh's proxy runs on the node, and marks its sockets in the pod's namespace.
	{"ambient-like", asker{name: "mesh", mark: 0x539}, 15001, nil, `
table inet istio-ambient-nat {
	chain istio-output {
		meta l4proto tcp meta mark & 0xfff == 0x111 accept
		oifname "lo" ip daddr != 127.0.0.1 accept
		meta l4proto tcp ip daddr != 127.0.0.1 meta mark & 0xfff != 0x539 redirect to :15001
	}
	chain output { type nat hook output priority -100; jump istio-output; }
}
table inet istio-ambient-mangle {
	chain prerouting { type filter hook prerouting priority -150; meta mark & 0xfff == 0x539 ct mark set ct mark & 0xfffff000 | 0x111; }
	chain output { type route hook output priority -150; ct mark & 0xfff == 0x111 meta mark set ct mark; }
}
`},
}

// backends returns the backends on which the mesh can have its rules.
func (m mesh) backends() []string {
	if m.nft != "" {
		return []string{"nftables"}
	}
	return iptablesBackends
}

func (p *redirectPod) installMesh(m mesh, backend string) {
	p.t.Helper()
	if m.nft != "" {
		p.mustRun(m.nft, "nft", "-f", "-")
		return
	}
	p.iptables(backend, m.iptables...)
}

// meshRow has the servers that answer in a pod with a service mesh.
type meshRow struct {
	// app, proxy and mesh are the servers that answer each of these users at the metadata
	// address. others answers the app at another address; it shows that the mesh works.
	app, proxy, mesh, others string
}

func (p *redirectPod) askBesideMesh(meshUser asker) meshRow {
	p.t.Helper()
	return meshRow{
		app:    p.ask(appUser, metadata80)[0],
		proxy:  p.ask(proxyUser, metadata80)[0],
		mesh:   p.ask(meshUser, metadata80)[0],
		others: p.ask(appUser, "tcp/198.51.100.10:80")[0],
	}
}

// What answers if our rules are asked first, and if the mesh's are: then the mesh's proxy gets the
// request, and what it forwards goes to the proxy.
var (
	ourWay   = meshRow{byProxy, byIMDS, byProxy, byMesh}
	theirWay = meshRow{byMesh, byMesh, byProxy, byMesh}
)

// TestRedirectBesideMesh installs the rules of a mesh before and after those of proxy-init, on
// each combination of backends. The native backend's rules are always asked first.
func TestRedirectBesideMesh(t *testing.T) {
	t.Parallel()
	var log strings.Builder
	table := tabwriter.NewWriter(&log, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "mesh\tits backend\tproxy-init's backend\tits rules come\tapp at 80\tproxy at 80\tmesh at 80\tapp elsewhere")
	for _, m := range meshes {
		for _, theirs := range m.backends() {
			for _, ours := range backends {
				for _, order := range []string{"before", "after"} {
					want := ourWay
					if ours != "native" && theirs != ours && order == "after" {
						want = theirWay // of equal priorities, the kernel asks the last first
					}
					pod := newRedirectPod(t)
					pod.answer(fmt.Sprintf("%s=tcp/127.0.0.1:%d", byMesh, m.port))
					if order == "before" {
						pod.installMesh(m, theirs)
					}
					pod.install("--backend=" + ours)
					if order == "after" {
						pod.installMesh(m, theirs)
					}
					pod.answerAs(proxyUser, byProxy+"=tcp/127.0.0.1:8000")
					got := pod.askBesideMesh(m.user)
					if got != want {
						t.Errorf("%s on %s, %s proxy-init on %s: %+v, want %+v", m.name, theirs, order, ours, got, want)
					}
					fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", m.name, theirs, ours, order, got.app, got.proxy, got.mesh, got.others)
				}
			}
		}
	}
	table.Flush()
	t.Logf("the server that answers, with a service mesh\n%s", &log)
}

// nftMesh has the rules of a mesh in its own table, which iptables does not see.
const nftMesh = `table ip mesh {
	chain output {
		type nat hook output priority %d; policy accept;
		meta skuid 1337 return
		oifname "lo" return
		ip protocol tcp redirect to :15001
	}
}
`

// TestRedirectBesideNFTMesh: if the rules of a mesh are asked before those of proxy-init, the
// application's requests go to the mesh, but never to the metadata service. With the native
// backend this is so only for rules at the lowest priority that the kernel allows.
func TestRedirectBesideNFTMesh(t *testing.T) {
	t.Parallel()
	var log strings.Builder
	table := tabwriter.NewWriter(&log, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "priority\tproxy-init's backend\tits rules come\tproxy-init exits with\tapp at 80\tproxy at 80\tmesh at 80\tapp elsewhere")
	for _, tt := range []struct {
		priority int // those of proxy-init are -199 (native) and -100
		order    string
		code     int // of the iptables backends
		want     meshRow
		native   meshRow
	}{
		{-199, "before", 9, theirWay, ourWay},
		{-199, "after", 0, theirWay, theirWay},
		{-150, "before", 9, theirWay, ourWay},
		{-150, "after", 0, theirWay, ourWay},
		{-100, "before", 0, ourWay, ourWay},
		{-100, "after", 0, theirWay, ourWay},
		{-90, "before", 0, ourWay, ourWay},
		{-90, "after", 0, ourWay, ourWay},
	} {
		for _, ours := range backends {
			pod := newRedirectPod(t)
			mesh := fmt.Sprintf(nftMesh, tt.priority)
			if tt.order == "before" {
				pod.mustRun(mesh, "nft", "-f", "-")
			}
			code, want := tt.code, tt.want
			if ours == "native" {
				code, want = 0, tt.native
			}
			r := pod.tryInit(initOptions{}, "--backend="+ours)
			if r.code != code {
				t.Errorf("priority %d %s: proxy-init exits with %d, want %d\n%s", tt.priority, tt.order, r.code, code, r.stderr)
			}
			if tt.order == "after" {
				pod.mustRun(mesh, "nft", "-f", "-")
			}
			pod.answer(byMesh + "=tcp/127.0.0.1:15001")
			pod.answerAs(proxyUser, byProxy+"=tcp/127.0.0.1:8000")
			got := pod.askBesideMesh(asker{name: "mesh", uid: 1337, gid: 1337})
			if got != want {
				t.Errorf("priority %d %s, proxy-init on %s: %+v, want %+v", tt.priority, tt.order, ours, got, want)
			}
			fmt.Fprintf(table, "%d\t%s\t%s\t%d\t%s\t%s\t%s\t%s\n", tt.priority, ours, tt.order, r.code, got.app, got.proxy, got.mesh, got.others)
		}
	}
	table.Flush()
	t.Logf("the server that answers, with an nft-native service mesh\n%s", &log)
}

// newCgroup makes a cgroup, and returns its directory and a command line that runs a program in it.
func newCgroup(t *testing.T) (dir string, enter []string) {
	t.Helper()
	root := "/sys/fs/cgroup/unified"
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		root = "/sys/fs/cgroup"
	} else if _, err := os.Stat(root); err != nil {
		t.Skip("this machine has no cgroup v2, to which eBPF programs are attached")
	}
	dir, err := os.MkdirTemp(root, "e2e-connect-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	})
	return dir, []string{"sh", "-c", `echo $$ >"$0/cgroup.procs" && exec "$@"`, dir}
}

// TestRedirectBesideConnectHook has an eBPF program that changes the metadata address in connect, as
// Cilium does for a Service or a local redirect policy. No rule for packets sees that address
// then. The proof by a connection notices it, whatever the backend.
func TestRedirectBesideConnectHook(t *testing.T) {
	t.Parallel()
	for _, backend := range backends {
		pod := newRedirectPod(t)
		dir, enter := newCgroup(t)
		inside := initOptions{prefix: enter}
		attach := func() *helper {
			return startHelper(t, exec.Command(program("redirectpod"), "hook", "169.254.169.254=198.51.100.10@"+dir))
		}
		ask := func() string {
			command := append(append([]string{}, enter...), appUser.as(program("redirectpod"), "ask", metadata80)...)
			return strings.TrimSpace(pod.mustRun("", command...))
		}
		hook := attach()
		if r := pod.tryInit(inside, "--backend="+backend); r.code != 9 {
			t.Errorf("%s after the hook: exit code %d, want 9\n%s", backend, r.code, r.stderr)
		}
		if got := ask(); got != byOutside {
			t.Errorf("%s with the hook: %s, want %s", backend, got, byOutside)
		}
		hook.stdin.Close()
		for range hook.lines {
		}
		if r := pod.tryInit(inside, "--backend="+backend); r.code != 0 {
			t.Errorf("%s without the hook: exit code %d\n%s", backend, r.code, r.stderr)
		}
		pod.answerAs(proxyUser, byProxy+"=tcp/127.0.0.1:8000")
		if got := ask(); got != byProxy {
			t.Errorf("%s without the hook: %s, want %s", backend, got, byProxy)
		}
		hook = attach()
		if got := ask(); got != byOutside { // a limit that docs/security.md names
			t.Errorf("%s before the hook: %s, want %s", backend, got, byOutside)
		}
		hook.stdin.Close()
		for range hook.lines {
		}
	}
}
