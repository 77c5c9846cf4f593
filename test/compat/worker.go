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

// stopTimeout is how long a worker may take to end its pod.
const stopTimeout = 15 * time.Second

// job is one client to try, in one place.
type job struct {
	Family, Library, Version string
	Where                    place
	Program                  program
	// Scenarios are those to play. Nil: all.
	Scenarios []string
}

// cell is what a client did in a scenario, next to what it was expected to do.
type cell struct {
	Scenario string
	Got      outcome
	Expected expectation
	// Problem says what was wrong. Only with wrong.
	Problem string `json:",omitempty"`
	// FirstProblem is what was wrong in the first attempt. Empty: there was one only.
	FirstProblem string `json:",omitempty"`
	// Error is the client's own.
	Error string `json:",omitempty"`

	Requests, Probes, Exchanges int
	Took                        time.Duration
}

// ok reports whether the client did as expected.
func (c cell) ok() bool { return c.Got == c.Expected.Want }

// result is a job that is done.
type result struct {
	Family, Library, Version string
	Where                    place
	Cells                    []cell
	// Failure is why there are no cells, or not all.
	Failure string `json:",omitempty"`
}

// of reports whether the result is of the job.
func (r result) of(j job) bool {
	return r.Family == j.Family && r.Library == j.Library && r.Version == j.Version && r.Where == j.Where
}

// wrong names the scenarios that were not as expected.
func (r result) wrong() []string {
	var names []string
	for _, c := range r.Cells {
		if !c.ok() {
			names = append(names, c.Scenario)
		}
	}
	return names
}

// takeOver replaces the cells that were played again.
func (r *result) takeOver(second result) {
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

// worker is a child process that has a network namespace of its own, does the jobs
// on its standard input, one at a time, and prints their results.
type worker struct {
	cmd     *exec.Cmd
	jobs    *json.Encoder
	results *json.Decoder
	input   io.Closer
}

func startWorker(ctx context.Context, cache, drivers, where string) (*worker, error) {
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "worker", cache, drivers, where)
	cmd.Stderr = os.Stderr
	// Its mounts are its own.
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	// It has a pod to end before it ends itself.
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

// do has the worker do a job.
func (w *worker) do(j job) (result, error) {
	var r result
	if err := w.jobs.Encode(j); err != nil {
		return r, err
	}
	err := w.results.Decode(&r)
	return r, err
}

// stop ends the worker, which has no job.
func (w *worker) stop() error {
	w.input.Close()
	return w.cmd.Wait()
}

// beWorker is the worker's side. It enters the namespace first.
func beWorker(ctx context.Context, args []string) (exitCode int, err error) {
	if len(args) != 3 {
		return 2, errors.New("worker: started by the matrix alone")
	}
	inside, code, err := netns.Enter(false)
	if !inside {
		return code, err
	}
	if err := layOut(args[0], args[1]); err != nil {
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

// layOut mounts what the application needs to see: the libraries, the drivers, and
// a hosts file by which az finds the stand-in for Azure Resource Manager. The mounts
// are this process's own, as [startWorker] started it.
func layOut(cache, drivers string) error {
	dir, err := os.MkdirTemp("", "compat-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir) // the mount keeps the file
	hosts := filepath.Join(dir, "hosts")
	if err := os.WriteFile(hosts, []byte("127.0.0.1 localhost "+armHost+"\n"), 0o644); err != nil {
		return err
	}
	for from, to := range map[string]string{cache: cacheInPod, drivers: driversInPod, hosts: "/etc/hosts"} {
		if err := syscall.Mount(from, to, "", syscall.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount %s: %w", strings.TrimPrefix(to, "/"), err)
		}
	}
	return nil
}
