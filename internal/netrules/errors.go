package netrules

import (
	"fmt"
	"os"
	"regexp"
	"strings"
)

// Kind says what stands in the way of the redirect, and so who can mend it.
type Kind int

// The kinds of failure. The zero value is a failure of no known kind.
const (
	// MissingCapability: the process may not change the namespace's rules.
	MissingCapability Kind = iota + 1
	// NoBinary: there is no iptables for the backend asked for.
	NoBinary
	// LockHeld: another process holds the xtables lock.
	LockHeld
	// MissingModule: the kernel lacks a match, a target or a table.
	MissingModule
	// WrongBackend: the backend's tables cannot be used, or the other one's
	// would have to be seen and cannot.
	WrongBackend
	// RulesDiffer: the namespace's rules are not the planned ones.
	RulesDiffer
	// NotRedirected: the rules are in place, and a connection went elsewhere.
	NotRedirected
	// HostNetwork: this is the network namespace of a node.
	HostNetwork
	// TimedOut: iptables did not end in time.
	TimedOut
)

// Error is a failure to install, check, prove or remove the redirect.
type Error struct {
	// Kind is zero where the cause is not known.
	Kind Kind

	// Cause is one line: what was being done, and what went wrong.
	Cause string

	// Remedy is one line: what to change. Empty: not known.
	Remedy string
}

func (e *Error) Error() string { return e.Cause }

// oneLine joins the lines that iptables printed, without its advice to read
// --help, which is of no use in a container's log.
func oneLine(s string) string {
	var kept []string
	for line := range strings.Lines(s) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "Try `") || strings.HasPrefix(line, "Perhaps iptables") {
			continue
		}
		kept = append(kept, line)
	}
	return strings.Join(kept, "; ")
}

// modules names the kernel module behind each extension that the rules use.
var modules = map[string]string{
	"owner":     "xt_owner",
	"conntrack": "xt_conntrack",
	"REDIRECT":  "xt_REDIRECT (nft_redir on nft)",
	"REJECT":    "ipt_REJECT (nft_reject_ipv4 on nft)",
	"tcp":       "xt_tcpudp",
}

var (
	missingExtension = regexp.MustCompile(`Extension (\w+) revision \d+ not supported`)
	missingTable     = regexp.MustCompile("table [`']?(\\w+)'?.*Table does not exist")
	unloadedTable    = regexp.MustCompile(`unable to initialize table '(\w+)'`)
)

// classify turns what iptables said while doing step into an Error.
//
// Exit codes alone do not tell: nft exits with 4 and legacy with 3 for want of
// a capability, legacy with 4 for a lock, and iptables-restore often with 1 or 2
// whatever the cause.
func classify(step string, mode Mode, exitCode int, said string) *Error {
	said = oneLine(said)
	e := &Error{Cause: fmt.Sprintf("%s: iptables (%s) exited with %d: %s", step, mode, exitCode, said)}
	switch {
	case strings.Contains(said, "xtables lock"), strings.Contains(said, "Can't lock "):
		e.Kind = LockHeld
		e.Remedy = "another process holds the xtables lock: find it, or restart this container when it is done"
	case strings.Contains(said, "can't open lock file"):
		e.Kind = LockHeld
		e.Remedy = "the lock file cannot be made: mount an emptyDir at /run, or set XTABLES_LOCKFILE to a file that exists"
	case strings.Contains(said, "Permission denied"), strings.Contains(said, "Operation not permitted"),
		unloadedTable.MatchString(said) && missingCapability(mode) != "":
		e.Kind = MissingCapability
		e.Remedy = capabilityRemedy(mode)
	case strings.Contains(said, "is incompatible, use 'nft' tool"):
		e.Kind = WrongBackend
		e.Remedy = "rules made by the nft tool stand in iptables' own tables: use --iptables-mode=legacy, or give those rules a table of their own"
	default:
		if module := missingModule(said); module != "" {
			e.Kind = MissingModule
			e.Remedy = "load the kernel module " + module + " on the node, or try --iptables-mode=" + string(mode.other())
		}
	}
	return e
}

// missingModule names the kernel module that iptables missed. Empty: that was
// not what it said.
func missingModule(said string) string {
	if m := missingExtension.FindStringSubmatch(said); m != nil {
		if module, ok := modules[m[1]]; ok {
			return module
		}
		return "xt_" + m[1]
	}
	if m := missingTable.FindStringSubmatch(said); m != nil {
		return "iptable_" + m[1] + " (nf_nat for nat)"
	}
	if m := unloadedTable.FindStringSubmatch(said); m != nil {
		return "iptable_" + m[1]
	}
	for _, sign := range []string{"No chain/target/match by that name", "No such file or directory", "not supported", "Invalid argument"} {
		if strings.Contains(said, sign) {
			return unloaded()
		}
	}
	return ""
}

// unloaded names the modules that the kernel does not list, for the cases where
// iptables says only that something is missing.
func unloaded() string {
	known := procLines("/proc/net/ip_tables_matches") + procLines("/proc/net/ip_tables_targets")
	var missing []string
	for _, extension := range []string{"owner", "conntrack", "REDIRECT", "REJECT", "tcp"} {
		if !strings.Contains(known, "\n"+extension+"\n") {
			missing = append(missing, modules[extension])
		}
	}
	if len(missing) == 0 || known == "" {
		return "xt_owner, xt_REDIRECT, nft_redir or nf_nat (it does not say which)"
	}
	return strings.Join(missing, ", ")
}

// procLines is the file's text, each line between newlines. Empty: unreadable.
func procLines(path string) string {
	b, err := os.ReadFile(path)
	if err != nil || len(b) == 0 {
		return ""
	}
	return "\n" + strings.ReplaceAll(string(b), "\n", "\n\n")
}

func capabilityRemedy(mode Mode) string {
	if mode == ModeLegacy {
		return "add NET_ADMIN and NET_RAW to the init container's securityContext.capabilities and run it as root; iptables-legacy needs both"
	}
	return "add NET_ADMIN to the init container's securityContext.capabilities and run it as root"
}
