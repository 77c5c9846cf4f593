package main

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"

	"github.com/spf13/pflag"

	"imds-oidc-proxy/internal/logging"
	"imds-oidc-proxy/internal/netrules"
)

// defaultMetadataIP is where Azure's instance metadata service is.
func defaultMetadataIP() netip.Addr { return netip.AddrFrom4([4]byte{169, 254, 169, 254}) }

// Defaults, as azure-workload-identity's proxy-init has them.
const (
	defaultMetadataPort = 80
	defaultProxyPort    = 8000
	defaultUID          = 1501
	defaultGID          = 1501
	// terminationLog is the kubelet's default terminationMessagePath.
	terminationLog = "/dev/termination-log"
	// terminationLogVar names another.
	terminationLogVar = "PROXY_TERMINATION_LOG"
)

// options is the whole configuration.
type options struct {
	config         netrules.Config
	mode           netrules.Mode
	verify, force  bool
	terminationLog string
	log            logging.Config

	// At most one of these, else the redirect is installed.
	dryRun, check, cleanup, version bool

	usage string
}

// failureMessage is the log's message for a run that failed.
func (o options) failureMessage() string {
	switch {
	case o.check:
		return "redirect not in place"
	case o.cleanup:
		return "redirect not removed"
	}
	return "redirect not installed"
}

// twins are the environment variables that stand for a flag, which wins. They are
// read in this order; parse has read the first before. The next four are those of
// azure-workload-identity's webhook and script.
var twins = [...]struct{ variable, flag string }{
	{terminationLogVar, "termination-log"},
	{"PROXY_PORT", "proxy-port"},
	{"METADATA_IP", "metadata-ip"},
	{"METADATA_PORT", "metadata-port"},
	{"PROXY_UID", "proxy-uid"},
	{"PROXY_GID", "proxy-gid"},
	{"PROXY_SEAL", "seal"},
	{"PROXY_DENY", "deny"},
	{"PROXY_IPTABLES_MODE", "iptables-mode"},
	{"PROXY_VERIFY", "verify"},
	{"PROXY_FORCE", "force"},
	{"PROXY_LOG_LEVEL", "log-level"},
	{"PROXY_LOG_FORMAT", "log-format"},
}

// parse reads flags, then the environment for what no flag says.
func parse(args []string, getenv func(string) string) (options, error) {
	o := options{terminationLog: terminationLog}
	var ip netip.Addr
	var port uint16
	fs := pflag.NewFlagSet("proxy-init", pflag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.SortFlags = false
	o.defineFlags(fs, &ip, &port)
	o.usage = usage(fs)
	// Where errors are reported is known before there are any; its flag still wins.
	if file := getenv(terminationLogVar); file != "" {
		o.terminationLog = file
	}
	if err := fs.Parse(args); err != nil {
		return o, err
	}
	if fs.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q: everything is a flag", fs.Arg(0))
	}
	if err := readEnvironment(fs, getenv); err != nil {
		return o, err
	}
	o.config.Metadata = netip.AddrPortFrom(ip, port)
	return o, o.validate()
}

func (o *options) defineFlags(fs *pflag.FlagSet, ip *netip.Addr, port *uint16) {
	define(fs, &o.config.ProxyPort, "proxy-port", defaultProxyPort, parsePort, "`port` on 127.0.0.1 where the proxy listens")
	define(fs, ip, "metadata-ip", defaultMetadataIP(), parseAddr, "`address` of the metadata service")
	define(fs, port, "metadata-port", defaultMetadataPort, parsePort, "TCP `port` of the metadata service")
	define(fs, &o.config.UID, "proxy-uid", defaultUID, parseID, "the proxy's user `ID`: exempt, together with the group ID, unless sealed")
	define(fs, &o.config.GID, "proxy-gid", defaultGID, parseID, "the proxy's group `ID`")
	defineBool(fs, &o.config.Sealed, "seal", false, "exempt nobody: nothing in the pod reaches the metadata address")
	define(fs, &o.config.Deny, "deny", nil, o.moreTargets, "reject these destinations too: `CIDR[:TCP port]`,… (168.63.129.16:80,168.63.129.16:32526)")
	define(fs, &o.mode, "iptables-mode", netrules.ModeAuto, netrules.ParseMode, "iptables `backend`: auto, nft or legacy")
	defineBool(fs, &o.verify, "verify", true, "prove the redirect by a connection to the metadata address")
	defineBool(fs, &o.force, "force", false, "go on in what looks like a node's own network namespace")
	fs.StringVar(&o.terminationLog, "termination-log", terminationLog, "`file` for the cause of a failure, written only where it exists")
	o.log.AddFlags(fs)
	defineBool(fs, &o.dryRun, "dry-run", false, "print the rules as iptables-restore --noflush takes them, and change nothing")
	defineBool(fs, &o.check, "check", false, "exit 0 only if the rules are all there, and first, and the other backend hides none; change nothing")
	defineBool(fs, &o.cleanup, "cleanup", false, "remove the redirect, and nothing else")
	defineBool(fs, &o.version, "version", false, "print the version")
}

// moreTargets adds to the list: a second --deny must not undo the first.
func (o *options) moreTargets(s string) ([]netrules.Target, error) {
	targets, err := parseTargets(s)
	return append(o.config.Deny, targets...), err
}

// serviceLink reports whether a variable is one that Kubernetes makes: Services by the
// names of proxy and metadata give PROXY_PORT=tcp://10.0.0.7:80 and METADATA_PORT=… to
// the pods of their namespace.
func serviceLink(value string) bool {
	return strings.HasPrefix(value, "tcp://") || strings.HasPrefix(value, "udp://") || strings.HasPrefix(value, "sctp://")
}

func readEnvironment(fs *pflag.FlagSet, getenv func(string) string) error {
	for _, t := range twins {
		value := getenv(t.variable)
		if value == "" || fs.Changed(t.flag) || serviceLink(value) {
			continue
		}
		if err := fs.Lookup(t.flag).Value.Set(value); err != nil {
			return fmt.Errorf("%s=%q: %w", t.variable, value, err)
		}
	}
	return nil
}

// validate names the flags that netrules' errors are about.
func (o options) validate() error {
	actions := 0
	for _, chosen := range []bool{o.dryRun, o.check, o.cleanup} {
		if chosen {
			actions++
		}
	}
	if actions > 1 {
		return errors.New("--dry-run, --check and --cleanup exclude each other")
	}
	err := o.config.Validate()
	for _, f := range []struct {
		err  error
		flag string
	}{
		{netrules.ErrMetadataAddress, "--metadata-ip (METADATA_IP)"},
		{netrules.ErrExemptRoot, "--proxy-uid, --proxy-gid (PROXY_UID, PROXY_GID)"},
		{netrules.ErrDenyTooWide, "--deny (PROXY_DENY)"},
		{netrules.ErrDenyMetadata, "--deny (PROXY_DENY)"},
	} {
		if errors.Is(err, f.err) {
			return fmt.Errorf("%s: %w", f.flag, err)
		}
	}
	return err
}

func usage(fs *pflag.FlagSet) string {
	var b strings.Builder
	b.WriteString("proxy-init redirects the pod's requests for the instance metadata service to the proxy.\n\nUsage: proxy-init [flags]\n\n")
	b.WriteString(fs.FlagUsages())
	b.WriteString("\nEnvironment, for what no flag says:\n")
	for _, t := range twins {
		fmt.Fprintf(&b, "  %-22s --%s\n", t.variable, t.flag)
	}
	b.WriteString("\n" + exitHelp())
	return b.String()
}
