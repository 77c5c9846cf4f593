package main

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"imds-oidc-proxy/internal/netrules"
)

// Defaults, as azure-workload-identity's proxy-init has them.
const (
	defaultMetadataIP   = "169.254.169.254"
	defaultMetadataPort = 80
	defaultProxyPort    = 8000
	defaultUID          = 1501
	defaultGID          = 1501
	// terminationLog is the kubelet's default terminationMessagePath.
	terminationLog = "/dev/termination-log"
)

// options is the whole configuration.
type options struct {
	config         netrules.Config
	mode           netrules.Mode
	verify, force  bool
	terminationLog string
	level          zapcore.Level
	console        bool

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

// twins are the environment variables that stand for a flag, which wins. The
// first four are those of azure-workload-identity's webhook and script.
var twins = [...]struct{ variable, flag string }{
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
	{"PROXY_TERMINATION_LOG", "termination-log"},
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
	define(fs, &o.config.ProxyPort, "proxy-port", defaultProxyPort, parsePort, "port on 127.0.0.1 where the proxy listens")
	define(fs, ip, "metadata-ip", netip.MustParseAddr(defaultMetadataIP), netip.ParseAddr, "address of the metadata service")
	define(fs, port, "metadata-port", defaultMetadataPort, parsePort, "TCP port of the metadata service")
	define(fs, &o.config.UID, "proxy-uid", defaultUID, parseID, "the proxy's user ID: with the group ID, exempt from the redirect unless sealed")
	define(fs, &o.config.GID, "proxy-gid", defaultGID, parseID, "the proxy's group ID")
	fs.BoolVar(&o.config.Sealed, "seal", false, "exempt nobody: nothing in the pod reaches the metadata address")
	define(fs, &o.config.Deny, "deny", nil, parseTargets, "reject these destinations as well: CIDR[:TCP port], separated by commas (168.63.129.16:80,168.63.129.16:32526)")
	define(fs, &o.mode, "iptables-mode", netrules.ModeAuto, netrules.ParseMode, "iptables backend: auto, nft or legacy")
	fs.BoolVar(&o.verify, "verify", true, "prove the redirect by a connection to the metadata address")
	fs.BoolVar(&o.force, "force", false, "go on in what looks like a node's own network namespace")
	fs.StringVar(&o.terminationLog, "termination-log", terminationLog, "file for the cause of a failure, written only where it exists")
	define(fs, &o.level, "log-level", zapcore.InfoLevel, parseLevel, "debug, info, warn or error")
	define(fs, &o.console, "log-format", false, parseFormat, "json or console")
	fs.BoolVar(&o.dryRun, "dry-run", false, "print the rules as iptables-restore --noflush takes them, and change nothing")
	fs.BoolVar(&o.check, "check", false, "exit 0 only if the rules are all there, and first; change nothing")
	fs.BoolVar(&o.cleanup, "cleanup", false, "remove the redirect, and nothing else")
	fs.BoolVar(&o.version, "version", false, "print the version")
}

func readEnvironment(fs *pflag.FlagSet, getenv func(string) string) error {
	for _, t := range twins {
		value := getenv(t.variable)
		if value == "" || fs.Changed(t.flag) {
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
	b.WriteString("\n" + exitCodesUsageText)
	return b.String()
}

// flagValue is a pflag.Value of any type that a function can parse.
type flagValue[T any] struct {
	target *T
	text   string
	parse  func(string) (T, error)
}

func define[T any](fs *pflag.FlagSet, target *T, name string, value T, parse func(string) (T, error), help string) {
	*target = value
	fs.Var(&flagValue[T]{target, fmt.Sprint(value), parse}, name, help)
}

func (v *flagValue[T]) String() string { return v.text }
func (v *flagValue[T]) Type() string   { return "value" }

func (v *flagValue[T]) Set(s string) error {
	parsed, err := v.parse(s)
	if err != nil {
		return err
	}
	*v.target, v.text = parsed, s
	return nil
}

func parsePort(s string) (uint16, error) {
	p, err := strconv.ParseUint(s, 10, 16)
	if err != nil || p == 0 {
		return 0, errors.New("need a port between 1 and 65535")
	}
	return uint16(p), nil
}

func parseID(s string) (uint32, error) {
	id, err := strconv.ParseUint(s, 10, 31)
	if err != nil {
		return 0, errors.New("need a numeric ID")
	}
	return uint32(id), nil
}

func parseTargets(s string) ([]netrules.Target, error) {
	var targets []netrules.Target
	for item := range strings.SplitSeq(s, ",") {
		t, err := netrules.ParseTarget(strings.TrimSpace(item))
		if err != nil {
			return nil, err
		}
		targets = append(targets, t)
	}
	return targets, nil
}

// parseLevel takes the names that azure-workload-identity's proxy takes.
func parseLevel(s string) (zapcore.Level, error) {
	switch s {
	case "", "info":
		return zapcore.InfoLevel, nil
	case "debug", "trace", "all":
		return zapcore.DebugLevel, nil
	case "warn", "warning":
		return zapcore.WarnLevel, nil
	case "error":
		return zapcore.ErrorLevel, nil
	}
	return 0, errors.New("need one of info, debug, trace, all, warn, error")
}

func parseFormat(s string) (console bool, err error) {
	switch s {
	case "json":
		return false, nil
	case "console":
		return true, nil
	}
	return false, errors.New("need json or console")
}

func newLogger(o options, w io.Writer) *zap.Logger {
	encoding := zap.NewProductionEncoderConfig()
	encoding.TimeKey = "time"
	encoding.EncodeTime = zapcore.RFC3339NanoTimeEncoder
	encoder := zapcore.NewJSONEncoder(encoding)
	if o.console {
		encoder = zapcore.NewConsoleEncoder(encoding)
	}
	return zap.New(zapcore.NewCore(encoder, zapcore.Lock(zapcore.AddSync(w)), o.level))
}
