package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// The results of a connection in the redirect tests: the server that answers, or an error.
const (
	byIMDS       = "imds"       // stand-in for the real metadata service, on the node
	byWireServer = "wireserver" // stand-in for 168.63.129.16, on the node
	byOutside    = "outside"    // any other service
	byProxy      = "proxy"      // the server on the proxy's port
	byMesh       = "mesh"       // the server on a service mesh's port
	isRefused    = "refused"
	isReset      = "reset"
)

// backends are the values of --backend, except auto, and iptablesBackends those that run
// iptables.
var (
	backends         = []string{"native", "nft", "legacy"}
	iptablesBackends = []string{"nft", "legacy"}
)

// redirectPod is a network namespace for a pod. A veth pair connects it to another namespace,
// which stands for the node and the network behind it. So the metadata address is one hop
// away, as in a real pod, and the tests see every request that reaches it.
type redirectPod struct {
	t   *testing.T
	pid int
	ns  string
	// node is the node's namespace. Nil: this is the node.
	node *redirectPod
}

const nodeSetup = `link set lo up
address add 169.254.169.254/32 dev lo
address add 168.63.129.16/32 dev lo
address add 198.51.100.10/32 dev lo
link add node0 type veth peer name eth0 netns %d
address add 10.244.0.1/24 dev node0
link set node0 up
`

const podSetup = `link set lo up
address add 10.244.0.7/24 dev eth0
link set eth0 up
route add default via 10.244.0.1
`

// newRedirectPod makes both namespaces, and starts the stand-ins in that of the node.
func newRedirectPod(t *testing.T) *redirectPod {
	t.Helper()
	node := &redirectPod{t: t}
	node.hold()
	pod := &redirectPod{t: t, node: node}
	pod.hold()
	node.mustRun(fmt.Sprintf(nodeSetup, pod.pid), "ip", "-batch", "-")
	pod.mustRun(podSetup, "ip", "-batch", "-")
	node.answer(
		byIMDS+"=tcp/169.254.169.254:80", byIMDS+"=tcp/169.254.169.254:443", byIMDS+"=tcp/169.254.169.254:8080",
		byIMDS+"=udp/169.254.169.254:80", byIMDS+"=udp/169.254.169.254:53",
		byWireServer+"=tcp/168.63.129.16:80", byWireServer+"=tcp/168.63.129.16:32526", byWireServer+"=udp/168.63.129.16:53",
		byOutside+"=tcp/198.51.100.10:80", byOutside+"=tcp/198.51.100.10:443")
	return pod
}

// hold starts the process that keeps the namespace open.
func (p *redirectPod) hold() {
	p.t.Helper()
	cmd := exec.Command(program("redirectpod"), "pause")
	cmd.Env = append(os.Environ(), quickExit)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	startHelper(p.t, cmd)
	p.pid = cmd.Process.Pid
	p.ns = fmt.Sprintf("/proc/%d/ns/net", p.pid)
	here, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		p.t.Fatal(err)
	}
	if there, err := os.Readlink(p.ns); err != nil || there == here {
		p.t.Fatalf("the pod's network namespace is %q (%v), this process has %q; want different ones", there, err, here)
	}
}

// answer starts servers in the namespace, each NAME=NETWORK/ADDRESS.
func (p *redirectPod) answer(endpoints ...string) {
	p.t.Helper()
	startHelper(p.t, p.command(append([]string{program("redirectpod"), "answer"}, endpoints...)...))
}

// answerAs starts servers in the namespace as another user than root.
func (p *redirectPod) answerAs(u asker, endpoints ...string) *helper {
	p.t.Helper()
	return startHelper(p.t, p.command(u.as(append([]string{program("redirectpod"), "answer"}, endpoints...)...)...))
}

// answerAsOpen answers as a user that has no server: see "redirectpod open".
func (p *redirectPod) answerAsOpen(u asker, spec string) {
	p.t.Helper()
	startHelper(p.t, p.command(u.as(program("redirectpod"), "open", spec)...))
}

// command returns a command that runs a program in the namespace, as root.
func (p *redirectPod) command(args ...string) *exec.Cmd {
	cmd := exec.Command("nsenter", append([]string{"--net=" + p.ns, "--"}, args...)...)
	cmd.Env = append(os.Environ(), quickExit)
	return cmd
}

// quickExit makes programs with the race detector end at once. By default they wait for a
// second.
const quickExit = "GORACE=atexit_sleep_ms=0"

// mustRun runs a program in the namespace and returns its output.
func (p *redirectPod) mustRun(stdin string, args ...string) string {
	p.t.Helper()
	cmd := p.command(args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		p.t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// asker is a user that connects to servers.
type asker struct {
	name     string
	uid, gid int
	// mark is the mark of its connections (SO_MARK). If it is not zero, the user is root.
	mark int
}

var (
	rootUser   = asker{name: "root"}
	appUser    = asker{name: "1000:1000", uid: 1000, gid: 1000}
	proxyUser  = asker{name: "1501:1501", uid: 1501, gid: 1501}
	otherGroup = asker{name: "1501:1000", uid: 1501, gid: 1000}
	otherUser  = asker{name: "1000:1501", uid: 1000, gid: 1501}
)

// as returns the command line that runs a program as this user, without capabilities, except
// that which a mark needs.
func (u asker) as(args ...string) []string {
	if u.mark != 0 {
		return append([]string{"env", fmt.Sprintf("MARK=%d", u.mark)}, args...)
	}
	return append([]string{
		"setpriv", "--reuid", strconv.Itoa(u.uid), "--regid", strconv.Itoa(u.gid), "--clear-groups",
		"--bounding-set=-all", "--inh-caps=-all", "--",
	}, args...)
}

// ask connects to each endpoint as a user and returns the results.
func (p *redirectPod) ask(u asker, endpoints ...string) []string {
	p.t.Helper()
	out := p.mustRun("", u.as(append([]string{program("redirectpod"), "ask"}, endpoints...)...)...)
	return strings.Fields(out)
}

// expect fails the test unless the user's connection to the endpoint has the result want.
func (p *redirectPod) expect(u asker, endpoint, want string) {
	p.t.Helper()
	if got := p.ask(u, endpoint)[0]; got != want {
		p.t.Errorf("%s at %s: %s, want %s", u.name, endpoint, got, want)
	}
}

// keep opens a connection as a user and keeps it open.
func (p *redirectPod) keep(u asker, endpoint string) *helper {
	p.t.Helper()
	return startHelper(p.t, p.command(u.as(program("redirectpod"), "hold", endpoint)...))
}

// initResult is the result of a run of proxy-init.
type initResult struct {
	code           int
	stdout, stderr string
}

// initOptions are the options of a run of proxy-init. The zero value: as root with NET_ADMIN
// and NET_RAW, and only PATH in the environment.
type initOptions struct {
	caps   string   // in setpriv's syntax, such as "-all,+net_admin"
	env    []string // in addition to PATH
	prefix []string // program that runs proxy-init, with its arguments

	// keepInheritable keeps the inheritable capabilities that prefix has set.
	keepInheritable bool

	// noPrograms lets proxy-init find no other program.
	noPrograms bool
}

// enough are the capabilities that both backends need.
const enough = "-all,+net_admin,+net_raw"

// tryInit runs proxy-init with the privileges of a restricted pod.
func (p *redirectPod) tryInit(o initOptions, args ...string) initResult {
	p.t.Helper()
	if o.caps == "" {
		o.caps = enough
	}
	line := append([]string{}, o.prefix...)
	line = append(line, "setpriv", "--bounding-set="+o.caps, "--no-new-privs")
	if !o.keepInheritable {
		line = append(line, "--inh-caps=-all")
	}
	line = append(line, "--")
	if o.noPrograms {
		line = append(line, "env", "PATH=/nonexistent")
	}
	line = append(line, program("proxy-init"))
	cmd := p.command(append(line, args...)...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), quickExit}, o.env...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
		p.t.Fatal(err)
	}
	return initResult{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// install runs proxy-init and fails the test if proxy-init fails.
func (p *redirectPod) install(args ...string) initResult {
	p.t.Helper()
	r := p.tryInit(initOptions{}, args...)
	if r.code != 0 {
		p.t.Fatalf("proxy-init %s: exit code %d\n%s", strings.Join(args, " "), r.code, r.stderr)
	}
	return r
}

// rules returns the rules of all backends in the namespace, without counters and comments.
func (p *redirectPod) rules() string {
	p.t.Helper()
	var b strings.Builder
	b.WriteString("= native\n")
	for line := range strings.Lines(p.mustRun("", "nft", "list", "tables")) {
		if strings.TrimSpace(line) == "table inet imds_proxy" {
			b.WriteString(p.mustRun("", "nft", "list", "table", "inet", "imds_proxy"))
		}
	}
	for _, backend := range iptablesBackends {
		fmt.Fprintf(&b, "= %s\n", backend)
		for line := range strings.Lines(p.mustRun("", "iptables-"+backend+"-save")) {
			if !strings.HasPrefix(line, "#") {
				b.WriteString(withoutCounters(line))
			}
		}
	}
	return b.String()
}

func withoutCounters(line string) string {
	before, _, found := strings.Cut(line, " [")
	if found && strings.HasPrefix(line, ":") {
		return before + "\n"
	}
	return line
}
