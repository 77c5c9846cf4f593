package e2e

import (
	"fmt"
	"strings"
	"testing"
	"text/tabwriter"
)

// meshes have rules like those from the init containers of two service meshes: connections
// from the pod go to the mesh's proxy, except those of this proxy itself.
var meshes = []struct {
	name  string
	user  asker
	port  int
	rules []string
}{
	{"istio-like", asker{"mesh", 1337, 1337}, 15001, []string{
		"-t nat -N ISTIO_OUTPUT",
		"-t nat -N ISTIO_REDIRECT",
		"-t nat -A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001",
		"-t nat -A ISTIO_OUTPUT -o lo -m owner ! --uid-owner 1337 -j RETURN",
		"-t nat -A ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN",
		"-t nat -A ISTIO_OUTPUT -m owner --gid-owner 1337 -j RETURN",
		"-t nat -A ISTIO_OUTPUT -d 127.0.0.1/32 -j RETURN",
		"-t nat -A ISTIO_OUTPUT -j ISTIO_REDIRECT",
		"-t nat -A OUTPUT -p tcp -j ISTIO_OUTPUT",
	}},
	{"linkerd-like", asker{"mesh", 2102, 2102}, 4140, []string{
		"-t nat -N PROXY_INIT_OUTPUT",
		"-t nat -A PROXY_INIT_OUTPUT -m owner --uid-owner 2102 -j RETURN",
		"-t nat -A PROXY_INIT_OUTPUT -o lo -j RETURN",
		"-t nat -A PROXY_INIT_OUTPUT -p tcp -j REDIRECT --to-port 4140",
		"-t nat -A OUTPUT -j PROXY_INIT_OUTPUT",
	}},
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

// TestRedirectBesideMesh installs the rules of a mesh before and after those of proxy-init,
// on the same backend and on the other one.
func TestRedirectBesideMesh(t *testing.T) {
	t.Parallel()
	var log strings.Builder
	table := tabwriter.NewWriter(&log, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "mesh\tits backend\tproxy-init's backend\tits rules come\tapp at 80\tproxy at 80\tmesh at 80\tapp elsewhere")
	for _, m := range meshes {
		for _, theirs := range backends {
			for _, ours := range backends {
				for _, order := range []string{"before", "after"} {
					want := meshRow{byProxy, byIMDS, byProxy, byMesh}
					if theirs != ours && order == "after" {
						// The kernel applies the rules of the last backend first. The mesh's
						// proxy gets the request, and what it forwards goes to the proxy.
						want = meshRow{byMesh, byMesh, byProxy, byMesh}
					}
					pod := newRedirectPod(t)
					pod.answer(fmt.Sprintf("%s=tcp/127.0.0.1:%d", byMesh, m.port))
					if order == "before" {
						pod.iptables(theirs, m.rules...)
					}
					pod.install("--iptables-mode=" + ours)
					if order == "after" {
						pod.iptables(theirs, m.rules...)
					}
					pod.answer(byProxy + "=tcp/127.0.0.1:8000")
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

// TestRedirectBesideNFTMesh: if the rules of a mesh run before those of proxy-init, the
// application's requests go to the mesh, but never to the metadata service.
func TestRedirectBesideNFTMesh(t *testing.T) {
	t.Parallel()
	var log strings.Builder
	table := tabwriter.NewWriter(&log, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "priority\tproxy-init's backend\tits rules come\tproxy-init exits with\tapp at 80\tproxy at 80\tmesh at 80\tapp elsewhere")
	ourWay, theirWay := meshRow{byProxy, byIMDS, byProxy, byMesh}, meshRow{byMesh, byMesh, byProxy, byMesh}
	for _, tt := range []struct {
		priority int // that of proxy-init's rules is -100
		order    string
		code     int
		want     meshRow
	}{
		{-150, "before", 9, theirWay},
		{-150, "after", 0, theirWay},
		{-100, "before", 0, ourWay},
		{-100, "after", 0, theirWay},
		{-90, "before", 0, ourWay},
		{-90, "after", 0, ourWay},
	} {
		for _, ours := range backends {
			pod := newRedirectPod(t)
			mesh := fmt.Sprintf(nftMesh, tt.priority)
			if tt.order == "before" {
				pod.mustRun(mesh, "nft", "-f", "-")
			}
			r := pod.tryInit(initOptions{}, "--iptables-mode="+ours)
			if r.code != tt.code {
				t.Errorf("priority %d %s: proxy-init exits with %d, want %d\n%s", tt.priority, tt.order, r.code, tt.code, r.stderr)
			}
			if tt.order == "after" {
				pod.mustRun(mesh, "nft", "-f", "-")
			}
			pod.answer(byMesh+"=tcp/127.0.0.1:15001", byProxy+"=tcp/127.0.0.1:8000")
			got := pod.askBesideMesh(asker{"mesh", 1337, 1337})
			if got != tt.want {
				t.Errorf("priority %d %s, proxy-init on %s: %+v, want %+v", tt.priority, tt.order, ours, got, tt.want)
			}
			fmt.Fprintf(table, "%d\t%s\t%s\t%d\t%s\t%s\t%s\t%s\n", tt.priority, ours, tt.order, r.code, got.app, got.proxy, got.mesh, got.others)
		}
	}
	table.Flush()
	t.Logf("the server that answers, with an nft-native service mesh\n%s", &log)
}
