package memory_test

import (
	"io"
	"os"
	"os/exec"
	"runtime"
	"testing"
	"time"

	"imds-oidc-proxy/test/kit/memory"
)

// child is the environment variable with which this test runs itself as the program to measure.
const child = "MEMORY_TEST_CHILD"

func fill(n int) []byte {
	b := make([]byte, n)
	for i := 0; i < n; i += 4096 {
		b[i] = 1
	}
	return b
}

func TestMain(m *testing.M) {
	if os.Getenv(child) == "" {
		os.Exit(m.Run())
	}
	b := fill(64 << 20)
	_, _ = io.Copy(io.Discard, os.Stdin) // until the test has seen the memory
	runtime.KeepAlive(b)
}

// TestPeak checks that the memory is that of the child, and not that of the process which starts it.
func TestPeak(t *testing.T) {
	own := fill(300 << 20)
	executable, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(executable)
	cmd.Env = append(os.Environ(), child+"=1")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	p, err := memory.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); p.Peak() < 64<<20; runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("got %d MiB after a minute, want 64 MiB", p.Peak()>>20)
		}
	}
	in.Close()
	if peak, err := p.Wait(); err != nil || peak > 200<<20 {
		t.Errorf("got %d MiB, %v; want 64 MiB and a little more", peak>>20, err)
	}
	runtime.KeepAlive(own)
}

// TestErrors checks that the errors of the command are returned.
func TestErrors(t *testing.T) {
	if _, err := memory.Run(exec.Command("/nonexistent")); err == nil {
		t.Error("a program that does not exist: no error")
	}
	if _, err := memory.Run(exec.Command("false")); err == nil {
		t.Error("exit code 1: no error")
	}
}
