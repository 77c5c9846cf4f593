// Command imds-cni is a CNI plugin that installs the redirect in the network namespaces of pods
// that ask for it, and the program that installs the plugin on a node.
//
// A container runtime runs it without arguments, with the environment variables of the CNI
// specification: see internal/cni. With an argument it installs or removes itself: see
// internal/cniinstall. Both are one program, so that a node never has the entry of one version
// and the plugin of another.
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

	"imds-oidc-proxy/internal/cni"
	"imds-oidc-proxy/internal/cniinstall"
	"imds-oidc-proxy/internal/logging"
	"imds-oidc-proxy/internal/netrules"
)

// name is the plugin's file name and the type of its entry.
const name = "imds-cni"

// Exit codes of the commands, which --help lists. As a plugin, the program exits with 1 after any
// error, which it prints as the CNI specification requires.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2
	exitFight   = 3
)

// version is set at build time: -ldflags "-X main.version=…".
var version = "dev"

func main() {
	if len(os.Args) == 1 && os.Getenv("CNI_COMMAND") != "" {
		os.Exit(cni.Run(cni.Redirect{Install: netrules.InstallIn, Check: netrules.CheckIn}, name+" "+version))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Getenv, os.Stdout, os.Stderr))
}

// run is the program, except for the plugin. It returns the exit code.
func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) int {
	o, err := parse(args, getenv)
	switch {
	case errors.Is(err, pflag.ErrHelp):
		fmt.Fprint(stdout, o.usage)
		return exitOK
	case err != nil:
		fmt.Fprintf(stderr, "%s: %v\n", name, err)
		return exitUsage
	case o.version:
		fmt.Fprintf(stdout, "%s %s\n", name, version)
		return exitOK
	}
	log := logging.New(stderr, o.log)
	defer log.Sync() //nolint:errcheck // a container's stderr cannot be synced
	switch err := act(ctx, o, log); {
	case errors.Is(err, cniinstall.ErrFight):
		fmt.Fprintf(stderr, "%s: %v; see which program writes to %s, and add the plugin there\n", name, err, o.confDir)
		return exitFight
	case err != nil:
		fmt.Fprintf(stderr, "%s: %v\n", name, err)
		return exitFailure
	}
	return exitOK
}
