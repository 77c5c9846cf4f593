package main

import (
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"

	"imds-oidc-proxy/internal/inject"
	"imds-oidc-proxy/internal/injectflags"
)

// options are everything that the flags say.
type options struct {
	injection injectflags.Flags
	config    inject.Config // made of injection

	files []string // none: standard input

	uninject      bool
	inPlace, diff bool
	all           bool
	selectorText  string
	selector      labels.Selector
	nativeSidecar string

	namespace   string
	clientID    string
	accountFile []string

	version bool
}

const usageHead = `imds-migrate inject writes into manifests what the admission webhook would put into
their pods. Everything else in them stays as it is, to the byte.

Usage: imds-migrate inject [flags] [FILE | DIRECTORY | -]…

Without a file it reads standard input. Of a directory it takes .yaml, .yml and .json,
those of directories within too.

%s
Exit codes:
   0  done; warnings may have been given
   1  something is refused or cannot be read or written; nothing is written then, or the
      message says what is
   2  a wrong flag
`

// parse reads the flags. Help goes to stdout, and is pflag.ErrHelp.
func parse(args []string, stdout io.Writer) (options, error) {
	var o options
	flags := newFlags(&o)
	flags.SetOutput(stdout)
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			return o, err
		}
		return o, fmt.Errorf("%w (see imds-migrate --help)", err)
	}
	if o.version {
		return o, nil
	}
	if flags.NArg() == 0 || flags.Arg(0) != "inject" {
		return o, errors.New("say imds-migrate inject, then flags and files (see imds-migrate --help)")
	}
	o.files = flags.Args()[1:]
	return o, o.check()
}

func newFlags(o *options) *pflag.FlagSet {
	flags := pflag.NewFlagSet("imds-migrate", pflag.ContinueOnError)
	flags.SortFlags = false
	flags.BoolVar(&o.uninject, "uninject", false, "take out what was injected, and nothing else; with --all, label and annotation too")
	flags.BoolVarP(&o.inPlace, "in-place", "i", false, "write the files themselves, those that change")
	flags.BoolVar(&o.diff, "diff", false, "print the differences, for patch -p1, in place of the manifests")
	flags.BoolVar(&o.all, "all", false, "put "+inject.UseLabel+" and "+inject.InjectProxyAnnotation+" on every workload that does not say otherwise")
	flags.StringVarP(&o.selectorText, "selector", "l", "", "with --all: only workloads whose own labels match this `selector`")
	flags.StringVarP(&o.namespace, "namespace", "n", corev1.NamespaceDefault, "`namespace` of what names none")
	flags.StringVar(&o.clientID, "client-id", "", "client `ID` for service accounts that are not found or name none")
	flags.StringSliceVar(&o.accountFile, "service-account-file", nil, "`file` with ServiceAccounts, to read beside the manifests and not to write; - is standard input")
	flags.StringVar(&o.nativeSidecar, "native-sidecar", "on", "on or off: run the proxy as a sidecar among the init containers, which takes Kubernetes 1.29")
	o.injection.AddFlags(flags)
	flags.BoolVar(&o.version, "version", false, "print the version and exit")
	flags.Usage = func() { fmt.Fprintf(flags.Output(), usageHead, flags.FlagUsages()) }
	return flags
}

func (o *options) check() error {
	switch {
	case o.inPlace && o.diff:
		return errors.New("--in-place and --diff exclude each other")
	case o.selectorText != "" && !o.all:
		return errors.New("--selector chooses what --all marks: say --all too")
	case o.nativeSidecar != "on" && o.nativeSidecar != "off":
		return fmt.Errorf("--native-sidecar %q: say on or off", o.nativeSidecar)
	case o.namespace == "":
		return errors.New("--namespace: say a name")
	case o.clientID != "" && !inject.ValidClientID(o.clientID):
		return fmt.Errorf("--client-id %q: say the client ID of an identity, a GUID", o.clientID)
	}
	if err := o.checkStdin(); err != nil {
		return err
	}
	var err error
	if o.selector, err = labels.Parse(o.selectorText); err != nil {
		return fmt.Errorf("--selector %q: say one such as app=web,tier!=batch", o.selectorText)
	}
	if o.uninject {
		return nil // which needs no configuration
	}
	o.config, err = o.injection.Config()
	o.config.PostStart = o.nativeSidecar == "off"
	return err
}

// checkStdin: standard input can be read once, and not be written.
func (o *options) checkStdin() error {
	isStdin := func(name string) bool { return name == stdinName }
	forAccounts := len(slices.DeleteFunc(slices.Clone(o.accountFile), func(name string) bool { return !isStdin(name) }))
	forManifests := len(o.files) == 0 || slices.ContainsFunc(o.files, isStdin)
	switch {
	case o.inPlace && len(o.files) == 0:
		return errors.New("--in-place: name files")
	case o.inPlace && forManifests:
		return errors.New("--in-place: standard input cannot be written; name files")
	case forAccounts > 1:
		return errors.New("--service-account-file: - is given twice, and standard input is there once")
	case forAccounts > 0 && forManifests:
		return errors.New("--service-account-file -: standard input holds the manifests already; name files")
	}
	return nil
}
