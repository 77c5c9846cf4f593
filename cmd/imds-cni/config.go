package main

import (
	"fmt"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/flagenv"
	"imds-oidc-proxy/internal/logging"
)

// The commands.
const (
	commandInstall   = "install"
	commandUninstall = "uninstall"
)

// options is the configuration of one run.
type options struct {
	uninstall bool

	binDir, confDir    string
	exempt             exemptUIDs
	taint, node        string
	removeBinary, stay bool
	healthAddress      string
	log                logging.Config

	version bool
	usage   string
}

const usage = `Usage: imds-cni install [flags]
       imds-cni uninstall [flags]

imds-cni install copies this program to the node's CNI plugins, adds it to the list of the container
runtime, and keeps it there. imds-cni uninstall removes it from the list. As a CNI plugin, imds-cni
redirects the metadata requests of the pods that ask for it to the proxy in the pod.

Each flag except --version has an environment variable: --bin-dir has IMDS_CNI_BIN_DIR.
%s
Exit codes:
  0  success
  1  another failure
  2  invalid flag, environment variable or command
  3  another program removes the plugin from the list again and again
`

// variable returns the environment variable of a flag.
var variable = flagenv.Prefix("IMDS_CNI_")

// parse parses the command line, and the variables of flags that are not given.
func parse(args []string, getenv func(string) string) (options, error) {
	var o options
	flags := flagenv.New(name, variable)
	flags.Arguments = true
	o.addFlags(flags)
	o.usage = fmt.Sprintf(usage, flags.Usages())
	if err := flags.Parse(args, getenv); err != nil || o.version {
		return o, err
	}
	switch command := flags.Arg(0); {
	case flags.NArg() > 1:
		return o, fmt.Errorf("unexpected argument %q (see %s --help)", flags.Arg(1), name)
	case command == commandInstall:
	case command == commandUninstall:
		o.uninstall = true
	case command == "":
		return o, fmt.Errorf("a command is required: %s or %s (see %s --help)", commandInstall, commandUninstall, name)
	default:
		return o, flagenv.UnknownCommand(command, commandInstall, commandUninstall)
	}
	return o, flags.Named(o.validate())
}

func (o *options) addFlags(set *flagenv.Set) {
	flags := set.FlagSet
	o.binDir, o.confDir, o.healthAddress = "/opt/cni/bin", "/etc/cni/net.d", "127.0.0.1:18501"
	o.exempt = exemptUIDs{&[]uint32{azure.ProxyID}}
	set.Group("Node")
	flagenv.Var(flags, &o.binDir, "bin-dir", parseDir, "`directory` of the container runtime's CNI plugins")
	flagenv.Var(flags, &o.confDir, "conf-dir", parseDir, "`directory` of the container runtime's CNI configuration; the plugin is added to its first list")
	set.Group("Install")
	flagenv.Var(flags, &o.exempt, "exempt-uids", parseExemptUIDs,
		"user `IDs` that pods may exempt from the redirect, as the proxy's: a list, none (pods must be sealed) or any")
	flagenv.Var(flags, &o.taint, "remove-taint", flagenv.Optional(parseTaint),
		"`key` of a taint to remove from --node as soon as the plugin is installed; needs a service account that may get and patch nodes; empty means none")
	flags.StringVar(&o.node, "node", "", "`name` of this node (required with --remove-taint)")
	set.Group("Uninstall")
	flags.BoolVar(&o.removeBinary, "remove-binary", false, "also remove the program from --bin-dir, 10s later; on nodes with CRI-O only when no pod of before is left")
	flags.BoolVar(&o.stay, "stay", false, "keep running afterwards, and be ready, as the pods of a DaemonSet must")
	set.Group("Health")
	flagenv.Var(flags, &o.healthAddress, "health-address", flagenv.Optional(azure.ParseAddress), "`address` of /livez and /readyz; empty means none")
	set.Group("Log")
	o.log.AddFlags(flags)
	set.Group("Other")
	flags.BoolVar(&o.version, "version", false, "print the version and exit")
}

func (o *options) validate() error {
	for flag, set := range map[string]bool{"remove-binary": o.removeBinary, "stay": o.stay} {
		if set && !o.uninstall {
			return flagenv.Errorf(flag, "is only for %s", commandUninstall)
		}
	}
	if o.taint != "" && o.uninstall {
		return flagenv.Errorf("remove-taint", "is only for %s", commandInstall)
	}
	if o.taint != "" && o.node == "" {
		return flagenv.Required([]string{"node"}, " with --remove-taint")
	}
	if o.binDir == o.confDir {
		return &flagenv.Error{Flags: []string{"bin-dir", "conf-dir"}, Reason: "must be different directories"}
	}
	return nil
}

func parseDir(s string) (string, error) {
	if !filepath.IsAbs(s) || filepath.Clean(s) != s || s == "/" {
		return "", azure.Invalid(s, "must be the absolute path of a directory, such as /opt/cni/bin")
	}
	return s, nil
}

// taintKey is the pattern of the key of a taint.
var taintKey = regexp.MustCompile(`^([a-z0-9][a-z0-9.-]*/)?[A-Za-z0-9][A-Za-z0-9._-]*$`)

func parseTaint(s string) (string, error) {
	if !taintKey.MatchString(s) {
		return "", azure.Invalid(s, "must be the key of a taint, such as example.test/not-ready, without value and effect")
	}
	return s, nil
}

// exemptUIDs is the value of --exempt-uids. Nil means any.
type exemptUIDs struct{ list *[]uint32 }

// The values of --exempt-uids that are not a list.
const (
	exemptAny  = "any"
	exemptNone = "none"
)

// String returns the value in the format of parseExemptUIDs.
func (e exemptUIDs) String() string {
	switch {
	case e.list == nil:
		return exemptAny
	case len(*e.list) == 0:
		return exemptNone
	}
	var ids []string
	for _, id := range *e.list {
		ids = append(ids, strconv.FormatUint(uint64(id), 10))
	}
	return strings.Join(ids, ",")
}

func parseExemptUIDs(s string) (exemptUIDs, error) {
	switch s {
	case exemptAny:
		return exemptUIDs{}, nil
	case exemptNone:
		return exemptUIDs{&[]uint32{}}, nil
	}
	ids, err := flagenv.ParseList(s, func(s string) (uint32, error) {
		id, err := strconv.ParseUint(s, 10, 31)
		if err != nil || id == 0 {
			return 0, azure.Invalid(s, "must be a user ID other than 0, or the whole value none or any")
		}
		return uint32(id), nil
	})
	if err == nil && len(ids) == 0 {
		err = azure.Invalid(s, "must be a list of user IDs, none or any")
	}
	return exemptUIDs{&ids}, err
}
