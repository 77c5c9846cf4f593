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

	"imds-oidc-proxy/internal/azure"
)

// Mode names an iptables backend.
type Mode string

// The modes. A kernel can hold rules of both backends at once, each unseen by
// the other's tools.
const (
	ModeAuto   Mode = "auto"
	ModeNFT    Mode = "nft"
	ModeLegacy Mode = "legacy"
)

// ParseMode reads a mode's name.
func ParseMode(s string) (Mode, error) {
	switch m := Mode(s); m {
	case ModeAuto, ModeNFT, ModeLegacy:
		return m, nil
	}
	return "", azure.Invalid(s, "must be auto, nft or legacy")
}

const (
	// lockWait bounds the wait for the xtables lock: longer than the few
	// milliseconds that a holder needs, short enough to be reported.
	lockWait = 5 * time.Second

	// commandTimeout bounds each run of iptables: lockWait, and as much again on
	// a busy node.
	commandTimeout = 2 * lockWait

	// maxOutput bounds what is kept of iptables' complaints.
	maxOutput = 4 << 10
)

// backend is one of the two iptables, and how to use it.
type backend struct {
	mode   Mode
	tables tables
	// inUse reports whether a table exists, where reading it would make it. Nil:
	// reading makes nothing.
	inUse func(table string) bool
	// restore commits iptables-restore input, atomically for each table.
	restore func(ctx context.Context, input string) error
}

// findBackend looks for the mode's binary: under its own name, or as the plain
// iptables of an image that has only one. An *Error of NoBinary: there is none. Its
// reading ends with ctx.
func findBackend(ctx context.Context, mode Mode) (*backend, error) {
	for _, name := range []string{"iptables-" + string(mode), "iptables"} {
		path, err := exec.LookPath(name)
		if err != nil || name == "iptables" && modeOf(ctx, path) != mode {
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
		b := &backend{
			mode:    mode,
			tables:  &bounded{tables: ipt, mode: mode, ended: ctx},
			restore: func(ctx context.Context, input string) error { return restore(ctx, restorePath, mode, input) },
		}
		if mode == ModeLegacy {
			b.inUse = legacyTableExists
		}
		return b, nil
	}
	return nil, &Error{
		Kind:   NoBinary,
		Cause:  fmt.Sprintf("no iptables-%s (nor an iptables of that backend, with its iptables-restore) in PATH", mode),
		Remedy: "use the published init image, which has both backends, or install iptables in this one",
	}
}

// modeOf asks an iptables which backend it is. Empty: it does not say.
func modeOf(ctx context.Context, path string) Mode {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	switch {
	case err != nil:
		return ""
	case strings.Contains(string(out), "nf_tables"):
		return ModeNFT
	}
	return ModeLegacy
}

// restore runs iptables-restore. It does not flush what others have.
func restore(ctx context.Context, path string, mode Mode, input string) error {
	limited, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	cmd := exec.CommandContext(limited, path, "--noflush", "--wait", strconv.Itoa(int(lockWait/time.Second)))
	cmd.Stdin = strings.NewReader(input)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	// A child of iptables-restore that keeps the pipe open must not outlive us.
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
		return timedOut(step, mode)
	case exited:
		text := said.String()[:min(said.Len(), maxOutput)]
		return failedRun{step, mode, exit.ExitCode(), text, input, missingCapability(mode) != ""}.classify()
	}
	return &Error{Cause: fmt.Sprintf("%s: %v", step, err)}
}

func timedOut(step string, mode Mode) *Error {
	return &Error{
		Kind:   TimedOut,
		Cause:  fmt.Sprintf("%s: iptables (%s) did not end within %s", step, mode, commandTimeout),
		Remedy: "restart this container; where it happens again, look at the node's load and at who holds the xtables lock",
	}
}

// bounded gives go-iptables, which waits for iptables however long it takes, a
// limit, and its errors a kind.
type bounded struct {
	tables tables
	mode   Mode
	// ended is the life of the whole run, which go-iptables takes no notice of.
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
		return nil, timedOut(step, b.mode)
	}
}

func (b *bounded) explain(step string, err error) error {
	switch failed, ran := errors.AsType[*iptables.Error](err); {
	case err == nil:
		return nil
	case ran:
		// Its text begins with the whole command line, of no use here.
		_, said, _ := strings.Cut(failed.Error(), fmt.Sprintf("exit status %d: ", failed.ExitStatus()))
		return failedRun{step: step, mode: b.mode, exitCode: failed.ExitStatus(), said: said, powerless: missingCapability(b.mode) != ""}.classify()
	}
	return &Error{Cause: fmt.Sprintf("%s: %v", step, err)}
}
