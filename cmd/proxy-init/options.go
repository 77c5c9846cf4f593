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
)

// terminationLog is the kubelet's default terminationMessagePath.
const terminationLog = "/dev/termination-log"

// options is the whole configuration.
type options struct {
	config         netrules.Config
	metadataIP     netip.Addr // with metadataPort, config.Metadata
	metadataPort   uint16
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

// variable names the environment variable of a flag. METADATA_IP and METADATA_PORT are
// those of azure-workload-identity's script. The flags that choose what one run does have
// none.
func variable(flag string) string {
	if flag == "metadata-ip" || flag == "metadata-port" {
		return flagenv.Prefix("")(flag)
	}
	return flagenv.Prefix("PROXY_", "dry-run", "check", "cleanup")(strings.TrimPrefix(flag, "proxy-"))
}

// parse reads the flags, and the environment for those that are not given.
func parse(args []string, getenv func(string) string) (options, error) {
	o := options{terminationLog: terminationLog}
	flags := flagenv.New("proxy-init", variable)
	o.addFlags(flags.FlagSet)
	o.usage = usage(flags)
	// Where errors are reported must be known before there is one. The flag still wins.
	if file := getenv(variable("termination-log")); file != "" {
		o.terminationLog = file
	}
	if err := flags.Parse(args, getenv); err != nil {
		return o, err
	}
	o.config.Metadata = netip.AddrPortFrom(o.metadataIP, o.metadataPort)
	return o, flags.Named(o.validate())
}

func (o *options) addFlags(flags *pflag.FlagSet) {
	o.config.ProxyPort, o.config.UID, o.config.GID = azure.ProxyPort, azure.ProxyID, azure.ProxyID
	o.metadataIP, o.metadataPort, o.mode = netip.MustParseAddr(azure.MetadataIP), azure.MetadataPort, netrules.ModeAuto
	flagenv.Var(flags, &o.config.ProxyPort, "proxy-port", azure.ParsePort, "`port` on 127.0.0.1 where the proxy listens")
	flagenv.Var(flags, &o.metadataIP, "metadata-ip", parseAddr, "`address` of the metadata service")
	flagenv.Var(flags, &o.metadataPort, "metadata-port", azure.ParsePort, "TCP `port` of the metadata service")
	flagenv.Var(flags, &o.config.UID, "proxy-uid", parseID, "the proxy's user `ID`: exempt, together with the group ID, unless sealed")
	flagenv.Var(flags, &o.config.GID, "proxy-gid", parseID, "the proxy's group `ID`")
	flags.BoolVar(&o.config.Sealed, "seal", false, "exempt nobody: nothing in the pod reaches the metadata address")
	flagenv.List(flags, &o.config.Deny, "deny", netrules.ParseTarget, "reject these destinations too: `CIDR[:TCP port]`,… (168.63.129.16:80,168.63.129.16:32526)")
	flagenv.Var(flags, &o.mode, "iptables-mode", netrules.ParseMode, "iptables `backend`: auto, nft or legacy")
	flags.BoolVar(&o.verify, "verify", true, "prove the redirect by a connection to the metadata address; false still checks who listens at --proxy-port")
	flags.BoolVar(&o.force, "force", false, "go on in what looks like a node's own network namespace")
	flags.StringVar(&o.terminationLog, "termination-log", terminationLog, "`file` for the cause of a failure, written only where it exists")
	o.log.AddFlags(flags)
	flags.BoolVar(&o.dryRun, "dry-run", false, "print the rules as iptables-restore --noflush takes them, and change nothing")
	flags.BoolVar(&o.check, "check", false, "exit 0 only if the rules are all there, and first, the other backend hides none, and no other user than the proxy's listens at --proxy-port; change nothing")
	flags.BoolVar(&o.cleanup, "cleanup", false, "remove the redirect, and nothing else")
	flags.BoolVar(&o.version, "version", false, "print the version")
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

// validate names the flags that netrules' errors are about.
func (o *options) validate() error {
	var actions []string
	for _, a := range []struct {
		chosen bool
		flag   string
	}{{o.dryRun, "dry-run"}, {o.check, "check"}, {o.cleanup, "cleanup"}} {
		if a.chosen {
			actions = append(actions, a.flag)
		}
	}
	if len(actions) > 1 {
		return &flagenv.Error{Flags: actions, Reason: "exclude each other"}
	}
	err := o.config.Validate()
	for _, f := range []struct {
		err   error
		flags []string
	}{
		{netrules.ErrMetadataAddress, []string{"metadata-ip"}},
		{netrules.ErrExemptRoot, []string{"proxy-uid", "proxy-gid"}},
		{netrules.ErrDenyTooWide, []string{"deny"}},
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
	b.WriteString("Usage: proxy-init [flags]\n\nproxy-init redirects the pod's requests for the instance metadata service to the proxy.\n\nFlags:\n\n")
	b.WriteString(flags.FlagUsages())
	b.WriteString("\nEnvironment, for flags that are not given:\n\n")
	flags.VisitAll(func(f *pflag.Flag) {
		if v := flags.Variable(f.Name); v != "" {
			fmt.Fprintf(&b, "  %-22s --%s\n", v, f.Name)
		}
	})
	b.WriteString("\n" + exitHelp())
	return b.String()
}
