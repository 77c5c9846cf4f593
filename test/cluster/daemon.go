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

// daemon is a program that runs as long as the cluster does. Nobody stops it: the
// kernel ends it with the first process of the namespace.
type daemon struct {
	name    string
	logFile string
	process *os.Process
	ended   chan struct{} // closed when it ended, which it never should
}

// startDaemon starts a program whose output goes to a file in logs.
func startDaemon(logs, name, path string, args ...string) (*daemon, error) {
	d := &daemon{name: name, logFile: filepath.Join(logs, name+".log"), ended: make(chan struct{})}
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
		defer close(d.ended)
		defer output.Close()
		fmt.Fprintf(output, "ended: %v\n", cmd.Wait())
	}()
	return d, nil
}

// tailBytes is how much of a log stands in an error: the last dozen lines or so.
const tailBytes = 4 << 10

func (d *daemon) tail() string {
	content, err := os.ReadFile(d.logFile)
	if err != nil {
		return err.Error()
	}
	return string(content[max(0, len(content)-tailBytes):])
}

// wait waits until ready returns nil. A daemon that ends before is an error.
func (d *daemon) wait(ctx context.Context, ready func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-d.ended:
			cancel(errors.New("it ended"))
		case <-ctx.Done():
		}
	}()
	if err := Wait(ctx, ready); err != nil {
		return fmt.Errorf("%s: %w; its log ends with\n%s", d.name, err, d.tail())
	}
	return nil
}

// pollInterval is how often Wait looks: it costs little, and a test waits no longer
// than it has to.
const pollInterval = 50 * time.Millisecond

// Wait calls ready until it returns nil, or until ctx ends, and then returns why it
// was not ready.
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
			last = err // and not that ctx ended while it was asked
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", context.Cause(ctx), last)
		}
	}
}

// healthy is, for wait, that a URL is answered with 200.
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
			return fmt.Errorf("%s answers %s", url, response.Status)
		}
		return nil
	}
}

// command runs a program to its end and returns what it prints on standard output.
func command(name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return strings.TrimSpace(stdout.String()), nil
}
