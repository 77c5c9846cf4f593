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
	// memoryLimit and goMemoryLimit are the values that injection sets for the sidecar.
	memoryLimit   = 64 * mebibyte
	goMemoryLimit = "GOMEMLIMIT=48MiB"

	// maxPeak is below memoryLimit because other kernels may count memory that this one does
	// not.
	maxPeak = 56 * mebibyte

	// maxWait is how long a client with a cached token may wait for an answer: long enough for
	// a busy machine, and shorter than any timeout of the proxy.
	maxWait = time.Second

	// connections is above the proxy's connection limit, 1,088.
	connections = 1200

	// duration is how long an attack lasts.
	duration = 10 * time.Second

	// setupTimeout bounds each step that is not part of an attack.
	setupTimeout = time.Minute

	tokenPath = "/metadata/identity/oauth2/token?api-version=2018-02-01&resource="
	cached    = tokenPath + "https://vault.azure.net"
	proxyPort = 8000
)

// TestAttacks: during each attack the proxy's memory stays bounded, and a client with a cached
// token is answered within maxWait.
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
			wellBehaved := start(t, "ask", address, cached)
			if test.prepare != nil {
				test.prepare(p)
			}
			attacker := start(t, "attack", test.kind, address, fmt.Sprint(connections))
			stop := make(chan struct{})
			time.AfterFunc(duration, func() { close(stop) })
			sockets := maximum(100*time.Millisecond, stop, func() int { return group.sockets(t, proxyPort) })
			var waited map[string]waits
			wellBehaved.end(t, &waited)
			var attacked struct{ Opened, Answered int }
			attacker.end(t, &attacked)
			checkLimits(t, test.name, group, sockets, waited, attacked.Opened)
		})
	}
}

const address = netns.MetadataAddress + ":80"

// waits are the results of the well-behaved client for one kind of connection.
type waits struct {
	Answers, Failures int
	Worst             float64 // milliseconds
	LastError         string
}

func checkLimits(t *testing.T, name string, group *cgroup, sockets int, waited map[string]waits, opened int) {
	t.Helper()
	peak, kills := group.peak(t), group.kills(t)
	worst, failures := 0.0, 0
	for way, w := range waited {
		worst, failures = max(worst, w.Worst), failures+w.Failures
		if slowest := time.Duration(w.Worst * float64(time.Millisecond)); slowest > maxWait {
			t.Errorf("on a %s connection the client waited %s, want at most %s; %d attempts failed, the last with: %s",
				way, slowest, maxWait, w.Failures, w.LastError)
		}
	}
	used := fmt.Sprintf("%.1f MiB", float64(peak)/mebibyte)
	if kills > 0 {
		t.Errorf("the kernel killed the proxy, which used more than %d MiB", memoryLimit/mebibyte)
		used = "killed"
	}
	if peak > maxPeak {
		t.Errorf("the proxy used %s, want at most %d MiB", used, maxPeak/mebibyte)
	}
	addRow(name, used, fmt.Sprintf("%.1f MiB", float64(sockets)/mebibyte), fmt.Sprintf("%.0f ms", worst), failures, opened)
}

// startPod starts a pod whose proxy runs in the cgroup.
func startPod(t *testing.T, group *cgroup, args ...string) *pod.Pod {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), setupTimeout)
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

// fillCache makes the proxy cache the token that the well-behaved client requests.
func fillCache(t *testing.T) {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, "http://"+address+cached, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Metadata", "true")
	client := http.Client{Timeout: setupTimeout, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("first token: got %s, want 200", resp.Status)
	}
}

// client is a running process of test/attack/client.
type client struct {
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stdout *bufio.Reader
}

// start runs the client as the application's user, without capabilities, and waits until it has
// begun.
func start(t *testing.T, args ...string) *client {
	t.Helper()
	return startClient(t, slices.Concat(asUser(pod.ApplicationUID), []string{program("client")}, args))
}

// asUser returns a command that runs another one as a user, without capabilities. It raises the
// priority, so that other processes of the machine do not affect the measurements of the proxy, the
// attacker and the client.
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
		t.Fatalf("client: got the line %q, %v, want ready", line, err)
	}
	return c
}

// end ends the client and reads its results.
func (c *client) end(t *testing.T, results any) {
	t.Helper()
	c.stdin.Close()
	if err := json.NewDecoder(c.stdout).Decode(results); err != nil {
		t.Fatalf("%s: %v", c.cmd, err)
	}
	c.stop()
}

func (c *client) stop() {
	_ = c.cmd.Process.Kill() // an error means that it has ended
	_ = c.cmd.Wait()
}

// waitFor waits until the condition is true, at most for setupTimeout.
func waitFor(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(setupTimeout); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Errorf("waited %s for %s", setupTimeout, what)
			return
		}
	}
}
