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

// The commands.
const (
	commandInject   = "inject"
	commandUninject = "uninject"
	commandPlan     = "plan"
	commandCheck    = "check"
	commandVerify   = "verify"
	commandReport   = "report"
	commandRetire   = "retire"
	commandHelp     = "help"
	commandVersion  = "version"
)

// clusterCommands are the commands that read a cluster, each with flags of its own.
var clusterCommands = []string{commandPlan, commandCheck, commandVerify, commandReport, commandRetire}

// options is the configuration from the command line.
type options struct {
	config inject.Config

	files []string // empty: standard input

	uninject      bool
	inPlace, diff bool
	exitCode      bool
	all           bool
	selectorText  string
	selector      labels.Selector
	nativeSidecar string
	templatePaths []templatePath

	namespace    string
	clientID     azure.ClientID
	accountFile  []string
	identityFile []string

	version bool
}

const usage = `Usage: imds-migrate inject --proxy-image=IMAGE --proxy-init-image=IMAGE [flags] [FILE | DIRECTORY | -]...
       imds-migrate uninject [flags] [FILE | DIRECTORY | -]...
       imds-migrate plan [flags]
       imds-migrate check [flags]
       imds-migrate verify [flags] [KIND/NAME]...
       imds-migrate report [flags]
       imds-migrate retire [flags]
       imds-migrate help | version

imds-migrate inject writes the changes of the admission webhook into Kubernetes manifests.
imds-migrate uninject removes them.
imds-migrate plan lists what a cluster has to change, imds-migrate check whether it is ready,
imds-migrate verify whether pods get tokens, imds-migrate report who still needs the sidecar, and
imds-migrate retire what can be removed. Each has flags of its own, which --help after it lists.

All other bytes of a manifest stay unchanged. Without a file, imds-migrate reads standard input. From
a directory it reads the .yaml, .yml and .json files, also those in subdirectories.
%s
Exit codes:
   0  success, possibly with warnings
   1  a manifest was refused, or cannot be read or written; nothing was written, or the message
      lists the files that were
   2  invalid flag or command
   3  with --diff --exit-code: there are differences
`

// parse parses the command line. For help it writes to stdout and returns pflag.ErrHelp.
func parse(args []string, stdout io.Writer) (options, error) {
	var o options
	flags := flagenv.New("imds-migrate", nil)
	flags.Arguments = true
	o.addFlags(flags)
	flags.Usage = func() { fmt.Fprintf(stdout, usage, flags.Usages()) }
	if err := flags.Parse(args, nil); err != nil || o.version {
		return o, err
	}
	switch command := flags.Arg(0); command {
	case commandInject:
	case commandUninject:
		o.uninject = true
	case commandHelp:
		flags.Usage()
		return o, pflag.ErrHelp
	case commandVersion:
		o.version = true
		return o, nil
	case commandPlan, commandCheck, commandVerify, commandReport, commandRetire:
		return o, fmt.Errorf("%s must be the first argument: imds-migrate %[1]s [flags]", command)
	case "":
		return o, errors.New("a command is required: inject, uninject, plan, check, verify, report, retire, help or version (see imds-migrate help)")
	default:
		return o, flagenv.UnknownCommand(command, commandInject, commandUninject, commandPlan, commandCheck, commandVerify, commandReport, commandRetire, commandHelp, commandVersion)
	}
	o.files = flags.Args()[1:]
	return o, o.validate()
}

func (o *options) addFlags(set *flagenv.Set) {
	flags := set.FlagSet
	o.nativeSidecar = "on"
	set.Group(inject.GroupRequired)
	set.Group("Output")
	flags.BoolVarP(&o.inPlace, "in-place", "i", false, "write the changed files in place, instead of all manifests to standard output")
	flags.BoolVar(&o.diff, "diff", false, "print the differences, for patch -p1, instead of the manifests")
	flags.BoolVar(&o.exitCode, "exit-code", false, "with --diff: exit with code 3 if there are differences")
	set.Group("Workloads")
	flags.BoolVar(&o.all, "all", false, "add "+inject.UseLabel+" and "+inject.InjectProxyAnnotation+" to all workloads that do not opt out with \"false\" (uninject: remove those that --all has added)")
	flags.StringVarP(&o.selectorText, "selector", "l", "", "with --all: only workloads whose own labels match this `selector`")
	flags.StringVarP(&o.namespace, "namespace", "n", corev1.NamespaceDefault, "`namespace` of objects without one")
	flagenv.Var(flags, &o.nativeSidecar, "native-sidecar", flagenv.OneOf("on", "off"),
		"on or off: inject the proxy as a native sidecar, which needs Kubernetes 1.29")
	flagenv.List(flags, &o.templatePaths, "template-path", parseTemplatePath,
		"`KIND.GROUP=PATH` of the pod template of a custom resource, such as Rollout.argoproj.io=spec.template; KEY[] is a list with a template in each item; repeatable")
	set.Group("Service accounts")
	flags.StringSliceVar(&o.accountFile, "service-account-file", nil, "`file` with ServiceAccounts, which is read and not written; - is standard input; repeatable")
	flagenv.Var(flags, &o.clientID, "client-id", flagenv.Optional(azure.ParseClientID), "client `ID` for service accounts that are missing or have none")
	set.Group("Identities")
	flags.StringSliceVar(&o.identityFile, "identity-file", nil, "`file` with AzureIdentity objects, or the output of az identity list --output json: pods with the proxy get the annotation "+inject.IdentitiesAnnotation+" for them; - is standard input; repeatable")
	o.config.AddFlags(set)
	set.Group("Other")
	flags.BoolVar(&o.version, "version", false, "print the version and exit")
	// The old form of the command uninject.
	flags.BoolVar(&o.uninject, "uninject", false, "")
	flags.Lookup("uninject").Hidden = true
}

func (o *options) validate() error {
	switch {
	case o.inPlace && o.diff:
		return errors.New("--in-place and --diff must not be set together")
	case o.exitCode && !o.diff:
		return errors.New("--exit-code requires --diff")
	case o.selectorText != "" && !o.all:
		return errors.New("--selector requires --all")
	case o.namespace == "":
		return flagenv.Required([]string{"namespace"}, "")
	}
	if err := o.validateStdin(); err != nil {
		return err
	}
	var err error
	if o.selector, err = labels.Parse(o.selectorText); err != nil {
		return flagenv.Errorf("selector", "%q: must be a label selector, such as app=web,tier!=batch", o.selectorText)
	}
	if o.uninject {
		return nil // uninject does not use the configuration
	}
	o.config.PostStart = o.nativeSidecar == "off"
	return o.config.Validate()
}

// validateStdin checks that standard input is read at most once, and not written.
func (o *options) validateStdin() error {
	isStdin := func(name string) bool { return name == stdinName }
	count := func(names []string) int {
		return len(slices.DeleteFunc(slices.Clone(names), func(name string) bool { return !isStdin(name) }))
	}
	forAccounts, forIdentities := count(o.accountFile), count(o.identityFile)
	forManifests := len(o.files) == 0 || slices.ContainsFunc(o.files, isStdin)
	switch {
	case o.inPlace && len(o.files) == 0:
		return errors.New("--in-place requires files")
	case o.inPlace && forManifests:
		return errors.New("--in-place requires files: standard input (-) cannot be written")
	case forAccounts > 1:
		return errors.New("--service-account-file must not be - twice: standard input can be read once")
	case forAccounts > 0 && forManifests:
		return errors.New("--service-account-file must not be - without files: the manifests are read from standard input")
	case forIdentities > 1:
		return errors.New("--identity-file must not be - twice: standard input can be read once")
	case forIdentities > 0 && forAccounts > 0:
		return errors.New("--identity-file and --service-account-file must not both be -: standard input can be read once")
	case forIdentities > 0 && forManifests:
		return errors.New("--identity-file must not be - without files: the manifests are read from standard input")
	}
	return nil
}
