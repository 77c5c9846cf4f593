package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"imds-oidc-proxy/internal/nodetaint"
	"imds-oidc-proxy/test/kit/local"
)

// azureList is the list of a node with Azure CNI.
const azureList = `{
  "cniVersion": "0.3.0",
  "name": "azure",
  "plugins": [
    {"type": "azure-vnet"},
    {"type": "portmap"}
  ]
}
`

// node is the directories of a node, and a run of the program for it.
type node struct {
	t            *testing.T
	bin, conf    string
	health       string
	log          *logBuffer
	ended        chan int
	cancel       context.CancelFunc
	confFile     string
	installedBin string
}

// logBuffer is what the program writes to stderr.
type logBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

func newNode(t *testing.T) *node {
	t.Helper()
	dir := t.TempDir()
	n := &node{t: t, bin: filepath.Join(dir, "bin"), conf: filepath.Join(dir, "net.d")}
	if err := errors.Join(os.Mkdir(n.bin, 0o755), os.Mkdir(n.conf, 0o755)); err != nil {
		t.Fatal(err)
	}
	n.confFile, n.installedBin = filepath.Join(n.conf, "10-azure.conflist"), filepath.Join(n.bin, name)
	return n
}

// start runs a command of the program in the background.
func (n *node) start(args ...string) {
	n.t.Helper()
	n.log, n.ended = new(logBuffer), make(chan int, 1)
	port, err := local.FreePort()
	if err != nil {
		n.t.Fatal(err)
	}
	address := fmt.Sprintf("127.0.0.1:%d", port)
	n.health = "http://" + address
	ctx, cancel := context.WithCancel(n.t.Context())
	n.cancel = cancel
	args = append(args, "--bin-dir="+n.bin, "--conf-dir="+n.conf, "--health-address="+address)
	go func() { n.ended <- run(ctx, args, func(string) string { return "" }, io.Discard, n.log) }()
	n.t.Cleanup(cancel)
}

// stop ends the program as SIGTERM does, and returns the exit code.
func (n *node) stop() int {
	n.cancel()
	return n.wait()
}

func (n *node) wait() int {
	n.t.Helper()
	select {
	case code := <-n.ended:
		return code
	case <-time.After(20 * time.Second):
		n.t.Fatalf("the program does not end; its log:\n%s", n.log)
		return 0
	}
}

// get returns the status and the body of an endpoint, or 0 while the port is not open.
func (n *node) get(path string) (int, string) {
	response, err := http.Get(n.health + path)
	if err != nil {
		return 0, err.Error()
	}
	defer response.Body.Close()
	body, _ := io.ReadAll(response.Body)
	return response.StatusCode, string(body)
}

func (n *node) waitFor(what string, condition func() bool) {
	n.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !condition(); {
		if time.Now().After(deadline) {
			n.t.Fatalf("timeout: %s; the log:\n%s", what, n.log)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (n *node) write(text string) {
	n.t.Helper()
	if err := os.WriteFile(n.confFile, []byte(text), 0o600); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) list() string {
	text, _ := os.ReadFile(n.confFile)
	return string(text)
}

// TestInstall: the program is not ready without a list, installs the plugin as soon as there is
// one, and leaves it on SIGTERM. uninstall restores the node.
func TestInstall(t *testing.T) {
	n := newNode(t)
	n.start(commandInstall, "--exempt-uids=1501,2000")
	n.waitFor("not ready", func() bool {
		status, body := n.get("/readyz")
		return status == 503 && strings.Contains(body, "there is no list yet")
	})
	if status, body := n.get("/livez"); status != 200 {
		t.Errorf("/livez: %d, %s", status, body)
	}
	n.write(azureList)
	n.waitFor("ready", func() bool { status, _ := n.get("/readyz"); return status == 200 })
	const entry = `{"type":"imds-cni","capabilities":{"io.kubernetes.cri.pod-annotations":true},"exemptUIDs":[1501,2000]}`
	if !strings.Contains(n.list(), `{"type": "portmap"},`+"\n    "+entry+"\n  ]") {
		t.Errorf("got the list\n%s", n.list())
	}
	if code := n.stop(); code != exitOK {
		t.Errorf("exit code %d\n%s", code, n.log)
	}
	self, err := os.ReadFile("/proc/self/exe")
	if installed, _ := os.ReadFile(n.installedBin); err != nil || !bytes.Equal(installed, self) || !strings.Contains(n.list(), entry) {
		t.Error("the plugin is not in place after SIGTERM")
	}

	n.start(commandUninstall, "--stay")
	n.waitFor("removed", func() bool { status, _ := n.get("/readyz"); return status == 200 })
	if n.list() != azureList {
		t.Errorf("got the list\n%s", n.list())
	}
	if _, err := os.Stat(n.installedBin); err != nil {
		t.Errorf("the program was removed: %v", err)
	}
	if code := n.stop(); code != exitOK {
		t.Errorf("exit code %d\n%s", code, n.log)
	}
}

// TestUninstallAll: with --remove-binary nothing of the plugin is left, and the entry goes first.
func TestUninstallAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t)
		n.write(strings.Replace(azureList, `{"type": "portmap"}`, `{"type": "portmap"}, {"type": "imds-cni"}`, 1))
		if err := os.WriteFile(n.installedBin, []byte("the plugin"), 0o755); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() {
			ended <- act(t.Context(), options{uninstall: true, removeBinary: true, binDir: n.bin, confDir: n.conf}, zap.NewNop())
		}()
		time.Sleep(unloadTime - time.Millisecond)
		synctest.Wait()
		if _, err := os.Stat(n.installedBin); err != nil || n.list() != azureList {
			t.Errorf("before unloadTime: got %v and the list\n%s", err, n.list())
		}
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if left, err := os.ReadDir(n.bin); err != nil || len(left) > 0 {
			t.Errorf("left in %s: %v, %v", n.bin, left, err)
		}
	})
}

// TestUninstallInterrupted: SIGTERM before the removal of the program is a failure.
func TestUninstallInterrupted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t)
		ctx, cancel := context.WithTimeout(t.Context(), unloadTime/2)
		defer cancel()
		err := act(ctx, options{uninstall: true, removeBinary: true, binDir: n.bin, confDir: n.conf}, zap.NewNop())
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
}

// TestFight: the exit code and the last line say that another program removes the plugin.
func TestFight(t *testing.T) {
	n := newNode(t)
	n.write(azureList)
	n.start(commandInstall)
	for code := -1; code != exitFight; {
		select {
		case code = <-n.ended:
			if code != exitFight {
				t.Fatalf("exit code %d\n%s", code, n.log)
			}
		case <-time.After(5 * time.Millisecond):
			if n.list() != azureList { // as azure-cns does at each of its starts
				n.write(azureList)
			}
		}
	}
	lines := strings.Split(strings.TrimSpace(n.log.String()), "\n")
	if last := lines[len(lines)-1]; !strings.Contains(last, "gave up: another program removes the plugin") || !strings.Contains(last, n.conf) {
		t.Errorf("the last line is %q", last)
	}
}

// TestPortTaken: the program does not start if the port for probes is taken, and changes nothing.
func TestPortTaken(t *testing.T) {
	n := newNode(t)
	n.write(azureList)
	other := newNode(t)
	other.start(commandInstall)
	other.waitFor("started", func() bool { status, _ := other.get("/livez"); return status == 200 })
	code, _, stderr := tryRun(t, nil, commandInstall, "--bin-dir="+n.bin, "--conf-dir="+n.conf, "--health-address="+strings.TrimPrefix(other.health, "http://"))
	if code != exitFailure || !strings.Contains(stderr, "address already in use") {
		t.Errorf("exit code %d, %q", code, stderr)
	}
	if _, err := os.Stat(n.installedBin); !errors.Is(err, fs.ErrNotExist) || n.list() != azureList {
		t.Error("the node changed")
	}
}

// TestUntaint: the taint is removed once, and not before the plugin is ready. Failures are logged
// once for each reason.
func TestUntaint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		core, log := observer.New(zap.DebugLevel)
		var installed atomic.Bool
		ready := func() error {
			if !installed.Load() {
				return errors.New("there is no list yet")
			}
			return nil
		}
		answers := []error{errors.New("no route"), errors.New("no route"), errors.New("forbidden"), nil}
		calls := 0
		remove := func(context.Context) (bool, error) {
			calls++
			return true, answers[calls-1]
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			untaint(t.Context(), ready, remove, zap.New(core))
		}()
		time.Sleep(10 * taintInterval)
		synctest.Wait()
		if calls != 0 {
			t.Errorf("removed before the plugin was ready, %d times", calls)
		}
		installed.Store(true)
		<-done
		if calls != len(answers) || log.FilterMessage("cannot remove the taint: trying again").Len() != 2 {
			t.Errorf("got %d calls and the log %v", calls, log.All())
		}

		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		untaint(ctx, func() error { return errors.New("not ready") }, remove, zap.NewNop()) // returns
	})
}

// TestTaintWithoutAccount: without a service account the program says so, and changes nothing.
func TestTaintWithoutAccount(t *testing.T) {
	if _, err := os.Stat(nodetaint.ServiceAccountDir); err == nil {
		t.Skip("this machine is a pod with a service account")
	}
	n := newNode(t)
	n.write(azureList)
	code, _, stderr := tryRun(t, nil, commandInstall, "--bin-dir="+n.bin, "--conf-dir="+n.conf, "--health-address=", "--remove-taint=a", "--node=n")
	if code != exitFailure || !strings.Contains(stderr, "the pod has no service account token") || n.list() != azureList {
		t.Errorf("exit code %d, %q, the list\n%s", code, stderr, n.list())
	}
}
