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
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/pflag"
)

// version is set at build time: -ldflags "-X main.version=…".
var version = "dev"

// Exit codes, which --help lists. Scripts depend on them, so they must not change.
const (
	exitOK      = 0
	exitRefused = 1
	exitUsage   = 2
)

func main() { os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }

// run is the program. It writes manifests or differences to stdout, and messages to stderr, and
// returns the exit code.
func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
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
	if err := migrate(o, stdin, stdout, stderr); err != nil {
		fmt.Fprintf(stderr, "imds-migrate: %v\n", err)
		return exitRefused
	}
	return exitOK
}

// migrate reads, edits and writes the manifests. It writes a message for each warning and refusal
// to stderr.
func migrate(o options, stdin io.Reader, stdout, stderr io.Writer) error {
	files, err := read(o.files, stdin)
	if err != nil {
		return err
	}
	m := &migration{options: o}
	m.edit(files, stdin)
	for _, message := range m.messages {
		fmt.Fprintln(stderr, message)
	}
	if m.refused > 0 {
		return fmt.Errorf("nothing was written: %d refused", m.refused)
	}
	return o.write(files, stdout)
}
