package attack

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"imds-oidc-proxy/test/kit/pod"
)

const (
	// adminConnections is how many connections the proxy serves at the admin port.
	adminConnections = 64

	adminPort    = 8001
	adminAddress = "10.244.0.7:8001"

	// maxAdminGrowth is by how many bytes an attack on the admin port may increase anonymous
	// memory.
	maxAdminGrowth = 6 * mebibyte

	// adminRounds is how many times the attack is made, each time on a new proxy. The worst
	// result counts.
	adminRounds   = 5
	adminDuration = 2 * time.Second
)

// TestAdminAttack: an attack from another pod on the admin port increases the proxy's anonymous
// memory by at most maxAdminGrowth, and a probe is answered within maxWait.
func TestAdminAttack(t *testing.T) {
	node := newNode(t)
	for _, test := range []struct {
		name, kind  string
		connections int
	}{
		{"header of 3,147 lines at the admin port", "lines", adminConnections},
		{"connections to the admin port that send nothing", "silent", 1000},
	} {
		t.Run(test.name, func(t *testing.T) { attackAdmin(t, node, test.name, test.kind, test.connections) })
	}
}

func attackAdmin(t *testing.T, node *node, name, kind string, connections int) {
	growth, worst, failures, opened, peak, sockets := 0, 0.0, 0, 0, 0, 0
	for range adminRounds {
		t.Run("round", func(t *testing.T) {
			group := newCgroup(t, memoryLimit)
			startPod(t, group, "--admin-address="+adminAddress)
			fillCache(t)
			probe := node.start(t, "ask", adminAddress, "/livez")
			before := group.anonymous(t)
			attacker := node.start(t, "attack", kind, adminAddress, fmt.Sprint(connections))
			stop := make(chan struct{})
			time.AfterFunc(adminDuration, func() { close(stop) })
			most := maximum(5*time.Millisecond, stop, func() int { return group.anonymous(t) })
			sockets = max(sockets, group.sockets(t, adminPort))
			var waited map[string]waits
			probe.end(t, &waited)
			var attacked struct{ Opened int }
			attacker.end(t, &attacked)
			for _, w := range waited {
				worst, failures = max(worst, w.Worst), failures+w.Failures
			}
			growth, opened, peak = max(growth, most-before), opened+attacked.Opened, max(peak, group.peak(t))
		})
	}
	if growth > maxAdminGrowth {
		t.Errorf("the attack increased anonymous memory by %.1f MiB, want at most %d MiB", float64(growth)/mebibyte, maxAdminGrowth/mebibyte)
	}
	if slowest := time.Duration(worst * float64(time.Millisecond)); slowest > maxWait {
		t.Errorf("a probe waited %s, want at most %s", slowest, maxWait)
	}
	addRow(name, fmt.Sprintf("%.1f MiB, anonymous +%.1f MiB", float64(peak)/mebibyte, float64(growth)/mebibyte),
		fmt.Sprintf("%.1f MiB", float64(sockets)/mebibyte), fmt.Sprintf("%.0f ms", worst), failures, opened)
}

// node is another network namespace, which has a direct link to that of the pod. An attacker in
// another pod and the kubelet connect from such a namespace.
type node struct{ namespace string }

const nodeSetup = `link add eth0 type veth peer name node0 netns %d
address add 10.244.0.7/24 dev eth0
link set eth0 up
`

const peerSetup = `link set lo up
address add 10.244.0.1/24 dev node0
link set node0 up
`

func newNode(t *testing.T) *node {
	t.Helper()
	holder := exec.Command("cat") // it runs until its standard input is closed
	holder.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	stdin, err := holder.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stdin.Close()
		_ = holder.Wait()
	})
	n := &node{fmt.Sprintf("/proc/%d/ns/net", holder.Process.Pid)}
	here, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	if there, err := os.Readlink(n.namespace); err != nil || there == here {
		t.Fatalf("the other network namespace is %q (%v) and this one %q, want two different ones", there, err, here)
	}
	mustRun(t, fmt.Sprintf(nodeSetup, holder.Process.Pid), "ip", "-batch", "-")
	mustRun(t, peerSetup, n.inside("ip", "-batch", "-")...)
	return n
}

// inside returns the command line that runs these arguments in the namespace.
func (n *node) inside(args ...string) []string {
	return append([]string{"nsenter", "--net=" + n.namespace, "--"}, args...)
}

// start is like the function start, in the namespace.
func (n *node) start(t *testing.T, args ...string) *client {
	t.Helper()
	return startClient(t, n.inside(slices.Concat(asUser(pod.ApplicationUID), []string{program("client")}, args)...))
}

func mustRun(t *testing.T, stdin string, args ...string) {
	t.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdin = strings.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
}
