package attack

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"imds-oidc-proxy/test/kit/entra"
	"imds-oidc-proxy/test/kit/netns"
	"imds-oidc-proxy/test/kit/pod"
)

const (
	// memoryLimit and goMemoryLimit are the sidecar's, as injection sets them.
	memoryLimit   = 64 * mebibyte
	goMemoryLimit = "GOMEMLIMIT=48MiB"

	// maxPeak leaves room for what a kernel counts that this one does not.
	maxPeak = 56 * mebibyte

	// maxWait is how long a client with a cached token may wait for an answer: so long that
	// a busy machine keeps it, and shorter than any timeout of the proxy's.
	maxWait = time.Second

	// connections is above the proxy's limit on them, 1,088.
	connections = 1200

	// duration is for how long an attack goes on.
	duration = 10 * time.Second

	// patience bounds what is not part of an attack.
	patience = time.Minute

	tokenPath = "/metadata/identity/oauth2/token?api-version=2018-02-01&resource="
	cached    = tokenPath + "https://vault.azure.net"
	proxyPort = 8000
)

// TestAttacks: whatever the attacker does, the proxy's memory stays bounded, and a client
// with a cached token is answered at once.
func TestAttacks(t *testing.T) {
	for _, test := range []struct {
		name, kind string
		prepare    func(*pod.Pod)
	}{
		{name: "connections that send nothing", kind: "silent"},
		{name: "header of 3,147 lines, unfinished", kind: "lines"},
		{name: "header line of 15 KiB, unfinished", kind: "line"},
		{name: "1,000 query parameters, unfinished", kind: "params=/metadata/identity/oauth2/token"},
		{name: "1,000 query parameters", kind: "finished-params=/readyz"},
		{name: "60 x GET metrics, never read", kind: "pipeline=/metrics"},
		{name: "60 x GET instance metadata, never read", kind: "pipeline=/metadata/instance?api-version=2021-02-01"},
		{name: "60 x GET of a token, never read", kind: "pipeline=" + cached},
		{name: "60 x GET of a 404, never read", kind: "pipeline=/latest/"},
		{name: "GET of instance metadata while IMDS hangs", kind: "call=/metadata/instance?api-version=2021-02-01",
			prepare: func(p *pod.Pod) { p.Decoy.Hang() }},
		{name: "callers of one key while Entra takes 6 s", kind: "call=" + tokenPath + "https://storage.azure.com",
			prepare: func(p *pod.Pod) { p.Entra.FailAlways(entra.FaultSlow(6 * time.Second)) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			group := newCgroup(t, memoryLimit)
			p := startPod(t, group)
			fillCache(t)
			polite := start(t, "ask", address, cached)
			if test.prepare != nil {
				test.prepare(p)
			}
			attacker := start(t, "attack", test.kind, address, fmt.Sprint(connections))
			stop := make(chan struct{})
			time.AfterFunc(duration, func() { close(stop) })
			sockets := greatest(100*time.Millisecond, stop, func() int { return group.sockets(t, proxyPort) })
			var waited map[string]waits
			polite.end(t, &waited)
			var attacked struct{ Opened, Answered int }
			attacker.end(t, &attacked)
			judge(t, test.name, group, sockets, waited, attacked.Opened)
		})
	}
}

const address = netns.MetadataAddress + ":80"

// waits is what the polite client saw of one way of asking.
type waits struct {
	Answers, Failures int
	Worst             float64 // milliseconds
	LastError         string
}

func judge(t *testing.T, name string, group *cgroup, sockets int, waited map[string]waits, opened int) {
	t.Helper()
	peak, kills := group.peak(t), group.kills(t)
	worst, failures := 0.0, 0
	for way, w := range waited {
		worst, failures = max(worst, w.Worst), failures+w.Failures
		if slowest := time.Duration(w.Worst * float64(time.Millisecond)); slowest > maxWait {
			t.Errorf("on a %s connection the client waited %s, want %s at the most; %d tries failed, the last: %s",
				way, slowest, maxWait, w.Failures, w.LastError)
		}
	}
	used := fmt.Sprintf("%.1f MiB", float64(peak)/mebibyte)
	if kills > 0 {
		t.Errorf("the kernel killed the proxy, which took more than %d MiB", memoryLimit/mebibyte)
		used = "killed"
	}
	if peak > maxPeak {
		t.Errorf("the proxy took %s, want %d MiB at the most", used, maxPeak/mebibyte)
	}
	addRow(name, used, fmt.Sprintf("%.1f MiB", float64(sockets)/mebibyte), fmt.Sprintf("%.0f ms", worst), failures, opened)
}

// startPod brings up a pod whose proxy is in the cgroup.
func startPod(t *testing.T, group *cgroup, args ...string) *pod.Pod {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	p, err := pod.Start(ctx, pod.Config{
		Proxy: program("proxy"), ProxyInit: program("proxy-init"), ProxyArgs: args,
		ProxyEnv: []string{goMemoryLimit}, ProxyPrefix: group.enter(pod.ProxyUID),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Stop)
	return p
}

// fillCache has the proxy get the token that the polite client asks for.
func fillCache(t *testing.T) {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, "http://"+address+cached, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Metadata", "true")
	client := http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("the first token: %s", resp.Status)
	}
}

// client is a running program of test/attack/client.
type client struct {
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stdout *bufio.Reader
}

// start runs the client as the application's user, who has no capabilities, and waits
// until it has begun.
func start(t *testing.T, args ...string) *client {
	t.Helper()
	return startClient(t, slices.Concat(asUser(pod.ApplicationUID), []string{program("client")}, args))
}

// asUser is a command that runs another one as a user, without capabilities. What else the
// machine has to do must not show in what is measured: it comes after the proxy, its
// attacker and its client.
func asUser(uid int) []string {
	id := fmt.Sprint(uid)
	return []string{"nice", "-n", "-10", "setpriv", "--reuid=" + id, "--regid=" + id, "--clear-groups", "--inh-caps=-all", "--"}
}

func startClient(t *testing.T, args []string) *client {
	t.Helper()
	c := &client{cmd: exec.Command(args[0], args[1:]...)}
	c.cmd.Stderr = os.Stderr
	var err error
	if c.stdin, err = c.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	stdout, err := c.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.stdout = bufio.NewReader(stdout)
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.stop() })
	if line, err := c.stdout.ReadString('\n'); strings.TrimSpace(line) != "ready" {
		t.Fatalf("the client says %q, %v", line, err)
	}
	return c
}

// end ends the client and reads what it saw.
func (c *client) end(t *testing.T, saw any) {
	t.Helper()
	c.stdin.Close()
	if err := json.NewDecoder(c.stdout).Decode(saw); err != nil {
		t.Fatalf("%s: %v", c.cmd, err)
	}
	c.stop()
}

func (c *client) stop() {
	_ = c.cmd.Process.Kill() // it may have ended
	_ = c.cmd.Wait()
}

// waitFor waits for a condition.
func waitFor(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Errorf("waited %s for %s", patience, what)
			return
		}
	}
}
