package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// daemon is a program that runs until the end of the test. Nothing stops it: the kernel
// kills it when process 1 of its PID namespace exits.
type daemon struct {
	name    string
	logFile string
	process *os.Process
	exited  chan struct{} // closed when the program has exited
}

// startDaemon starts a program whose output goes to a file in logs.
func startDaemon(logs, name, path string, args ...string) (*daemon, error) {
	d := &daemon{name: name, logFile: filepath.Join(logs, name+".log"), exited: make(chan struct{})}
	output, err := os.Create(d.logFile)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(path, args...)
	cmd.Stdout, cmd.Stderr = output, output
	if err := cmd.Start(); err != nil {
		output.Close()
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	d.process = cmd.Process
	go func() {
		defer close(d.exited)
		defer output.Close()
		fmt.Fprintf(output, "exited: %v\n", cmd.Wait())
	}()
	return d, nil
}

// tailBytes is how many bytes from the end of a log an error contains, about a dozen lines.
const tailBytes = 4 << 10

func (d *daemon) tail() string {
	content, err := os.ReadFile(d.logFile)
	if err != nil {
		return err.Error()
	}
	return string(content[max(0, len(content)-tailBytes):])
}

// wait waits until ready returns nil. It returns an error if the daemon exits before.
func (d *daemon) wait(ctx context.Context, ready func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-d.exited:
			cancel(errors.New("the program exited"))
		case <-ctx.Done():
		}
	}()
	if err := Wait(ctx, ready); err != nil {
		return fmt.Errorf("%s: %w; its log ends with\n%s", d.name, err, d.tail())
	}
	return nil
}

// pollInterval is the interval at which Wait calls ready. The calls cost little, and a
// short interval keeps tests fast.
const pollInterval = 50 * time.Millisecond

// Wait calls ready until it returns nil. If ctx ends before, Wait returns the cause and
// the last error of ready.
func Wait(ctx context.Context, ready func(context.Context) error) error {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	var last error
	for {
		err := ready(ctx)
		if err == nil {
			return nil
		}
		if last == nil || ctx.Err() == nil {
			last = err // unless err only reports that ctx ended during the call
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", context.Cause(ctx), last)
		}
	}
}

// healthy returns a condition for wait: a GET request for url gets status 200.
func healthy(url string) func(context.Context) error {
	return func(ctx context.Context) error {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			return err
		}
		response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return fmt.Errorf("GET %s: status %s", url, response.Status)
		}
		return nil
	}
}

// command runs a program and returns its standard output, without surrounding white space.
func command(name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return strings.TrimSpace(stdout.String()), nil
}
