// Command proxy answers an application's managed-identity requests with Entra
// tokens that it gets for the pod's federated token. It is the sidecar of the
// pair; proxy-init, run before it, redirects the metadata address to it.
//
// What it reads from flags and the environment is read in config.go, and in check.go
// what only its check needs.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/pflag"
)

// Exit codes, for scripts and for whoever reads a container's last state. They are
// an interface: never renumbered.
const (
	exitOK      = 0
	exitFailure = 1 // it could not start or go on; standard error says why
	exitUsage   = 2 // a flag or an environment variable has to change

	// Of `proxy check` alone: the first step that failed.
	exitEnvironment    = 10
	exitFederatedToken = 11
	exitIssuer         = 12
	exitAuthority      = 13
	exitExchange       = 14
	exitIMDS           = 15
	exitRules          = 16
)

// lastWordTime is how long the end waits for standard error to take its last line. A
// pipe that nobody reads would hold it for ever.
const lastWordTime = 200 * time.Millisecond

// version is set at build time: -ldflags "-X main.version=…".
var version = "dev"

func main() {
	// Who reads the log may go away: no reason to end, as Go's runtime would at the next line.
	signal.Ignore(syscall.SIGPIPE)
	os.Exit(run(untilSignal(), os.Args[1:], os.Getenv, os.Stdout, os.Stderr))
}

// untilSignal returns a context that the first signal to end ends. A second one ends
// the process at once, for who does not want to wait for the requests in flight. It
// has to be caught: the kernel spares process 1 of a container what it would do to
// any other.
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

// run is the whole program. It ends when ctx does, or before by an error, which
// it reports as one line on stderr.
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

// fail says what was wrong, if somebody listens.
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
