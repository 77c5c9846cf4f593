package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"imds-oidc-proxy/test/kit/netns"
)

// stopTimeout bounds the time in which a worker ends its pod.
const stopTimeout = 15 * time.Second

// job is a client to test in a place.
type job struct {
	Family, Library, Version string
	Where                    place
	Program                  program
	// Resource is the resource of the client's tokens. Empty: a new one for each scenario.
	Resource string
	// HidesExpiry is true if the client does not say when a token expires.
	HidesExpiry bool
	// Scenarios are the names of the scenarios to run. Nil: all.
	Scenarios []string
}

// cell has the expected and the actual outcome of a client in a scenario.
type cell struct {
	Scenario string
	Got      outcome
	Expected expectation
	// Problem says what was wrong. Empty unless Got is wrong.
	Problem string `json:",omitempty"`
	// FirstProblem is the problem of the first attempt. Empty: there was only one attempt.
	FirstProblem string `json:",omitempty"`
	// Error is the client's error.
	Error string `json:",omitempty"`

	Requests, Probes, Exchanges int
	Took                        time.Duration
}

// ok reports whether the outcome is the expected one.
func (c cell) ok() bool { return c.Got == c.Expected.Want }

// result is the result of a job.
type result struct {
	Family, Library, Version string
	Where                    place
	Cells                    []cell
	// Failure is the reason for which cells are missing.
	Failure string `json:",omitempty"`
}

// of reports whether this is the result of a job.
func (r result) of(j job) bool {
	return r.Family == j.Family && r.Library == j.Library && r.Version == j.Version && r.Where == j.Where
}

// wrong returns the names of the scenarios whose outcome is not the expected one.
func (r result) wrong() []string {
	var names []string
	for _, c := range r.Cells {
		if !c.ok() {
			names = append(names, c.Scenario)
		}
	}
	return names
}

// replaceCells replaces the cells of scenarios that were run again.
func (r *result) replaceCells(second result) {
	if !r.of(job{Family: second.Family, Library: second.Library, Version: second.Version, Where: second.Where}) {
		return
	}
	for n, first := range r.Cells {
		for _, c := range second.Cells {
			if c.Scenario == first.Scenario {
				c.FirstProblem = first.Problem
				r.Cells[n] = c
			}
		}
	}
}

// worker is a child process with its own network namespace. It reads jobs from its standard
// input, runs them one at a time, and prints their results.
type worker struct {
	cmd     *exec.Cmd
	jobs    *json.Encoder
	results *json.Decoder
	input   io.Closer
}

func startWorker(ctx context.Context, cache, drivers, where string) (*worker, error) {
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "worker", cache, drivers, where)
	cmd.Stderr = os.Stderr
	// The worker has its own mount namespace.
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	// After SIGTERM the worker ends its pod before it ends itself.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = stopTimeout
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return &worker{cmd: cmd, jobs: json.NewEncoder(stdin), results: json.NewDecoder(stdout), input: stdin}, nil
}

// do runs a job in the worker.
func (w *worker) do(j job) (result, error) {
	var r result
	if err := w.jobs.Encode(j); err != nil {
		return r, err
	}
	err := w.results.Decode(&r)
	return r, err
}

// stop ends the worker. It must not be called while a job is running.
func (w *worker) stop() error {
	w.input.Close()
	return w.cmd.Wait()
}

// beWorker runs in the worker process. It enters the network namespace first.
func beWorker(ctx context.Context, args []string) (exitCode int, err error) {
	if len(args) != 3 {
		return 2, errors.New("worker: only compat itself can start it")
	}
	inside, code, err := netns.Enter(false)
	if !inside {
		return code, err
	}
	if err := mountFiles(args[0], args[1]); err != nil {
		return 1, err
	}
	bench, err := newBench(args[0], place(args[2]))
	if err != nil {
		return 1, err
	}
	defer bench.close()
	m, err := loadManifest()
	if err != nil {
		return 1, err
	}
	jobs, results := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var j job
		if err := jobs.Decode(&j); errors.Is(err, io.EOF) {
			return 0, nil
		} else if err != nil {
			return 1, err
		}
		if err := errors.Join(results.Encode(bench.try(ctx, m, j)), ctx.Err()); err != nil {
			return 1, err
		}
	}
}

// mountFiles mounts the files that the application needs: the libraries, the drivers, and a
// hosts file with the addresses of the stand-in for Azure's services, for az and rclone. The mounts
// are visible to this process only, because [startWorker] gave it a mount namespace.
func mountFiles(cache, drivers string) error {
	dir, err := os.MkdirTemp("", "compat-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir) // the mount still has the file
	hosts := filepath.Join(dir, "hosts")
	if err := os.WriteFile(hosts, []byte("127.0.0.1 localhost "+armHost+" "+blobHost+"\n"), 0o644); err != nil {
		return err
	}
	for from, to := range map[string]string{cache: cacheInPod, drivers: driversInPod, hosts: "/etc/hosts"} {
		if err := syscall.Mount(from, to, "", syscall.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount %s: %w", strings.TrimPrefix(to, "/"), err)
		}
	}
	return nil
}
