// Command proxy is the sidecar. It answers an application's requests for managed identity tokens
// with Entra access tokens, which it gets in exchange for the pod's federated token. The init
// container proxy-init redirects the metadata address to the proxy.
//
// config.go reads the flags and environment variables; check.go reads those of `proxy check`.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/pflag"

	"imds-oidc-proxy/internal/termlog"
)

// Exit codes that all commands have in common.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2
)

// exitNoRedirect is the exit code of --require-redirect, and of proxy-init --validate.
const exitNoRedirect = 13

// exit describes an exit code for the help and the documentation. Exit codes are an
// interface and are never renumbered.
type exit struct {
	code int
	name string // the step of `proxy check` that failed; empty if the code is for no step
	help string
}

// exits are the exit codes of the proxy and of `proxy --probe`.
var exits = []exit{
	{exitOK, "", "done"},
	{exitFailure, "", "the proxy could not start, failed, or is not ready; standard error has the reason"},
	{exitUsage, "", "a flag or an environment variable is invalid or missing"},
	{exitNoRedirect, "", "--require-redirect: there is no redirect: the CNI plugin did not run on this node, or not for this pod"},
}

func exitHelp(table []exit) string {
	var b strings.Builder
	for _, e := range table {
		if e.name == "" {
			fmt.Fprintf(&b, "  %2d  %s\n", e.code, e.help)
			continue
		}
		fmt.Fprintf(&b, "  %2d  %-16s  %s\n", e.code, e.name, e.help)
	}
	return b.String()
}

// lastLineTimeout is how long the process waits before it exits until its last line is
// written. Without a timeout, a pipe that is full would block the process forever.
const lastLineTimeout = 200 * time.Millisecond

// version is the version and the commit. It is set at build time: -ldflags "-X 'main.version=…'".
var version = "dev"

func main() {
	// When the process that reads the log exits, the next write to standard error raises
	// SIGPIPE, which ends a Go program by default.
	signal.Ignore(syscall.SIGPIPE)
	// net/http's client logs unsolicited responses to the standard logger, with text that
	// the server chose.
	log.SetOutput(io.Discard)
	os.Exit(run(untilSignal(), os.Args[1:], os.Getenv, os.Stdout, os.Stderr))
}

// untilSignal returns a context that the first SIGTERM or SIGINT cancels, which begins the
// graceful shutdown. A second signal ends the process at once. The process must handle the
// second signal itself: the kernel discards signals to process 1 of a container that have no
// handler.
func untilSignal() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		<-signals
		cancel()
		again := <-signals
		os.Exit(fail(os.Stderr, exitFailure, fmt.Errorf("stopped without waiting for requests in progress: received a second signal (%s)", again)))
	}()
	return ctx
}

// run runs the program until ctx ends or an error occurs, and returns the exit code. It
// reports an error as one line on stderr and, so that the container's status has the cause, in
// the termination log.
func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) int {
	if len(args) > 0 {
		switch args[0] {
		case checkCommand:
			return check(ctx, args[1:], getenv, stdout, stderr)
		case clientsCommand:
			return clients(ctx, args[1:], getenv, stdout, stderr)
		}
	}
	cfg, err := parseConfig(args, getenv, stdout)
	switch {
	case errors.Is(err, pflag.ErrHelp):
		return exitOK
	case err != nil:
	case cfg.showVersion:
		fmt.Fprintf(stdout, "proxy %s\n", version)
	case cfg.probe:
		if err = probe(ctx, cfg.port, cfg.probeTimeout); err == nil {
			termlog.Clear(cfg.terminationLog) // of the cause of an earlier probe's failure
		}
	default:
		err = serve(ctx, cfg, stderr)
	}
	if err == nil {
		return exitOK
	}
	termlog.Write(cfg.terminationLog, fmt.Sprintf("proxy: %v", err))
	switch {
	case errors.Is(err, errConfig):
		return fail(stderr, exitUsage, err)
	case errors.Is(err, errNoRedirect):
		return fail(stderr, exitNoRedirect, err)
	}
	return fail(stderr, exitFailure, err)
}

// fail writes the error to stderr and returns code. It gives up after lastLineTimeout.
func fail(stderr io.Writer, code int, err error) int {
	written := make(chan struct{})
	go func() {
		defer close(written)
		fmt.Fprintf(stderr, "proxy: %v\n", err)
	}()
	select {
	case <-written:
	case <-time.After(lastLineTimeout):
	}
	return code
}
