// Command imds-migrate makes the same changes to Kubernetes manifests that the admission webhook
// makes to pods, and removes them again. It is for GitOps, for clusters without the webhook, and
// to see what the webhook would change.
//
//	imds-migrate inject --proxy-image … --proxy-init-image … app.yaml | kubectl apply -f -
//	imds-migrate inject --diff … deploy/
//	imds-migrate uninject -i deploy/
//
// All other bytes of a manifest stay unchanged.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"github.com/spf13/pflag"
)

// version is the version and the commit. It is set at build time: -ldflags "-X 'main.version=…'".
var version = "dev"

// Exit codes, which --help lists. Scripts depend on them, so they must not change.
const (
	exitOK      = 0
	exitRefused = 1
	exitUsage   = 2
	exitDiffers = 3 // with --exit-code
)

func main() {
	if calledAsPlugin(os.Args[0]) {
		os.Exit(runPlugin(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
	}
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// runPlugin is the program as a plugin of kubectl. It is the same but for its name in its own texts. What
// inject and uninject write is of the user.
func runPlugin(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	messages := &renamer{to: stderr}
	defer messages.flush()
	if len(args) > 0 && (args[0] == commandInject || args[0] == commandUninject) && !slices.ContainsFunc(args, isHelp) {
		return run(args, stdin, stdout, messages)
	}
	texts := &renamer{to: stdout}
	defer texts.flush()
	return run(args, stdin, texts, messages)
}

func isHelp(arg string) bool { return arg == "--help" || arg == "-h" }

// run is the program. It writes manifests or differences to stdout, and messages to stderr, and
// returns the exit code.
func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	if len(args) > 0 && slices.Contains(clusterCommands, args[0]) {
		ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		defer cancel()
		context.AfterFunc(ctx, cancel) // a second signal ends the program at once
		return runCluster(ctx, args[0], args[1:], stdin, stdout, stderr)
	}
	o, err := parse(args, stdout)
	switch {
	case errors.Is(err, pflag.ErrHelp):
		return exitOK
	case err != nil:
		fmt.Fprintf(stderr, "imds-migrate: %v\n", err)
		return exitUsage
	case o.version:
		fmt.Fprintf(stdout, "imds-migrate %s\n", version)
		return exitOK
	}
	differs, err := migrate(o, stdin, stdout, stderr)
	switch {
	case err != nil:
		fmt.Fprintf(stderr, "imds-migrate: %v\n", err)
		return exitRefused
	case differs && o.exitCode:
		return exitDiffers
	}
	return exitOK
}

// runCluster runs a command that reads a cluster.
func runCluster(ctx context.Context, command string, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	switch command {
	case commandCheck:
		return runCheck(ctx, args, stdout, stderr)
	case commandVerify:
		return runVerify(ctx, args, stdout, stderr)
	case commandReport:
		return runReport(ctx, args, stdout, stderr)
	case commandRetire:
		return runRetire(ctx, args, stdin, stdout, stderr)
	}
	return runPlan(ctx, args, stdin, stdout, stderr)
}

// migrate reads, edits and writes the manifests. It writes a message for each warning and refusal
// to stderr.
func migrate(o options, stdin io.Reader, stdout, stderr io.Writer) (differs bool, err error) {
	files, err := find(o.files, stdin)
	defer func() {
		for _, f := range files {
			f.stdin.close()
		}
	}()
	if err != nil {
		return false, err
	}
	m := &migration{options: o, out: new(spool), messages: stderr}
	defer m.out.close()
	if err := m.edit(files, stdin); err != nil {
		return false, err
	}
	if m.refused > 0 {
		return false, fmt.Errorf("nothing was written: %d refused", m.refused)
	}
	if err := o.write(files, stdout); err != nil {
		return false, err
	}
	m.summary()
	return slices.ContainsFunc(files, func(f *file) bool { return f.changed }), nil
}
