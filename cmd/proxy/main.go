// Command proxy answers an application's managed-identity requests with Entra
// tokens that it gets for the pod's federated token. It is the sidecar of the
// pair; proxy-init, run before it, redirects the metadata address to it.
//
// Flags and environment variables are read in config.go, and those of `proxy check` alone
// in check.go.
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
)

// The exit codes that all commands have.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2
)

// exit is an exit code, as the help and the documentation list it. Exit codes are an
// interface: never renumbered.
type exit struct {
	code int
	name string // of the step of `proxy check` that failed; empty: it is for no step
	help string
}

// exits are the exit codes of the proxy and of `proxy --probe`.
var exits = []exit{
	{exitOK, "", "done"},
	{exitFailure, "", "it could not start or go on, or is not ready; standard error says why"},
	{exitUsage, "", "a flag or an environment variable has to change"},
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

// lastWordTime is how long the process waits at its end for its last line to be written.
// A pipe that nobody reads would block it for ever.
const lastWordTime = 200 * time.Millisecond

// version is set at build time: -ldflags "-X main.version=…".
var version = "dev"

func main() {
	// The reader of the log may go away. Go's runtime would end the process at the next line.
	signal.Ignore(syscall.SIGPIPE)
	// net/http's clients log there what a server sends unasked, in the server's words.
	log.SetOutput(io.Discard)
	os.Exit(run(untilSignal(), os.Args[1:], os.Getenv, os.Stdout, os.Stderr))
}

// untilSignal returns a context that the first SIGTERM or SIGINT ends. A second one ends
// the process at once, without waiting for the requests in flight. It has to be caught:
// the kernel does not end process 1 of a container by a signal that it has no handler for.
func untilSignal() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		<-signals
		cancel()
		again := <-signals
		os.Exit(fail(os.Stderr, exitFailure, fmt.Errorf("ended at once, by a second signal (%s)", again)))
	}()
	return ctx
}

// run runs the program until ctx ends, or until an error, which it reports as one line on
// stderr.
func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) int {
	if len(args) > 0 && args[0] == checkCommand {
		return check(ctx, args[1:], getenv, stdout, stderr)
	}
	cfg, err := parseConfig(args, getenv, stdout)
	switch {
	case errors.Is(err, pflag.ErrHelp):
		return exitOK
	case err != nil:
		return fail(stderr, exitUsage, err)
	case cfg.showVersion:
		fmt.Fprintf(stdout, "proxy %s\n", version)
		return exitOK
	case cfg.probe:
		err = probe(ctx, cfg.port, cfg.probeTimeout)
	default:
		err = serve(ctx, cfg, stderr)
	}
	if errors.Is(err, errConfig) {
		return fail(stderr, exitUsage, err)
	}
	if err != nil {
		return fail(stderr, exitFailure, err)
	}
	return exitOK
}

// fail writes the error to stderr, if somebody reads it.
func fail(stderr io.Writer, code int, err error) int {
	said := make(chan struct{})
	go func() {
		defer close(said)
		fmt.Fprintf(stderr, "proxy: %v\n", err)
	}()
	select {
	case <-said:
	case <-time.After(lastWordTime):
	}
	return code
}
