package main

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"imds-oidc-proxy/test/kit/entra"
	"imds-oidc-proxy/test/kit/local"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"proxy": main})
}

// TestScripts runs the real program against the transcripts in testdata.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata", Setup: setup})
}

// setup gives each script a pod's environment, whose Entra is a closed port of this
// machine, and free ports for the proxy.
func setup(env *testscript.Env) error {
	idp, err := entra.New(entra.Config{})
	if err != nil {
		return err
	}
	token := filepath.Join(env.WorkDir, "federated-token")
	if err := os.WriteFile(token, []byte(idp.SignFederatedToken(entra.Claims{Subject: "system:serviceaccount:shop:cart"})), 0o600); err != nil {
		return err
	}
	for _, name := range []string{"PORT", "OTHER_PORT", "ADMIN_PORT"} {
		port, err := freePort()
		if err != nil {
			return err
		}
		env.Setenv(name, port)
	}
	env.Vars = append(env.Vars, quickExit)
	env.Setenv("AZURE_TENANT_ID", idp.TenantID())
	env.Setenv("AZURE_CLIENT_ID", "6c0ac4e6-9b6d-4d2a-8d5a-6f1f3a1f9b10")
	env.Setenv("AZURE_FEDERATED_TOKEN_FILE", token)
	env.Setenv("AZURE_AUTHORITY_HOST", "https://127.0.0.1:1/")
	// The metadata address of this machine may be a real one.
	env.Setenv("PROXY_IMDS_PASSTHROUGH", "off")
	return nil
}

func freePort() (string, error) {
	port, err := local.FreePort()
	return strconv.Itoa(port), err
}

// startUnread runs the real program with a standard error that is full already, and
// that nobody reads.
func startUnread(t *testing.T, p *pod) *exec.Cmd {
	t.Helper()
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { read.Close(); write.Close() })
	fill(t, write)
	return startLogging(t, p, write)
}

// fill writes to a pipe until the kernel takes no more of it.
func fill(t *testing.T, pipe *os.File) {
	t.Helper()
	raw, err := pipe.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var full error
	err = raw.Write(func(fd uintptr) bool {
		for line := make([]byte, 4096); full == nil; {
			_, full = unix.Write(int(fd), line)
		}
		return true // do not wait for room
	})
	if err != nil || !errors.Is(full, unix.EAGAIN) {
		t.Fatalf("filling the pipe: %v, %v", err, full)
	}
}

// TestNobodyReadsTheLog: with standard error full, and more lines than the queue
// holds, clients get their tokens, and one signal ends the proxy.
func TestNobodyReadsTheLog(t *testing.T) {
	p := newPod(t)
	p.environment["PROXY_LOG_ALL_REQUESTS"] = "true"
	proxy := startUnread(t, p)
	const requests = 700 // with a line of some 600 bytes for each
	for i := range requests {
		path := fmt.Sprintf("/%0200d", i)
		if status, body := fetch(t, p.port, path, http.Header{"Metadata": {"true"}}); status != http.StatusNotFound {
			t.Fatalf("got %d %s", status, body)
		}
	}
	if status, body := fetch(t, p.port, tokenQuery+testResource, http.Header{"Metadata": {"true"}}); status != http.StatusOK {
		t.Fatalf("got %d %s", status, body)
	}
	_, metrics := fetch(t, p.admin, "/metrics", nil)
	leftOut := regexp.MustCompile(`(?m)^imds_oidc_proxy_log_lines_left_out_total (\d+)$`).FindStringSubmatch(metrics)
	if leftOut == nil || leftOut[1] == "0" {
		t.Errorf("got %v, want lines left out", leftOut)
	}
	endProxy(t, proxy)
}

// TestTheLogsReaderGoes: the proxy goes on without it.
func TestTheLogsReaderGoes(t *testing.T) {
	p := newPod(t)
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer write.Close()
	proxy := startLogging(t, p, write)
	read.Close()
	for range 3 { // with a line for each
		if status, body := fetch(t, p.port, tokenQuery+testResource, http.Header{"Metadata": {"true"}}); status != http.StatusOK {
			t.Fatalf("got %d %s", status, body)
		}
	}
	endProxy(t, proxy)
}

// TestSecondSignalNeedsNoReader: it ends the process although its last word is not
// heard.
func TestSecondSignalNeedsNoReader(t *testing.T) {
	p := newPod(t)
	proxy := startUnread(t, p)
	askSlowly(t, p)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = proxy.Wait() // the exit code says it
	}()
	// Two that come at the same moment are one to the kernel.
	waitFor(t, "the end", func() bool {
		_ = proxy.Process.Signal(syscall.SIGTERM) // it may have ended
		select {
		case <-ended:
			return true
		default:
			return false
		}
	})
	if code := proxy.ProcessState.ExitCode(); code != exitFailure {
		t.Errorf("got exit code %d, want %d", code, exitFailure)
	}
}
