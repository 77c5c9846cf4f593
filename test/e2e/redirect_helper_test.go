package e2e

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"testing"
	"time"
)

// readyTimeout bounds the start of a helper process. It is long, for a busy machine.
const readyTimeout = 20 * time.Second

// startHelper starts a program that prints a line when it is ready and ends when its standard
// input is closed. The end of the test closes it.
func startHelper(t *testing.T, cmd *exec.Cmd) *helper {
	t.Helper()
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	h := &helper{t: t, stdin: stdin, lines: make(chan string)}
	go func() {
		defer close(h.lines)
		for s := bufio.NewScanner(stdout); s.Scan(); {
			h.lines <- s.Text()
		}
	}()
	t.Cleanup(func() {
		stdin.Close()
		for range h.lines {
		}
		_ = cmd.Wait() // the exit status does not matter
	})
	h.first = h.next()
	return h
}

// helper is a running redirectpod.
type helper struct {
	t     *testing.T
	stdin io.WriteCloser
	lines chan string
	first string
}

func (h *helper) next() string {
	h.t.Helper()
	select {
	case line, ok := <-h.lines:
		if !ok {
			h.t.Fatal("a helper process ended too early")
		}
		return line
	case <-time.After(readyTimeout):
		h.t.Fatal("a helper process does not answer")
	}
	return ""
}

// again sends a line over the open connection and returns the answer.
func (h *helper) again() string {
	h.t.Helper()
	if _, err := fmt.Fprintln(h.stdin); err != nil {
		h.t.Fatal(err)
	}
	return h.next()
}
