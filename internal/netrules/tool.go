package netrules

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/coreos/go-iptables/iptables"
)

const (
	// lockWait is how long iptables waits for the xtables lock. Another process normally
	// holds it for a few milliseconds.
	lockWait = 5 * time.Second

	// commandTimeout is the timeout of each run of iptables: lockWait, and the same again
	// for a busy node.
	commandTimeout = 2 * lockWait

	// maxOutput is how many bytes of iptables' error output are kept.
	maxOutput = 4 << 10
)

// tool is the iptables of one backend.
type tool struct {
	backend Backend
	tables  tables
	// inUse reports whether a table exists, for a backend where reading a table creates it.
	// It is nil if reading creates no tables.
	inUse func(table string) bool
	// restore commits iptables-restore input. The commit of each table is atomic.
	restore func(ctx context.Context, input string) error
}

// findTool finds the binary of the backend: iptables-nft or iptables-legacy, or iptables in an
// image that has only one. If there is none, it returns an *[Error] of [NoBinary]. When ctx is
// done, all reading by the tool ends.
func findTool(ctx context.Context, backend Backend) (*tool, error) {
	for _, name := range []string{"iptables-" + string(backend), "iptables"} {
		path, err := exec.LookPath(name)
		if err != nil || name == "iptables" && backendOf(ctx, path) != backend {
			continue
		}
		restorePath, err := exec.LookPath(path + "-restore")
		if err != nil {
			continue
		}
		ipt, err := iptables.New(iptables.Path(path), iptables.Timeout(int(lockWait/time.Second)))
		if err != nil {
			return nil, &Error{Cause: fmt.Sprintf("%s cannot be used: %v", path, err)}
		}
		b := &tool{
			backend: backend,
			tables:  &bounded{tables: ipt, backend: backend, ended: ctx},
			restore: func(ctx context.Context, input string) error { return restore(ctx, restorePath, backend, input) },
		}
		if backend == Legacy {
			b.inUse = legacyTableExists
		}
		return b, nil
	}
	return nil, &Error{
		Kind:   NoBinary,
		Cause:  fmt.Sprintf("no iptables-%s in PATH, and no iptables of that backend with its iptables-restore", backend),
		Remedy: "use the published init image, which has both backends, or install iptables in this image",
	}
}

// backendOf returns the backend of an iptables binary, or "" if the binary fails.
func backendOf(ctx context.Context, path string) Backend {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	switch {
	case err != nil:
		return ""
	case strings.Contains(string(out), "nf_tables"):
		return NFT
	}
	return Legacy
}

// restore runs iptables-restore with --noflush, which keeps the rules of other programs.
func restore(ctx context.Context, path string, backend Backend, input string) error {
	limited, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	cmd := exec.CommandContext(limited, path, "--noflush", "--wait", strconv.Itoa(int(lockWait/time.Second)))
	cmd.Stdin = strings.NewReader(input)
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	// Do not wait for a child of iptables-restore that keeps the pipe open.
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	header, _, _ := strings.Cut(input, "\n")
	step := "committing the " + strings.TrimPrefix(header, "*") + " table"
	switch exit, exited := errors.AsType[*exec.ExitError](err); {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("%s: %w", step, ctx.Err())
	case limited.Err() != nil:
		return timedOut(step, backend)
	case exited:
		text := output.String()[:min(output.Len(), maxOutput)]
		return failedRun{step, backend, exit.ExitCode(), text, input, missingCapability(backend) != ""}.classify()
	}
	return &Error{Cause: fmt.Sprintf("%s: %v", step, err)}
}

func timedOut(step string, backend Backend) *Error {
	return &Error{
		Kind:   TimedOut,
		Cause:  fmt.Sprintf("%s: iptables (%s) did not exit within %s", step, backend, commandTimeout),
		Remedy: "restart this container; if it happens again, check the node's load and which process holds the xtables lock",
	}
}

// bounded adds a timeout to go-iptables, which waits for iptables without a limit, and
// classifies its errors.
type bounded struct {
	tables  tables
	backend Backend
	// ended is done when the run of this program ends. go-iptables accepts no context.
	ended context.Context
}

func (b *bounded) ListChains(table string) ([]string, error) {
	return b.run("listing the "+table+" table", func() ([]string, error) { return b.tables.ListChains(table) })
}

func (b *bounded) List(table, chain string) ([]string, error) {
	return b.run("listing "+chain+" of the "+table+" table", func() ([]string, error) { return b.tables.List(table, chain) })
}

func (b *bounded) run(step string, list func() ([]string, error)) ([]string, error) {
	type answer struct {
		lines []string
		err   error
	}
	done := make(chan answer, 1)
	go func() {
		lines, err := list()
		done <- answer{lines, err}
	}()
	select {
	case a := <-done:
		return a.lines, b.explain(step, a.err)
	case <-b.ended.Done():
		return nil, fmt.Errorf("%s: %w", step, b.ended.Err())
	case <-time.After(commandTimeout):
		return nil, timedOut(step, b.backend)
	}
}

func (b *bounded) explain(step string, err error) error {
	switch failed, ran := errors.AsType[*iptables.Error](err); {
	case err == nil:
		return nil
	case ran:
		// The text begins with the whole command line, which is left out.
		_, output, _ := strings.Cut(failed.Error(), fmt.Sprintf("exit status %d: ", failed.ExitStatus()))
		return failedRun{step: step, backend: b.backend, exitCode: failed.ExitStatus(), output: output, unprivileged: missingCapability(b.backend) != ""}.classify()
	}
	return &Error{Cause: fmt.Sprintf("%s: %v", step, err)}
}
