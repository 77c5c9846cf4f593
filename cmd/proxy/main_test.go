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

// setup gives each script the environment of a pod, and free ports for the proxy. The authority is
// a closed port of this machine.
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

// startWithFullLog runs the real program. Its standard error is a pipe that is already full and
// that no process reads.
func startWithFullLog(t *testing.T, p *pod) *exec.Cmd {
	t.Helper()
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { read.Close(); write.Close() })
	fill(t, write)
	return startProcessWithLog(t, p, write)
}

// fill writes to a pipe until it is full.
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
		return true // do not wait until the pipe can be written to again
	})
	if err != nil || !errors.Is(full, unix.EAGAIN) {
		t.Fatalf("filling the pipe: %v, %v", err, full)
	}
}

// TestLogPipeIsFull: if standard error is full and there are more log lines than the queue can
// hold, clients still get tokens, and one signal ends the proxy.
func TestLogPipeIsFull(t *testing.T) {
	p := newPod(t)
	p.environment["PROXY_LOG_ALL_REQUESTS"] = "true"
	proxy := startWithFullLog(t, p)
	const requests = 700 // each logs a line of about 600 bytes
	for i := range requests {
		path := fmt.Sprintf("/%0200d", i)
		if status, body := fetch(t, p.port, path, http.Header{"Metadata": {"true"}}); status != http.StatusNotFound {
			t.Fatalf("got %d %s, want 404", status, body)
		}
	}
	if status, body := fetch(t, p.port, tokenQuery+testResource, http.Header{"Metadata": {"true"}}); status != http.StatusOK {
		t.Fatalf("got %d %s, want 200", status, body)
	}
	_, metrics := fetch(t, p.admin, "/metrics", nil)
	dropped := regexp.MustCompile(`(?m)^imds_oidc_proxy_log_lines_left_out_total (\d+)$`).FindStringSubmatch(metrics)
	if dropped == nil || dropped[1] == "0" {
		t.Errorf("imds_oidc_proxy_log_lines_left_out_total: got %v, want more than 0", dropped)
	}
	stopProxy(t, proxy)
}

// TestLogReaderExits: the proxy continues to serve tokens after the reader of its log has exited.
func TestLogReaderExits(t *testing.T) {
	p := newPod(t)
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer write.Close()
	proxy := startProcessWithLog(t, p, write)
	read.Close()
	for range 3 { // each logs a line
		if status, body := fetch(t, p.port, tokenQuery+testResource, http.Header{"Metadata": {"true"}}); status != http.StatusOK {
			t.Fatalf("got %d %s, want 200", status, body)
		}
	}
	stopProxy(t, proxy)
}

// TestSecondSignalWithFullLog: a second signal ends the process even if its last log line cannot
// be written.
func TestSecondSignalWithFullLog(t *testing.T) {
	p := newPod(t)
	proxy := startWithFullLog(t, p)
	startSlowRequest(t, p)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = proxy.Wait() // the exit code is checked below
	}()
	// The kernel merges signals that are sent at the same moment, so send them repeatedly.
	waitFor(t, "the process to end", func() bool {
		_ = proxy.Process.Signal(syscall.SIGTERM) // an error means that it has ended
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
