package netrules

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Kind is the kind of a failure. proxy-init has an exit code for each kind.
type Kind int

// The kinds of failure. The zero value is an unknown kind.
const (
	// MissingCapability means that the process may not change the namespace's rules.
	MissingCapability Kind = iota + 1
	// NoBinary means that there is no iptables for the backend, or a part of it is missing.
	NoBinary
	// LockHeld means that another process holds the xtables lock, or its file cannot be opened.
	LockHeld
	// MissingModule means that the kernel lacks a match, a target or a table.
	MissingModule
	// WrongBackend means that the backend's tables contain rules that it cannot read.
	WrongBackend
	// RulesDiffer means that the namespace's rules are not the planned ones, or that another
	// process changed them at the same time.
	RulesDiffer
	// NotRedirected means that the rules are in place, but a connection was not redirected.
	NotRedirected
	// HostNetwork means that this is the network namespace of a node.
	HostNetwork
	// TimedOut means that iptables did not exit in time.
	TimedOut
	// PortTaken means that a process of another user than the proxy's holds the proxy's port.
	PortTaken
	// NoRedirect means that [Validate] found no redirect in the namespace.
	NoRedirect
	// NoGuard means that another user than the proxy's can answer at the proxy's port.
	NoGuard
)

// Error is a failure to install, check, prove or remove the redirect.
type Error struct {
	// Kind is zero if the kind of failure is not known.
	Kind Kind

	// Cause is one line with the step that failed and the reason.
	Cause string

	// Remedy says in one line what to change. It is empty if that is not known.
	Remedy string
}

func (e *Error) Error() string { return e.Cause }

// kindIs reports whether err is or wraps an Error of the kind.
func kindIs(err error, k Kind) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && e.Kind == k
}

// failedRun is a run of iptables that exited with an error.
type failedRun struct {
	step     string
	backend  Backend
	exitCode int
	output   string
	// input is the input of iptables-restore. It is empty if another command failed.
	input string
	// unprivileged is true if this process lacks a capability that the backend needs. Some
	// versions of iptables do not report this reason.
	unprivileged bool
}

// The texts by which classify recognizes a failure in the output of iptables.
var (
	lockSigns       = regexp.MustCompile(`xtables lock|Can't lock `)
	lockFileSign    = regexp.MustCompile(`can't open lock file`)
	permissionSigns = regexp.MustCompile(`Permission denied|Operation not permitted`)
	nftOnlySign     = regexp.MustCompile(`is incompatible, use 'nft' tool|Parsing nftables rule failed`)
	noSuchRule      = regexp.MustCompile(`does a matching rule exist|RULE_DELETE failed`)
	chainInUse      = regexp.MustCompile(`CHAIN_DEL failed \(Device or resource busy\)`)
	failedLine      = regexp.MustCompile(`line (\d+) failed`)
	noPlugin        = regexp.MustCompile("Couldn't load (?:match|target) `(\\w+)'")
	noExtension     = regexp.MustCompile(`Extension (\w+) revision \d+ not supported`)
	noTable         = regexp.MustCompile("(?:can't initialize iptables table `|unable to initialize table ')(\\w+)'")
	noKernelSupport = regexp.MustCompile(`No chain/target/match by that name|\((?:No such file or directory|Operation not supported|Invalid argument)\)|Protocol not supported|Failed to initialize nft`)
)

// classify finds the kind of a failure in the output of iptables. The exit status does not
// identify the kind: if a capability is missing, iptables-nft exits with 4 and iptables-legacy
// with 3; but iptables-legacy also exits with 4 if the lock is held, and iptables-restore exits
// with 1 or 2 for any failure.
func (f failedRun) classify() *Error {
	output := oneLine(f.output)
	ended := fmt.Sprintf("exited with %d: %s", f.exitCode, output)
	if f.exitCode < 0 {
		ended = "was killed by a signal"
	}
	e := &Error{Cause: fmt.Sprintf("%s: iptables (%s) %s", f.step, f.backend, ended)}
	switch {
	case lockFileSign.MatchString(output):
		e.Kind, e.Remedy = LockHeld, "mount an emptyDir at /run, or set XTABLES_LOCKFILE to a file that exists"
	case lockSigns.MatchString(output):
		e.Kind, e.Remedy = LockHeld, "another process holds the xtables lock: restart this container when it is done"
	case permissionSigns.MatchString(output), noTable.MatchString(output) && f.unprivileged:
		e.Kind, e.Remedy = MissingCapability, capabilityRemedy(f.backend)
	case nftOnlySign.MatchString(output):
		e.Kind, e.Remedy = WrongBackend, nftOnlyRemedy
	case chainInUse.MatchString(output), strings.HasPrefix(f.inputLine(output), "-X "):
		e.Kind, e.Remedy = RulesDiffer, jumpRemedy
	case noSuchRule.MatchString(output), strings.HasPrefix(f.inputLine(output), "-D "):
		e.Kind, e.Remedy = RulesDiffer, raceRemedy
	case noPlugin.MatchString(output):
		e.Kind, e.Remedy = NoBinary, "this image's iptables lacks its extension "+noPlugin.FindStringSubmatch(output)[1]+": use the published init image"
	default:
		if module := f.missingModule(output); module != "" {
			e.Kind, e.Remedy = MissingModule, "the node's kernel lacks a module: on the node, run modprobe for "+module
		}
	}
	return e
}

// jumpRemedy is the remedy if a chain of this package cannot be deleted, and raceRemedy if a rule
// that was read is gone.
const (
	jumpRemedy = "a rule of another program jumps to a chain of proxy-init: remove that rule, and run proxy-init again"
	raceRemedy = "another process changed the rules at the same time: run proxy-init again"
)

// nftOnlyRemedy is the remedy if a table of iptables has rules that only the nft tool can read.
const nftOnlyRemedy = "the nft tool added rules to a table of iptables: move them to another table, or use --backend=native or legacy"

// inputLine returns the line of the input at which iptables-restore failed, or "" if its output
// does not contain the line number.
func (f failedRun) inputLine(output string) string {
	m := failedLine.FindStringSubmatch(output)
	if m == nil {
		return ""
	}
	n, err := strconv.Atoi(m[1])
	lines := strings.Split(f.input, "\n")
	if err != nil || n < 1 || n > len(lines) {
		return ""
	}
	return lines[n-1]
}

// missingModule returns the kernel module that is missing, or "" if the output shows none.
func (f failedRun) missingModule(output string) string {
	if m := noExtension.FindStringSubmatch(output); m != nil {
		return moduleOf(m[1], f.backend)
	}
	if m := noTable.FindStringSubmatch(output); m != nil {
		if m[1] == tableNAT {
			return "iptable_nat, nf_nat"
		}
		return "iptable_" + m[1]
	}
	// iptables-legacy-restore gives no reason for a commit that the kernel refuses.
	if noKernelSupport.MatchString(output) || f.inputLine(output) == "COMMIT" {
		return unloaded(f.backend)
	}
	return ""
}

// extensions are the matches and targets that the rules use.
var extensions = [...]string{"tcp", "owner", "conntrack", "REDIRECT", "DNAT", "REJECT"}

// moduleOf returns the kernel modules of an extension.
func moduleOf(extension string, backend Backend) string {
	nft := map[string]string{"REJECT": "nft_reject_ipv4", "REDIRECT": "xt_REDIRECT, nft_redir, nf_nat"}
	either := map[string]string{"tcp": "xt_tcpudp", "DNAT": "xt_nat, nf_nat", "REJECT": "ipt_REJECT", "REDIRECT": "xt_REDIRECT, nf_nat"}
	if module := nft[extension]; module != "" && backend == NFT {
		return module
	}
	return cmp.Or(either[extension], "xt_"+extension)
}

// The kernel's lists of its loaded extensions. The kernel loads an extension at the first use.
// Without legacy iptables the lists do not exist.
const (
	procMatches = "/proc/net/ip_tables_matches"
	procTargets = "/proc/net/ip_tables_targets"
)

// unloaded returns the modules of the extensions that are not in the kernel's lists.
func unloaded(backend Backend) string {
	matches, _ := os.ReadFile(procMatches)
	targets, _ := os.ReadFile(procTargets)
	known := strings.Fields(string(matches) + string(targets))
	return modulesNotIn(known, backend)
}

// modulesNotIn returns the modules of the extensions that are not in known. If that finds no
// module, it returns a text with the modules that may be missing.
func modulesNotIn(known []string, backend Backend) string {
	var missing []string
	for _, x := range extensions {
		if !slices.Contains(known, x) {
			missing = append(missing, moduleOf(x, backend))
		}
	}
	if len(missing) == 0 || len(known) == 0 {
		return "nf_nat, or iptable_nat (for nft: nft_chain_nat); the kernel does not report which one is missing"
	}
	return strings.Join(missing, ", ")
}

// capabilityRemedy is the remedy for a missing capability.
func capabilityRemedy(backend Backend) string {
	if backend == Legacy {
		return "run the init container as root with the capabilities NET_ADMIN and NET_RAW, which iptables-legacy needs"
	}
	return "run the init container as root with the capability NET_ADMIN"
}

// oneLine joins the lines that iptables printed. It leaves out two hints that do not help in a
// container's log: to run iptables --help, and to upgrade iptables or the kernel.
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
