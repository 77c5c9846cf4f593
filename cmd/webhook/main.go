// Command webhook is the mutating admission webhook that injects the proxy and its redirect into
// pods. The API server sends it each new pod with the label azure.workload.identity/use=true. It
// answers with a patch, with no change, or with a refusal. internal/inject computes the changes.
// This program reads the pod's service account, manages its own certificate, and serves requests.
//
// config.go reads all flags and environment variables.
//
// # Security considerations
//
// A client that can connect to its port can send any pod, and learns whether a service account
// exists and which azure.workload.identity annotations it has: names and client IDs, no secrets.
// The webhook reads no Secret except the one with its certificate, and logs nothing of a pod
// except its name. charts/imds-oidc-proxy/templates/rbac.yaml has its permissions.
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

// Exit codes. cmd/proxy has the same.
const (
	exitOK      = 0
	exitFailure = 1 // failed to start or to run; the error is on standard error
	exitUsage   = 2 // invalid flag or environment variable
)

// version is the version and the commit. It is set at build time: -ldflags "-X 'main.version=…'".
var version = "dev"

func main() {
	// If the reader of the log's pipe exits, the next line must not end this process, as it
	// would by default.
	signal.Ignore(syscall.SIGPIPE)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Getenv, os.Stdout, os.Stderr))
}

// run is the program. It returns the exit code when ctx is done, or after an error, which it
// writes to stderr in one line.
func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) int {
	if len(args) > 0 && len(args) <= 2 && args[0] == "ask" {
		resource := askResource
		if len(args) == 2 {
			resource = args[1]
		}
		if err := ask(ctx, resource, getenv, stdout); err != nil {
			return fail(stderr, exitFailure, err)
		}
		return exitOK
	}
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
