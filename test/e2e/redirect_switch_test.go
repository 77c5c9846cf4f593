package e2e

import (
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// dials is a client that connects to the metadata address without a pause.
type dials struct {
	*helper
	user asker
}

func (p *redirectPod) repeat(u asker) dials {
	p.t.Helper()
	return dials{startHelper(p.t, p.command(u.as(program("redirectpod"), "repeat", metadata80)...)), u}
}

var answerCount = regexp.MustCompile(`(\S+)=(\d+)`)

// sinceLast returns how often each server has answered since the last call.
func (d dials) sinceLast() map[string]int {
	d.t.Helper()
	counts := map[string]int{}
	for _, m := range answerCount.FindAllStringSubmatch(d.again(), -1) {
		counts[m[1]], _ = strconv.Atoi(m[2])
	}
	return counts
}

// TestRedirectSwitchHasNoGap: applications connect without a pause while the redirect moves from
// each backend to each other one, and from azure-workload-identity's rules. No connection
// reaches the metadata service, and none is lost.
func TestRedirectSwitchHasNoGap(t *testing.T) {
	t.Parallel()
	for _, first := range []string{"nft", "legacy", "azwi on nft", "azwi on legacy"} {
		t.Run(first, func(t *testing.T) {
			t.Parallel()
			pod := newRedirectPod(t)
			pod.answerAs(proxyUser, byProxy+"=tcp/127.0.0.1:8000")
			if backend, azwi := strings.CutPrefix(first, "azwi on "); azwi {
				pod.iptables(backend, azwiScript...)
			} else {
				pod.install("--backend=" + first)
			}
			var clients []dials
			for _, u := range []asker{appUser, rootUser} {
				clients = append(clients, pod.repeat(u))
			}
			path := []string{"native", "nft", "native", "legacy", "native", "native"}
			for _, backend := range path {
				pod.install("--backend=" + backend)
				for _, c := range clients {
					got := c.sinceLast()
					if got[byProxy] == 0 || len(got) != 1 {
						t.Errorf("%s: answers while moving to %s: %v, want the proxy's only", c.user.name, backend, got)
					}
				}
			}
			// The test can see another answer: without a redirect the clients reach the decoy.
			pod.install("--cleanup")
			for _, c := range clients {
				c.sinceLast()
			}
			pod.expect(appUser, metadata80, byIMDS)
			for _, c := range clients {
				if got := c.sinceLast(); got[byIMDS] == 0 {
					t.Errorf("%s: answers without a redirect: %v, want the metadata service's", c.user.name, got)
				}
			}
		})
	}
}
