// Command webhook is the admission webhook that puts the proxy and its redirect
// into pods: the API server asks it about each new pod with the label
// azure.workload.identity/use=true, and it answers with a patch, a refusal, or
// nothing to do. What a pod gets is decided by internal/inject; this program reads
// the pod's service account, keeps its own certificate, and answers.
//
// Everything that it reads from flags and the environment is read in config.go.
//
// # Security considerations
//
// Whoever reaches its port can ask what a made-up pod would be given, and learns
// whether a service account exists and what azure.workload.identity annotations it
// has: names and client IDs, no secrets. It reads no Secret but the one that holds
// its certificate, and logs nothing of a pod but its name. What it cannot do, for want of
// permission, is in charts/imds-oidc-proxy/templates/rbac.yaml.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/pflag"
)

// Exit codes, as those of cmd/proxy.
const (
	exitOK      = 0
	exitFailure = 1 // it could not start or go on; standard error says why
	exitUsage   = 2 // a flag or an environment variable cannot be right
)

// version is set at build time: -ldflags "-X main.version=…".
var version = "dev"

func main() {
	// Who reads the log may go away: no reason to end, as Go's runtime would at the next line.
	signal.Ignore(syscall.SIGPIPE)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Getenv, os.Stdout, os.Stderr))
}

// run is the whole program. It ends when ctx does, or before by an error, which
// it reports as one line on stderr.
func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) int {
	cfg, err := parseConfig(args, getenv, stdout)
	switch {
	case errors.Is(err, pflag.ErrHelp):
		return exitOK
	case err != nil:
		return fail(stderr, exitUsage, err)
	case cfg.showVersion:
		fmt.Fprintf(stdout, "webhook %s\n", version)
		return exitOK
	}
	if err := serve(ctx, cfg, stderr); err != nil {
		return fail(stderr, exitFailure, err)
	}
	return exitOK
}

func fail(stderr io.Writer, code int, err error) int {
	fmt.Fprintf(stderr, "webhook: %v\n", err)
	return code
}
