// Imds-migrate writes into Kubernetes manifests what the admission webhook would put
// into their pods, and takes it out again: for GitOps, for clusters where no webhook
// may run, and to see what the webhook would do.
//
//	imds-migrate inject --proxy-image … --proxy-init-image … app.yaml | kubectl apply -f -
//	imds-migrate inject --diff … deploy/
//	imds-migrate inject --uninject -i deploy/
//
// What it does not have to change stays as it is, to the byte.
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

// Exit codes, which --help lists. They are an interface: never renumbered.
const (
	exitOK      = 0
	exitRefused = 1
	exitUsage   = 2
)

func main() { os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }

// run is the program: stdout gets manifests or their differences, stderr what is to be
// said of them.
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

// migrate reads, edits and writes the manifests. What it has to say of single objects goes
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
		return fmt.Errorf("nothing is written: %d refused", m.refused)
	}
	return o.write(files, stdout)
}
