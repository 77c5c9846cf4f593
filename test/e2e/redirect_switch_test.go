package e2e

import (
	"context"
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

// sinceLast returns how often each server has answered since the last call. It waits until at
// least one has.
func (d dials) sinceLast() map[string]int {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), readyTimeout)
	defer cancel()
	counts := map[string]int{}
	waitUntil(d.t, ctx, "a server answers", func() bool {
		for _, m := range answerCount.FindAllStringSubmatch(d.again(), -1) {
			counts[m[1]], _ = strconv.Atoi(m[2])
		}
		return len(counts) > 0
	})
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
			ctx, cancel := context.WithTimeout(t.Context(), readyTimeout)
			defer cancel()
			for _, c := range clients {
				waitUntil(t, ctx, c.user.name+" reaches the metadata service", func() bool { return c.sinceLast()[byIMDS] > 0 })
			}
		})
	}
}
