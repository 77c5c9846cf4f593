package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"imds-oidc-proxy/internal/cnirequest"
)

// cniCall is one run of the CNI plugin, as a container runtime makes it.
type cniCall struct {
	command string
	version string // of the list
	netns   string

	annotations map[string]string // nil: the runtime passes none
	prevResult  string            // JSON
	entry       string            // further keys of the plugin's entry, each with a comma before it
	prefix      []string          // program that runs the plugin, with its arguments
}

// forPod returns an ADD for a pod whose annotation asks for the redirect. The request may be "".
func forPod(p *redirectPod, request string) cniCall {
	annotations := map[string]string{"kubernetes.io/config.seen": "2026-11-28T00:00:00Z", "note": "a\n\"b'; reboot"}
	if request != "" {
		annotations[cnirequest.Annotation] = request
	}
	return cniCall{command: "ADD", version: "1.0.0", netns: p.ns, annotations: annotations, prevResult: prevResultOf("1.0.0")}
}

// prevResultOf returns a result in the form of a version, with white space, and a key that is in
// no version.
func prevResultOf(version string) string {
	ips := `[ {"address": "10.244.0.7/24", "gateway": "10.244.0.1"} ]`
	interfaces := `"interfaces":[{"name":"eth0","mac":"02:00:00:00:00:07","mtu":1500,"sandbox":"/run/netns/x"}],`
	switch version {
	case "0.1.0", "0.2.0":
		return `{ "cniVersion": "` + version + `", "ip4": {"ip": "10.244.0.7/24"}, "example.test/key": [1e2] }`
	case "0.3.0", "0.3.1", "0.4.0":
		ips = `[ {"version": "4", "interface": 0, "address": "10.244.0.7/24"} ]`
	}
	return `{ "cniVersion": "` + version + `", ` + interfaces + ` "ips": ` + ips + `, "dns":{}, "example.test/key": [1e2] }`
}

func (c cniCall) stdin(t *testing.T) string {
	t.Helper()
	text := fmt.Sprintf(`{"cniVersion":%q,"name":"pods","type":"imds-cni","capabilities":{"io.kubernetes.cri.pod-annotations":true}%s`, c.version, c.entry)
	if c.annotations != nil {
		annotations, err := json.Marshal(c.annotations)
		if err != nil {
			t.Fatal(err)
		}
		text += `,"runtimeConfig":{"io.kubernetes.cri.pod-annotations":` + string(annotations) + `}`
	}
	if c.prevResult != "" {
		text += `,"prevResult":` + c.prevResult
	}
	return text + "}"
}

// cniResult is the result of a run. code is the code in the error, and 0 without an error.
type cniResult struct {
	exit, code     int
	message        string
	stdout, stderr string
	cpu            time.Duration
}

// run runs the plugin in this process's network namespace, which stands for the node's.
func (c cniCall) run(t *testing.T) cniResult {
	t.Helper()
	return c.runWith(t, c.stdin(t))
}

func (c cniCall) runWith(t *testing.T, stdin string) cniResult {
	t.Helper()
	line := append(slices.Clone(c.prefix), program("imds-cni"))
	cmd := exec.Command(line[0], line[1:]...)
	cmd.Stdin = strings.NewReader(stdin)
	cmd.Env = []string{quickExit, "CNI_COMMAND=" + c.command, "CNI_CONTAINERID=0123", "CNI_IFNAME=eth0", "CNI_PATH=/opt/cni/bin",
		"CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAME=pod", "CNI_NETNS=" + c.netns}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
		t.Fatal(err)
	}
	r := cniResult{exit: cmd.ProcessState.ExitCode(), stdout: stdout.String(), stderr: stderr.String()}
	r.cpu = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	if r.exit != 0 {
		var failure struct {
			Code         int
			Msg, Details string
		}
		if err := json.Unmarshal(stdout.Bytes(), &failure); err != nil || failure.Code == 0 {
			t.Fatalf("exit code %d without an error of the CNI specification: %q, stderr %q", r.exit, r.stdout, r.stderr)
		}
		r.code, r.message = failure.Code, failure.Msg+"; "+failure.Details
	}
	return r
}

// mustAdd runs an ADD, whose result must be prevResult, unchanged.
func (c cniCall) mustAdd(t *testing.T) cniResult {
	t.Helper()
	r := c.run(t)
	if r.exit != 0 || r.stdout != c.prevResult || r.stderr != "" {
		t.Fatalf("ADD: got %+v, want the result %s", r, c.prevResult)
	}
	return r
}

var (
	cniForwarding = cnirequest.New(8000, 1501, 1501).String()
	cniSealed     = func() string {
		r := cnirequest.New(8000, 1501, 1501)
		r.Sealed, r.Deny = true, []string{"168.63.129.16:80", "168.63.129.16:32526"}
		return r.String()
	}()
)

// nftRules returns the rules of nftables in the namespace.
func (p *redirectPod) nftRules() string {
	p.t.Helper()
	return p.mustRun("", "nft", "list", "ruleset")
}

// TestCNIVersions: every version of the specification, in the forms of its results.
func TestCNIVersions(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		version       string
		check, status bool // the version has CHECK, and STATUS and GC
	}{
		{"0.1.0", false, false}, {"0.2.0", false, false}, {"0.3.0", false, false}, {"0.3.1", false, false},
		{"0.4.0", true, false}, {"1.0.0", true, false}, {"1.1.0", true, true},
	} {
		t.Run(tt.version, func(t *testing.T) {
			pod := newRedirectPod(t)
			call := forPod(pod, cniForwarding)
			call.version, call.prevResult = tt.version, prevResultOf(tt.version)
			call.mustAdd(t)
			pod.answerAs(proxyUser, byProxy+"=tcp/127.0.0.1:8000")
			pod.expect(appUser, "tcp/169.254.169.254:80", byProxy)
			call.mustAdd(t) // a second time: as after the restart of a sandbox
			rules := pod.nftRules()

			for _, c := range []struct {
				command   string
				supported bool
			}{{"CHECK", tt.check}, {"STATUS", tt.status}, {"GC", tt.status}, {"DEL", true}, {"VERSION", true}} {
				call.command = c.command
				r := call.run(t)
				if c.supported && r.exit != 0 || !c.supported && r.code != 1 {
					t.Errorf("%s: got %+v, want support: %t", c.command, r, c.supported)
				}
			}
			if pod.nftRules() != rules {
				t.Error("a command other than ADD changed the rules")
			}
			pod.mustRun("", "nft", "flush", "ruleset")
			call.command = "CHECK"
			if r := call.run(t); tt.check && r.code != 101 {
				t.Errorf("CHECK without the rules: got %+v, want code 101", r)
			}
		})
	}
}

// TestCNIMatrix: the users reach the same servers as with proxy-init, and nobody but the proxy
// can answer at its port.
func TestCNIMatrix(t *testing.T) {
	t.Parallel()
	for name, request := range map[string]string{"forwarding": cniForwarding, "sealed": cniSealed} {
		t.Run(name, func(t *testing.T) {
			pod := newRedirectPod(t)
			forPod(pod, request).mustAdd(t)
			impostor := pod.answerAs(appUser, byMesh+"=tcp/127.0.0.1:8000")
			pod.expect(rootUser, "tcp/169.254.169.254:80", isRefused)
			impostor.stdin.Close()
			for range impostor.lines { // until it has ended
			}
			pod.answerAs(proxyUser, byProxy+"=tcp/127.0.0.1:8000")
			for _, u := range []asker{rootUser, appUser, proxyUser, otherGroup, otherUser} {
				want := onlyTheProxy
				if u == proxyUser && name == "forwarding" {
					want = exempt
				}
				if got := pod.ask(u, endpoints()...); !slices.Equal(got, want) {
					t.Errorf("%s: %v, want %v", u.name, got, want)
				}
			}
			wire := byWireServer
			if name == "sealed" {
				wire = isRefused
			}
			pod.expect(appUser, "tcp/168.63.129.16:80", wire)
			pod.expect(appUser, "tcp/198.51.100.10:443", byOutside)
		})
	}
}

// TestCNINotAsking: a pod that does not ask gets the result unchanged, and no rule. Its namespace
// is not even opened.
func TestCNINotAsking(t *testing.T) {
	t.Parallel()
	pod := newRedirectPod(t)
	call := forPod(pod, "")
	call.mustAdd(t)
	if rules := pod.nftRules(); rules != "" {
		t.Errorf("got the rules\n%s", rules)
	}
	pod.expect(appUser, "tcp/169.254.169.254:80", byIMDS)
	call.netns = "/does/not/exist"
	call.mustAdd(t)
}

// TestCNIRefuses: whatever is unclear fails, with a code and a reason in one line, and leaves no
// rule, neither in the pod nor on the node.
func TestCNIRefuses(t *testing.T) {
	t.Parallel()
	pod := newRedirectPod(t)
	asks := forPod(pod, cniForwarding)
	edit := func(change func(*cniCall)) cniCall {
		c := asks
		change(&c)
		return c
	}
	request := func(text string) cniCall { return forPod(pod, text) }
	for name, tt := range map[string]struct {
		call cniCall
		code int
		want string
	}{
		"no list":             {edit(func(c *cniCall) { c.prevResult = "" }), 7, "there is no prevResult"},
		"no capability":       {edit(func(c *cniCall) { c.annotations = nil }), 7, "the runtime passed no annotations"},
		"no annotations":      {edit(func(c *cniCall) { c.annotations = map[string]string{} }), 7, "containerd 1.5.0"},
		"unknown version":     {edit(func(c *cniCall) { c.version = "9.0.0" }), 1, "incompatible CNI versions"},
		"no version":          {edit(func(c *cniCall) { c.version = "x" }), 1, "incompatible CNI versions"},
		"unknown command":     {edit(func(c *cniCall) { c.command = "REMOVE" }), 4, "unknown CNI_COMMAND"},
		"no namespace":        {edit(func(c *cniCall) { c.netns = "" }), 4, "CNI_NETNS"},
		"namespace gone":      {edit(func(c *cniCall) { c.netns = "/run/netns/gone" }), 8, "no such file or directory"},
		"no namespace's file": {edit(func(c *cniCall) { c.netns = "/proc/self/environ" }), 8, "is not a network namespace"},
		"another namespace":   {edit(func(c *cniCall) { c.netns = fmt.Sprintf("/proc/%d/ns/pid", pod.pid) }), 8, "is not a network namespace"},
		"the node's":          {edit(func(c *cniCall) { c.netns = fmt.Sprintf("/proc/%d/ns/net", os.Getpid()) }), 8, "is the node's network namespace"},
		"unknown key":         {edit(func(c *cniCall) { c.entry = `,"exemptUID":[]` }), 7, `unknown key "exemptUID"`},
		"user not allowed":    {edit(func(c *cniCall) { c.entry = `,"exemptUIDs":[1000]` }), 100, "exempts no process of UID 1501"},
		"root":                {request(strings.ReplaceAll(cniForwarding, "1501", "0")), 100, "must not be root's"},
		"newer request":       {request(`{"version":2}`), 100, "has version 2"},
		"no request":          {request("true"), 100, "must have the exact form"},
		"a command":           {request("$(reboot)\n; `id`"), 100, `"$(reboot)\n; ` + "`id`" + `"`},
		"a long text":         {request(strings.Repeat("../", 80<<10)), 100, "must have at most"},
	} {
		t.Run(name, func(t *testing.T) {
			r := tt.call.run(t)
			if r.code != tt.code || !strings.Contains(r.message, tt.want) || strings.Contains(r.message, "\n") || len(r.message) > 600 {
				t.Errorf("got code %d, %q, want %d, one short line with %q", r.code, r.message, tt.code, tt.want)
			}
			here, err := exec.Command("nft", "list", "table", "inet", "imds_proxy").CombinedOutput()
			if rules := pod.nftRules(); rules != "" || err == nil {
				t.Errorf("rules in the pod:\n%s\non the node:\n%s", rules, here)
			}
		})
	}
	t.Run("no JSON", func(t *testing.T) {
		if r := asks.runWith(t, "{"); r.code != 6 {
			t.Errorf("got %+v, want code 6", r)
		}
	})
}

// TestCNIDeletes: DEL succeeds whatever is left of the pod.
func TestCNIDeletes(t *testing.T) {
	t.Parallel()
	pod := newRedirectPod(t)
	call := forPod(pod, cniForwarding)
	call.command = "DEL"
	for name, c := range map[string]cniCall{
		"all is there":    call,
		"no namespace":    {command: "DEL", version: "1.0.0", annotations: call.annotations, prevResult: call.prevResult},
		"namespace gone":  {command: "DEL", version: "1.0.0", netns: "/run/netns/gone"},
		"the node's":      {command: "DEL", version: "1.0.0", netns: "/proc/self/ns/net"},
		"unknown version": {command: "DEL", version: "9.0.0"},
		"unknown key":     {command: "DEL", version: "1.0.0", entry: `,"exemptUID":[]`},
	} {
		if r := c.run(t); r.exit != 0 || r.stdout != "" || r.stderr != "" {
			t.Errorf("%s: got %+v, want nothing and exit code 0", name, r)
		}
	}
	if r := call.runWith(t, "{"); r.exit != 0 {
		t.Errorf("no JSON: got %+v", r)
	}
}

// TestCNIVersionCommand: VERSION lists the versions.
func TestCNIVersionCommand(t *testing.T) {
	t.Parallel()
	r := cniCall{command: "VERSION"}.runWith(t, `{"cniVersion":"1.1.0"}`)
	var info struct {
		CNIVersion        string
		SupportedVersions []string
	}
	want := []string{"0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"}
	if err := json.Unmarshal([]byte(r.stdout), &info); err != nil || r.exit != 0 || !slices.Equal(info.SupportedVersions, want) {
		t.Errorf("got %+v, %v, want %v", r, err, want)
	}
}

// TestCNINodeOfProcess1: the plugin refuses the network namespace of process 1, also if the
// runtime itself is in another one. Process 1 is a process of this test.
func TestCNINodeOfProcess1(t *testing.T) {
	t.Parallel()
	call := forPod(&redirectPod{ns: "/proc/1/ns/net"}, cniForwarding)
	call.prefix = []string{"unshare", "--net", "--pid", "--fork", "--mount-proc", "unshare", "--net", "--fork"}
	if r := call.run(t); r.code != 8 || !strings.Contains(r.message, "/proc/1/ns/net") {
		t.Errorf("got %+v, want code 8", r)
	}
}

// TestCNIUserNamespace: in a pod with a user namespace (hostUsers: false), the user IDs of the
// request are those in the pod.
func TestCNIUserNamespace(t *testing.T) {
	t.Parallel()
	pod := newRedirectPod(t)
	inside := &redirectPod{t: t}
	cmd := exec.Command(program("redirectpod"), "pause")
	cmd.Env = append(os.Environ(), quickExit)
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 200000, Size: 65536}}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids}
	startHelper(t, cmd)
	inside.pid, inside.ns = cmd.Process.Pid, fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid)
	// The second pod takes the place of the first one at the node.
	pod.mustRun("", "ip", "link", "delete", "eth0")
	pod.node.mustRun(fmt.Sprintf("link add node0 type veth peer name eth0 netns %d\naddress add 10.244.0.1/24 dev node0\nlink set node0 up\n", inside.pid), "ip", "-batch", "-")
	inside.mustRun(podSetup, "ip", "-batch", "-")

	forPod(inside, cniForwarding).mustAdd(t)
	run := func(u asker, args ...string) *exec.Cmd {
		line := append([]string{"--user", "--net", "--target", fmt.Sprint(inside.pid), "--setuid", fmt.Sprint(u.uid), "--setgid", fmt.Sprint(u.gid), "--"}, args...)
		c := exec.Command("nsenter", line...)
		c.Env = append(os.Environ(), quickExit)
		return c
	}
	startHelper(t, run(proxyUser, program("redirectpod"), "answer", byProxy+"=tcp/127.0.0.1:8000"))
	for u, want := range map[asker]string{appUser: byProxy, rootUser: byProxy, proxyUser: byIMDS, otherUser: byProxy} {
		out, err := run(u, program("redirectpod"), "ask", "tcp/169.254.169.254:80").CombinedOutput()
		if got := strings.TrimSpace(string(out)); err != nil || got != want {
			t.Errorf("%s: got %q, %v, want %s", u.name, got, err, want)
		}
	}
}

// TestCNIValidate: proxy-init --validate needs no privilege, and tells a pod with the redirect and
// the guard from all others.
func TestCNIValidate(t *testing.T) {
	t.Parallel()
	unprivileged := initOptions{caps: "-all", prefix: []string{"setpriv", "--reuid=65532", "--regid=65532", "--clear-groups"}}
	for name, tt := range map[string]struct {
		prepare func(t *testing.T, p *redirectPod)
		code    int
		want    string
	}{
		"the plugin ran":        {func(t *testing.T, p *redirectPod) { forPod(p, cniForwarding).mustAdd(t) }, 0, `"proven_by"`},
		"the plugin ran sealed": {func(t *testing.T, p *redirectPod) { forPod(p, cniSealed).mustAdd(t) }, 0, `"proven_by"`},
		"the proxy runs": {func(t *testing.T, p *redirectPod) {
			forPod(p, cniForwarding).mustAdd(t)
			p.answerAs(proxyUser, byProxy+"=tcp/127.0.0.1:8000")
		}, 0, `"proven_by"`},
		"the plugin did not run": {func(*testing.T, *redirectPod) {}, 13, "the CNI plugin did not run on this node"},
		"a firewall drops the packets": {func(t *testing.T, p *redirectPod) {
			p.mustRun("table ip drops { chain out { type filter hook output priority 0; ip daddr 169.254.169.254 drop; }; }", "nft", "-f", "-")
		}, 13, "the CNI plugin did not run on this node"},
		"the rules are gone": {func(t *testing.T, p *redirectPod) {
			forPod(p, cniForwarding).mustAdd(t)
			p.mustRun("", "nft", "flush", "ruleset")
		}, 13, "the CNI plugin did not run on this node"},
		"another port": {func(t *testing.T, p *redirectPod) { forPod(p, cnirequest.New(8123, 1501, 1501).String()).mustAdd(t) }, 13, "did not arrive at 127.0.0.1:8000"},
		"no guard": {func(t *testing.T, p *redirectPod) {
			forPod(p, cniForwarding).mustAdd(t)
			p.mustRun("", "nft", "delete", "chain", "inet", "imds_proxy", "guard_out")
		}, 14, "guard"},
		"an impostor": {func(t *testing.T, p *redirectPod) {
			forPod(p, cniForwarding).mustAdd(t)
			p.answerAs(appUser, byMesh+"=tcp/127.0.0.1:8000")
		}, 12, "UID 1000"},
	} {
		t.Run(name, func(t *testing.T) {
			pod := newRedirectPod(t)
			tt.prepare(t, pod)
			r := pod.tryInit(unprivileged, "--validate", "--termination-log=")
			if r.code != tt.code || !strings.Contains(r.stderr, tt.want) || strings.Count(r.stderr, "\n") != 1 {
				t.Errorf("got exit code %d, %q, want %d, one line with %q", r.code, r.stderr, tt.code, tt.want)
			}
		})
	}
}

// addRuns is how often TestCNITime runs each kind of ADD.
const addRuns = 200

// TestCNITime logs the time and the CPU time of an ADD with its process, for a pod that asks and for
// one that does not. It fails only if an ADD fails.
func TestCNITime(t *testing.T) {
	pod := &redirectPod{t: t}
	pod.hold()
	for name, request := range map[string]string{"asks": cniForwarding, "does not ask": ""} {
		times, cpu := make([]time.Duration, addRuns), make([]time.Duration, addRuns)
		for i := range times {
			began := time.Now()
			cpu[i] = forPod(pod, request).mustAdd(t).cpu
			times[i] = time.Since(began)
		}
		slices.Sort(times)
		slices.Sort(cpu)
		t.Logf("%s: p50 %v, p99 %v, CPU p50 %v of %d", name, times[addRuns/2], times[addRuns*99/100], cpu[addRuns/2], addRuns)
	}
}
