package netrules

import (
	"errors"
	"fmt"
	"strings"
	"syscall"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// olderKernel is the remedy if the kernel cannot do what the native backend needs.
const olderKernel = "or use --backend=nft or legacy (PROXY_BACKEND) with the init image that has iptables"

// explainReading returns the error of a reading, which changes no rules.
func explainReading(err error) error {
	errno, known := errnoOf(err)
	switch {
	case !known:
		return &Error{Cause: fmt.Sprintf("reading nftables: %v", err)}
	case errno == syscall.EPERM && missingCapability(Native) != "":
		cause := fmt.Sprintf("reading nftables: the capability %s is missing: %v", missingCapability(Native), errno)
		return &Error{MissingCapability, cause, capabilityRemedy(Native)}
	case errno == syscall.EPERM:
		return &Error{MissingCapability,
			fmt.Sprintf("reading nftables: this process is in a user namespace that does not own its network namespace: %v", errno),
			"run proxy-init in the user namespace of its pod"}
	case errno == syscall.ENOENT:
		return &Error{RulesDiffer, fmt.Sprintf("reading nftables: %v", errno), raceRemedy}
	case errno == syscall.EPROTONOSUPPORT, errno == syscall.EAFNOSUPPORT:
		return lacksModule("reading nftables", "nfnetlink", errno)
	case errno == syscall.EOPNOTSUPP, errno == syscall.EINVAL:
		return lacksModule("reading nftables", "nf_tables", errno)
	}
	return &Error{Cause: fmt.Sprintf("reading nftables: %v", errno)}
}

// explainCommit returns the error of a transaction, or nil if the table must be read back.
func (k kernel) explainCommit(t nftTable, before nftState, err error) error {
	const step = "committing the table " + nativeTable
	errno, known := errnoOf(err)
	switch {
	case err == nil, errno == syscall.ENOBUFS:
		// ENOBUFS means that an answer did not fit into the socket's buffer. The kernel has
		// decided by then, and reading the table back shows how.
		return nil
	case !known:
		return &Error{Cause: fmt.Sprintf("%s: %v", step, err)}
	case errno == syscall.EPERM:
		// The rules could be read, so the capability is there.
		return &Error{MissingCapability,
			fmt.Sprintf("%s: a table of this name belongs to another process (flags owner): %v", step, errno),
			"stop the process that made it"}
	case errno == syscall.EBUSY:
		return &Error{RulesDiffer, fmt.Sprintf("%s: %v", step, errno), jumpRemedy}
	case errno == syscall.ENOENT && len(before.old.chains) > 0 && k.changed(before):
		return &Error{RulesDiffer, fmt.Sprintf("%s: %v", step, errno), raceRemedy}
	case isUnsupported(errno):
		return lacksModule(step, k.missingModule(t), errno)
	case errno == syscall.EINVAL:
		return &Error{MissingModule, fmt.Sprintf("%s: the kernel is too old for a rule: %v", step, errno), "use a newer kernel, " + olderKernel}
	}
	return &Error{Cause: fmt.Sprintf("%s: %v", step, errno)}
}

// errnoOf returns the error of the kernel. If there are several, the first is the cause: the
// kernel stops there, and the library joins what it finds afterwards.
func errnoOf(err error) (syscall.Errno, bool) { return errors.AsType[syscall.Errno](err) }

// isUnsupported reports whether the kernel lacks something.
func isUnsupported(errno syscall.Errno) bool {
	return errno == syscall.ENOENT || errno == syscall.EOPNOTSUPP || errno == syscall.EAFNOSUPPORT || errno == syscall.EPROTONOSUPPORT
}

// changed reports whether the chains of earlier versions are no longer those of before.
func (k kernel) changed(before nftState) bool {
	now, err := k.read()
	if err != nil || len(now.old.chains) != len(before.old.chains) || len(now.old.jumps) != len(before.old.jumps) {
		return true
	}
	for i, jump := range before.old.jumps {
		if now.old.jumps[i].Handle != jump.Handle {
			return true
		}
	}
	return false
}

func lacksModule(step, module string, errno syscall.Errno) *Error {
	return &Error{MissingModule,
		fmt.Sprintf("%s: the kernel lacks the module %s: %v", step, module, errno),
		"on the node, run modprobe for it, " + olderKernel}
}

// probeTable is the table of missingModule. It is deleted in the transaction that makes it, so
// that nobody ever sees it.
const probeTable = nativeTable + "_probe"

// missingModule finds the module that the kernel lacks for a table: it tries the table without
// content, its sets, each chain, and each rule. The kernel does not report which one it is.
func (k kernel) missingModule(t nftTable) string {
	switch {
	case k.lacks(nftTable{}):
		return "nf_tables (for the family inet)"
	case k.lacks(nftTable{sets: t.sets}):
		return "nf_tables (for sets of ranges with ports)"
	}
	for _, c := range t.chains {
		alone := nftChain{c.name, c.kind, c.priority, nil}
		if k.lacks(nftTable{t.sets, []nftChain{alone}}) {
			return "nft_chain_" + string(c.kind)
		}
		for _, r := range c.rules {
			alone.rules = []nftRule{r}
			if k.lacks(nftTable{t.sets, []nftChain{alone}}) {
				return moduleOfRule(r)
			}
		}
	}
	return "nf_tables"
}

// lacks reports whether the kernel refuses the table because it lacks something.
func (k kernel) lacks(t nftTable) bool {
	conn, err := k.connect()
	if err != nil {
		return false
	}
	if err := t.stage(conn, probeTable); err != nil {
		return false
	}
	conn.DelTable(&nftables.Table{Name: probeTable, Family: nftables.TableFamilyINet})
	errno, _ := errnoOf(conn.Flush())
	return isUnsupported(errno)
}

// builtIn are the expressions that belong to nf_tables itself.
var builtIn = map[string]bool{"meta": true, "cmp": true, "payload": true, "bitwise": true, "immediate": true, "lookup": true}

// moduleOfRule returns the module of the rule's last expression that is not built in.
func moduleOfRule(r nftRule) string {
	module := "nf_tables"
	for _, e := range r.exprs() {
		encoded, err := expr.Marshal(unix.NFPROTO_INET, e)
		if name := exprName(encoded); err == nil && !builtIn[name] {
			module = "nft_" + name
		}
	}
	return strings.Replace(module, "nft_reject", "nft_reject_inet", 1) // it depends on the family
}
