//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"imds-oidc-proxy/internal/plan"
)

// TestProgress checks that the progress is shown on a terminal after a second, and removed.
func TestProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out strings.Builder
		p := startProgress(&out, true)
		p.show("pods")
		time.Sleep(quiet - 1)
		p.show("jobs.batch")
		p.end()
		time.Sleep(quiet)
		if out.Len() > 0 {
			t.Errorf("in the first second: got %q", out.String())
		}
		p = startProgress(&out, true)
		time.Sleep(quiet)
		synctest.Wait()
		if want := "\r\x1b[Kreading the cluster"; out.String() != want {
			t.Errorf("before the first list: got %q, want %q", out.String(), want)
		}
		out.Reset()
		p.show("pods")
		p.show("secrets")
		p.end()
		if want := "\r\x1b[Kreading pods\r\x1b[Kreading secrets\r\x1b[K"; out.String() != want {
			t.Errorf("got %q, want %q", out.String(), want)
		}
	})
	var out strings.Builder
	file, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if newProgress(file).terminal || newProgress(&out).terminal {
		t.Error("a file is taken for a terminal")
	}
}

// TestProgressTerminal checks that a real terminal is recognized.
func TestProgressTerminal(t *testing.T) {
	control, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skip("this machine has no pseudoterminals: ", err)
	}
	defer control.Close()
	if err := unix.IoctlSetPointerInt(int(control.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetUint32(int(control.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	terminal, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer terminal.Close()
	p := newProgress(terminal)
	defer p.end()
	if !p.terminal {
		t.Error("a terminal is not recognized")
	}
}

// TestInterrupt sends the signal of Ctrl-C to the real program while the API server does not answer.
func TestInterrupt(t *testing.T) {
	asked := make(chan struct{}, 10)
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		asked <- struct{}{}
		<-r.Context().Done()
	}))
	defer server.Close()
	executable, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, command := range []string{"plan", "check"} {
		var stdout, stderr strings.Builder
		cmd := exec.Command(executable, command, "--server="+server.URL, "--kubeconfig="+os.DevNull)
		cmd.Args[0] = "imds-migrate" // for TestMain
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		<-asked
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
		err := cmd.Wait()
		if exit, exited := errors.AsType[*exec.ExitError](err); !exited || exit.ExitCode() != plan.ExitNotRead || stdout.String() != "" || stderr.String() != "imds-migrate: interrupt signal received\n" {
			t.Errorf("%s: %v, %q, %q", command, err, &stdout, &stderr)
		}
	}
}

// TestCancelled checks that a plan ends while it waits for standard input, or for az.
func TestCancelled(t *testing.T) {
	stopped := errors.New("stopped")
	ctx, cancel := context.WithCancelCause(t.Context())
	in, out := io.Pipe()
	defer out.Close()
	go func() {
		io.WriteString(out, "apiVersion: v1\n") // returns when it was read
		cancel(stopped)
	}()
	var stdout, stderr strings.Builder
	if code := runPlan(ctx, []string{"-f", "-"}, in, &stdout, &stderr); code != plan.ExitNotRead || stdout.String() != "" || stderr.String() != "imds-migrate: stopped\n" {
		t.Errorf("standard input: exit code %d, %q, %q", code, &stdout, &stderr)
	}
	ctx, cancel = context.WithCancelCause(t.Context())
	dir := t.TempDir()
	asked := filepath.Join(dir, "asked")
	if err := errors.Join(unix.Mkfifo(asked, 0o600), os.WriteFile(filepath.Join(dir, "az"), []byte("#!/bin/sh\n: >\""+asked+"\"\nexec tail -f /dev/null\n"), 0o700)); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	go func() {
		os.ReadFile(asked) // returns when az runs
		cancel(stopped)
	}()
	stdout, stderr = strings.Builder{}, strings.Builder{}
	if code := runPlan(ctx, []string{"-f", "-", "--azure", "--issuer=https://oidc.example.test/"}, strings.NewReader(migrated), &stdout, &stderr); code != plan.ExitNotRead || stdout.String() != "" || stderr.String() != "imds-migrate: stopped\n" {
		t.Errorf("az: exit code %d, %q, %q", code, &stdout, &stderr)
	}
}
