package main

import (
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/flagenv"
	"imds-oidc-proxy/internal/inject"
)

// options are everything that the flags say.
type options struct {
	config inject.Config

	files []string // none: standard input

	uninject      bool
	inPlace, diff bool
	all           bool
	selectorText  string
	selector      labels.Selector
	nativeSidecar string

	namespace   string
	clientID    azure.ClientID
	accountFile []string

	version bool
}

const usageHead = `Usage: imds-migrate inject [flags] [FILE | DIRECTORY | -]…

imds-migrate inject writes into manifests what the admission webhook would put into
their pods. Everything else in them stays as it is, to the byte.

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
	flags := flagenv.New("imds-migrate", nil)
	flags.Arguments = true
	o.addFlags(flags.FlagSet)
	flags.Usage = func() { fmt.Fprintf(stdout, usageHead, flags.FlagUsages()) }
	if err := flags.Parse(args, nil); err != nil || o.version {
		return o, err
	}
	if flags.NArg() == 0 || flags.Arg(0) != "inject" {
		return o, errors.New("the command must be imds-migrate inject, then flags and files (see imds-migrate --help)")
	}
	o.files = flags.Args()[1:]
	return o, o.check()
}

func (o *options) addFlags(flags *pflag.FlagSet) {
	o.nativeSidecar = "on"
	flags.BoolVar(&o.uninject, "uninject", false, "take out what was injected, and nothing else; with --all, label and annotation too")
	flags.BoolVarP(&o.inPlace, "in-place", "i", false, "write the files themselves, those that change")
	flags.BoolVar(&o.diff, "diff", false, "print the differences, for patch -p1, in place of the manifests")
	flags.BoolVar(&o.all, "all", false, "put "+inject.UseLabel+" and "+inject.InjectProxyAnnotation+" on every workload that does not say otherwise")
	flags.StringVarP(&o.selectorText, "selector", "l", "", "with --all: only workloads whose own labels match this `selector`")
	flags.StringVarP(&o.namespace, "namespace", "n", corev1.NamespaceDefault, "`namespace` of what names none")
	flagenv.Var(flags, &o.clientID, "client-id", flagenv.Optional(azure.ParseClientID), "client `ID` for service accounts that are not found or name none")
	flags.StringSliceVar(&o.accountFile, "service-account-file", nil, "`file` with ServiceAccounts, to read beside the manifests and not to write; - is standard input")
	flagenv.Var(flags, &o.nativeSidecar, "native-sidecar", flagenv.OneOf("on", "off"),
		"on or off: run the proxy as a sidecar among the init containers, which takes Kubernetes 1.29")
	o.config.AddFlags(flags)
	flags.BoolVar(&o.version, "version", false, "print the version and exit")
}

func (o *options) check() error {
	switch {
	case o.inPlace && o.diff:
		return errors.New("--in-place and --diff exclude each other")
	case o.selectorText != "" && !o.all:
		return errors.New("--selector requires --all: it chooses what --all marks")
	case o.namespace == "":
		return flagenv.Required([]string{"namespace"}, "")
	}
	if err := o.checkStdin(); err != nil {
		return err
	}
	var err error
	if o.selector, err = labels.Parse(o.selectorText); err != nil {
		return flagenv.Errorf("selector", "%q: must be a label selector, such as app=web,tier!=batch", o.selectorText)
	}
	if o.uninject {
		return nil // it needs no configuration
	}
	o.config.PostStart = o.nativeSidecar == "off"
	return o.config.Validate()
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
