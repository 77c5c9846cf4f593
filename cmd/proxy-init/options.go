package main

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/flagenv"
	"imds-oidc-proxy/internal/logging"
	"imds-oidc-proxy/internal/netrules"
	"imds-oidc-proxy/internal/termlog"
)

// options is the configuration of one run.
type options struct {
	config         netrules.Config
	metadataIP     netip.Addr // with metadataPort, config.Metadata
	metadataPort   uint16
	backend        netrules.Backend
	iptablesMode   netrules.Backend // the former name of backend; empty: not set
	verify, force  bool
	terminationLog string
	log            logging.Config

	// At most one of these is true. If none is, the redirect is installed.
	dryRun, check, prove, cleanup, version bool

	usage string
}

// failureMessage returns the log message of a failed run.
func (o options) failureMessage() string {
	switch {
	case o.check, o.prove:
		return "redirect not in place"
	case o.cleanup:
		return "redirect not removed"
	}
	return "redirect not installed"
}

// variable returns the environment variable of a flag. METADATA_IP and METADATA_PORT have the
// names of azure-workload-identity's script. The flags that choose an action have no variable.
func variable(flag string) string {
	if flag == "metadata-ip" || flag == "metadata-port" {
		return flagenv.Prefix("")(flag)
	}
	return flagenv.Prefix("PROXY_", "dry-run", "check", "validate", "cleanup")(strings.TrimPrefix(flag, "proxy-"))
}

// parse parses the flags, and the variables of flags that are not given.
func parse(args []string, getenv func(string) string) (options, error) {
	o := options{terminationLog: termlog.Path}
	flags := flagenv.New("proxy-init", variable)
	o.addFlags(flags)
	o.usage = usage(flags)
	// Read first, since errors of the other settings are written to this file. The flag
	// takes precedence.
	if file := getenv(variable("termination-log")); file != "" {
		o.terminationLog = file
	}
	if err := flags.Parse(args, getenv); err != nil {
		return o, err
	}
	o.config.Metadata = netip.AddrPortFrom(o.metadataIP, o.metadataPort)
	if err := o.applyFormerName(flags.Changed("backend")); err != nil {
		return o, flags.Named(err)
	}
	return o, flags.Named(o.validate())
}

// applyFormerName uses the value of --iptables-mode, which --backend was called before it had
// the native backend.
func (o *options) applyFormerName(backendSet bool) error {
	switch {
	case o.iptablesMode == "":
		return nil
	case backendSet && o.backend != o.iptablesMode:
		return &flagenv.Error{Flags: []string{"backend", "iptables-mode"}, Reason: "are two names of one setting: set only the first"}
	}
	o.backend = o.iptablesMode
	return nil
}

func (o *options) addFlags(set *flagenv.Set) {
	flags := set.FlagSet
	o.config.ProxyPort, o.config.UID, o.config.GID = azure.ProxyPort, azure.ProxyID, azure.ProxyID
	o.metadataIP, o.metadataPort, o.backend = netip.MustParseAddr(azure.MetadataIP), azure.MetadataPort, netrules.Auto
	set.Group("Redirect")
	flagenv.Var(flags, &o.config.ProxyPort, "proxy-port", azure.ParsePort, "`port` on 127.0.0.1 where the proxy listens")
	flagenv.Var(flags, &o.metadataIP, "metadata-ip", parseAddr, "`address` of the metadata service")
	flagenv.Var(flags, &o.metadataPort, "metadata-port", azure.ParsePort, "TCP `port` of the metadata service")
	flagenv.Var(flags, &o.config.UID, "proxy-uid", parseID, "user `ID` of the proxy; processes with this user and group ID are exempt from the redirect, unless --seal is set, and only they may answer at --proxy-port")
	flagenv.Var(flags, &o.config.GID, "proxy-gid", parseID, "group `ID` of the proxy")
	flags.BoolVar(&o.config.Sealed, "seal", false, "exempt no process: nothing in the pod reaches the metadata address")
	flagenv.List(flags, &o.config.Deny, "deny", netrules.ParseTarget, "reject further destinations: `CIDR[:TCP port]`,… (168.63.129.16:80,168.63.129.16:32526)")
	set.Group("Installation")
	flagenv.Var(flags, &o.backend, "backend", netrules.ParseBackend, "`backend` that installs the rules: native (nftables, without a program), nft or legacy (iptables), or auto, which is native if the kernel supports it, else nft, else legacy")
	flagenv.Var(flags, &o.iptablesMode, "iptables-mode", netrules.ParseBackend, "`backend`: the former name of --backend, which still works (deprecated)")
	flags.BoolVar(&o.verify, "verify", true, "prove the redirect by a connection to the metadata address; --verify=false skips the connection, and still fails if another user than the proxy's listens at --proxy-port")
	flags.BoolVar(&o.force, "force", false, "continue in a network namespace that seems to be a node's own")
	set.Group("Log")
	flags.StringVar(&o.terminationLog, "termination-log", termlog.Path, "`file` for the cause of a failure; proxy-init does not create it")
	o.log.AddFlags(flags)
	set.Group("Instead of installing the redirect (at most one)")
	flags.BoolVar(&o.dryRun, "dry-run", false, "print the rules as input for nft -f, or with --backend=nft or legacy as input for iptables-restore --noflush, and change nothing")
	flags.BoolVar(&o.check, "check", false, "exit 0 only if all rules are in place (of iptables: and first), no other backend has any, and no other user than the proxy's listens at --proxy-port; change nothing")
	flags.BoolVar(&o.prove, "validate", false, "exit 0 only if a connection proves the redirect and the port guard that the CNI plugin has installed; needs no privilege, changes nothing, and must not run as the proxy's user")
	flags.BoolVar(&o.cleanup, "cleanup", false, "remove the redirect, and nothing else")
	flags.BoolVar(&o.version, "version", false, "print the version and exit")
}

func parseAddr(s string) (netip.Addr, error) {
	addr, err := netip.ParseAddr(s)
	if err != nil {
		return addr, azure.Invalid(s, "must be an IPv4 address")
	}
	return addr, nil
}

func parseID(s string) (uint32, error) {
	id, err := strconv.ParseUint(s, 10, 31)
	if err != nil {
		return 0, azure.Invalid(s, "must be a numeric ID")
	}
	return uint32(id), nil
}

// validate returns errors that name the flags.
func (o *options) validate() error {
	var actions []string
	for _, a := range []struct {
		chosen bool
		flag   string
	}{{o.dryRun, "dry-run"}, {o.check, "check"}, {o.prove, "validate"}, {o.cleanup, "cleanup"}} {
		if a.chosen {
			actions = append(actions, a.flag)
		}
	}
	if len(actions) > 1 {
		return &flagenv.Error{Flags: actions, Reason: "must not be set together"}
	}
	err := o.config.Validate()
	for _, f := range []struct {
		err   error
		flags []string
	}{
		{netrules.ErrMetadataAddress, []string{"metadata-ip"}},
		{netrules.ErrExemptRoot, []string{"proxy-uid", "proxy-gid"}},
		{netrules.ErrDenyTooWide, []string{"deny"}},
		{netrules.ErrDenyTooMany, []string{"deny"}},
		{netrules.ErrDenyMetadata, []string{"deny"}},
	} {
		if errors.Is(err, f.err) {
			return &flagenv.Error{Flags: f.flags, Reason: err.Error()}
		}
	}
	return err
}

func usage(flags *flagenv.Set) string {
	var b strings.Builder
	b.WriteString("Usage: proxy-init [flags]\n\n" +
		"proxy-init redirects the pod's requests to the instance metadata service (IMDS) to the proxy.\n")
	b.WriteString(flags.Usages())
	b.WriteString("\nEnvironment variables, for flags that are not given:\n")
	flags.VisitAll(func(f *pflag.Flag) {
		if v := flags.Variable(f.Name); v != "" {
			fmt.Fprintf(&b, "  %-22s --%s\n", v, f.Name)
		}
	})
	b.WriteString("\n" + exitHelp())
	return b.String()
}
