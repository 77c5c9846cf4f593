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

// Kind says what stands in the way of the redirect, and so who can fix it.
type Kind int

// The kinds of failure. The zero value is a failure of no known kind.
const (
	// MissingCapability: the process may not change the namespace's rules.
	MissingCapability Kind = iota + 1
	// NoBinary: there is no iptables for the backend, or not all of it.
	NoBinary
	// LockHeld: the xtables lock cannot be had.
	LockHeld
	// MissingModule: the kernel lacks a match, a target or a table.
	MissingModule
	// WrongBackend: the backend's tables hold rules that it cannot read.
	WrongBackend
	// RulesDiffer: the namespace's rules are not the planned ones, or changed
	// while they were being replaced.
	RulesDiffer
	// NotRedirected: the rules are in place, and a connection went elsewhere.
	NotRedirected
	// HostNetwork: this is the network namespace of a node.
	HostNetwork
	// TimedOut: iptables did not end in time.
	TimedOut
	// PortTaken: a process of another user than the proxy's holds the proxy's port.
	PortTaken
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

// kindIs reports whether err is, or wraps, an Error of the kind.
func kindIs(err error, k Kind) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && e.Kind == k
}

// failedRun is an iptables that exited with an error.
type failedRun struct {
	step     string
	mode     Mode
	exitCode int
	said     string
	// input is what iptables-restore read. Empty: it was another command.
	input string
	// powerless says that this process lacks a capability that the mode needs,
	// for which some versions give no reason.
	powerless bool
}

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

// classify finds the kind of a failure in what iptables said. Its exit status
// does not tell: for want of a capability nft exits with 4 and legacy with 3,
// legacy with 4 for the lock too, and iptables-restore with 1 or 2 for anything.
func (f failedRun) classify() *Error {
	said := oneLine(f.said)
	ended := fmt.Sprintf("exited with %d: %s", f.exitCode, said)
	if f.exitCode < 0 {
		ended = "was killed by a signal"
	}
	e := &Error{Cause: fmt.Sprintf("%s: iptables (%s) %s", f.step, f.mode, ended)}
	switch {
	case lockFileSign.MatchString(said):
		e.Kind, e.Remedy = LockHeld, "mount an emptyDir at /run, or set XTABLES_LOCKFILE to a file that exists"
	case lockSigns.MatchString(said):
		e.Kind, e.Remedy = LockHeld, "another process holds the xtables lock: restart this container when it is done"
	case permissionSigns.MatchString(said), noTable.MatchString(said) && f.powerless:
		e.Kind, e.Remedy = MissingCapability, capabilityRemedy(f.mode)
	case nftOnlySign.MatchString(said):
		e.Kind, e.Remedy = WrongBackend, nftOnlyRemedy
	case chainInUse.MatchString(said), strings.HasPrefix(f.inputLine(said), "-X "):
		e.Kind, e.Remedy = RulesDiffer, "a rule that is not proxy-init's leads into a chain that is: remove that rule, and run it again"
	case noSuchRule.MatchString(said), strings.HasPrefix(f.inputLine(said), "-D "):
		e.Kind, e.Remedy = RulesDiffer, "somebody else changed the rules at the same time: run proxy-init again"
	case noPlugin.MatchString(said):
		e.Kind, e.Remedy = NoBinary, "this image's iptables lacks its extension "+noPlugin.FindStringSubmatch(said)[1]+": use the published init image"
	default:
		if module := f.missingModule(said); module != "" {
			e.Kind, e.Remedy = MissingModule, "the node's kernel lacks a module, load it there: "+module
		}
	}
	return e
}

// nftOnlyRemedy is for tables that are iptables' own by name, and not by content.
const nftOnlyRemedy = "the nft tool put rules into a table of iptables' own: give them another table, or use --iptables-mode=legacy"

// inputLine is the line of the input at which iptables-restore says it failed.
func (f failedRun) inputLine(said string) string {
	m := failedLine.FindStringSubmatch(said)
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

// missingModule names the kernel module that was missed. Empty: none was.
func (f failedRun) missingModule(said string) string {
	if m := noExtension.FindStringSubmatch(said); m != nil {
		return moduleOf(m[1], f.mode)
	}
	if m := noTable.FindStringSubmatch(said); m != nil {
		if m[1] == tableNAT {
			return "iptable_nat, nf_nat"
		}
		return "iptable_" + m[1]
	}
	// iptables-legacy-restore gives no reason for a commit that the kernel refuses.
	if noKernelSupport.MatchString(said) || f.inputLine(said) == "COMMIT" {
		return unloaded(f.mode)
	}
	return ""
}

// extensions are the matches and targets that the rules use.
var extensions = [...]string{"tcp", "owner", "conntrack", "REDIRECT", "DNAT", "REJECT"}

// moduleOf names the kernel module behind an extension.
func moduleOf(extension string, mode Mode) string {
	nft := map[string]string{"REJECT": "nft_reject_ipv4", "REDIRECT": "xt_REDIRECT, nft_redir, nf_nat"}
	either := map[string]string{"tcp": "xt_tcpudp", "DNAT": "xt_nat, nf_nat", "REJECT": "ipt_REJECT", "REDIRECT": "xt_REDIRECT, nf_nat"}
	if module := nft[extension]; module != "" && mode == ModeNFT {
		return module
	}
	return cmp.Or(either[extension], "xt_"+extension)
}

// Where the kernel lists the extensions that it has, loaded after the attempt to
// use them. There is no list without legacy iptables.
const (
	procMatches = "/proc/net/ip_tables_matches"
	procTargets = "/proc/net/ip_tables_targets"
)

// unloaded names the modules of which the kernel has no sign.
func unloaded(mode Mode) string {
	matches, _ := os.ReadFile(procMatches)
	targets, _ := os.ReadFile(procTargets)
	known := strings.Fields(string(matches) + string(targets))
	return modulesNotIn(known, mode)
}

func modulesNotIn(known []string, mode Mode) string {
	var missing []string
	for _, x := range extensions {
		if !slices.Contains(known, x) {
			missing = append(missing, moduleOf(x, mode))
		}
	}
	if len(missing) == 0 || len(known) == 0 {
		return "it does not say which; nf_nat, or iptable_nat (nft_chain_nat on nft)"
	}
	return strings.Join(missing, ", ")
}

func capabilityRemedy(mode Mode) string {
	if mode == ModeLegacy {
		return "run the init container as root with the capabilities NET_ADMIN and NET_RAW, which iptables-legacy needs"
	}
	return "run the init container as root with the capability NET_ADMIN"
}

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
