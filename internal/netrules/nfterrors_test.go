package netrules

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
)

// noKernel is a kernel whose sockets cannot be opened, for a reason.
func noKernel(reason error) kernel {
	return kernel{options: []nftables.ConnOption{nftables.WithSockOptions(func(*netlink.Conn) error { return reason })}}
}

// TestExplainReading has the errors of the kernel, in the form in which the library returns them.
// This process has the capability NET_ADMIN if it is root; it is missing otherwise.
func TestExplainReading(t *testing.T) {
	permission := "user namespace"
	if missingCapability(Native) != "" {
		permission = "the capability NET_ADMIN is missing"
	}
	for errno, tt := range map[syscall.Errno]struct {
		kind Kind
		text string
	}{
		syscall.EPROTONOSUPPORT: {MissingModule, "nfnetlink"},
		syscall.EAFNOSUPPORT:    {MissingModule, "nfnetlink"},
		syscall.EOPNOTSUPP:      {MissingModule, "nf_tables"},
		syscall.EINVAL:          {MissingModule, "nf_tables"},
		syscall.EPERM:           {MissingCapability, permission},
		syscall.ENOENT:          {RulesDiffer, "at the same time"},
		syscall.ENOMEM:          {0, "cannot allocate memory"},
	} {
		for _, err := range []error{
			errno,
			&netlink.OpError{Op: "dial", Err: os.NewSyscallError("socket", errno)},
			fmt.Errorf("conn.Receive: %w", errors.Join(&netlink.OpError{Op: "receive", Err: errno}, syscall.EEXIST)),
		} {
			wantOneLine(t, explainReading(err), tt.kind, tt.text)
		}
	}
	wantOneLine(t, explainReading(errors.New("malformed")), 0, "malformed")
}

// TestExplainCommit has the errors of a transaction. The kernel of the test cannot be asked which
// module is missing.
func TestExplainCommit(t *testing.T) {
	k := noKernel(syscall.EPROTONOSUPPORT)
	old := nftState{old: leftovers{chains: []*nftables.Chain{{Name: natChain}}}}
	for errno, tt := range map[syscall.Errno]struct {
		kind Kind
		text string
	}{
		syscall.EPERM:        {MissingCapability, "belongs to another process"},
		syscall.ENOENT:       {MissingModule, "family inet"},
		syscall.EOPNOTSUPP:   {MissingModule, "family inet"},
		syscall.EAFNOSUPPORT: {MissingModule, "family inet"},
		syscall.EINVAL:       {MissingModule, "too old"},
		syscall.EBUSY:        {RulesDiffer, "jumps to a chain"},
		syscall.EMSGSIZE:     {0, "message too long"},
	} {
		err := fmt.Errorf("conn.Receive: %w", errors.Join(&netlink.OpError{Op: "receive", Err: errno}, syscall.ENOENT))
		wantOneLine(t, k.explainCommit(native(forwarding()), nftState{}, err), tt.kind, tt.text)
	}
	// Rules of an earlier redirect that cannot be read any more were removed by somebody else.
	wantOneLine(t, k.explainCommit(native(forwarding()), old, syscall.ENOENT), RulesDiffer, "at the same time")
	wantOneLine(t, k.explainCommit(native(forwarding()), old, errors.New("malformed")), 0, "malformed")
	for _, err := range []error{nil, fmt.Errorf("receive: %w", syscall.ENOBUFS)} {
		if got := k.explainCommit(native(forwarding()), nftState{}, err); got != nil {
			t.Errorf("%v: got %v, want nil, so that the rules are read back", err, got)
		}
	}
}

// wantOneLine checks the kind of an error, and its cause and remedy, which are one line each.
func wantOneLine(t *testing.T, err error, kind Kind, text string) {
	t.Helper()
	e, ok := errors.AsType[*Error](err)
	if !ok || e.Kind != kind {
		t.Errorf("got %v, want kind %d", err, kind)
		return
	}
	if all := e.Cause + "; " + e.Remedy; !strings.Contains(all, text) || strings.Contains(all, "\n") {
		t.Errorf("got %q, want one line with %q", all, text)
	}
	if kind != 0 && e.Remedy == "" {
		t.Errorf("%s: no remedy", e.Cause)
	}
}

// TestMissingModule asks a real kernel for what it does not have. Each transaction must leave
// nothing.
func TestMissingModule(t *testing.T) {
	k := newKernel(t)
	with := func(change func(*nftTable)) nftTable {
		table := native(denying(t, forwarding(), "10.0.0.0/8", "192.0.2.1:80"))
		change(&table)
		return table
	}
	for name, tt := range map[string]struct {
		table nftTable
		want  string
	}{
		"an expression": {with(func(table *nftTable) {
			table.chains[1].rules = append(table.chains[1].rules, part("queue", &expr.Queue{Num: 1}))
		}), "nft_queue: no such file"},
		"a type of chains": {with(func(table *nftTable) { table.chains[2].kind = "nosuch" }), "nft_chain_nosuch: no such file"},
		"a priority":       {with(func(table *nftTable) { table.chains[1].priority = natPriority - 1 }), "nft_chain_nat: operation not supported"},
	} {
		err := k.apply(tt.table)
		if !kindIs(err, MissingModule) || !strings.Contains(err.Error(), "the kernel lacks the module "+tt.want) {
			t.Errorf("%s: got %v, want %s", name, err, tt.want)
		}
		if all, err := k.listChains(); err != nil || len(all) > 0 {
			t.Errorf("%s: chains are left: %d, %v", name, len(all), err)
		}
	}
}

func TestModuleOfRule(t *testing.T) {
	c := forwarding()
	for want, r := range map[string]nftRule{
		"nft_redir":       rule(ipv4(), redirect(8000)),
		"nft_nat":         rule(owner(c), dnat(c.Metadata)),
		"nft_reject_inet": rule(tcp(), reset()),
		"nft_ct":          rule(outLoopback(), reply(), pass()),
		"nf_tables":       rule(sport(8000), becomeReset()),
	} {
		if got := moduleOfRule(r); got != want {
			t.Errorf("%s: got %s, want %s", r, got, want)
		}
	}
}

// TestENOBUFS uses a socket whose buffer is too small for the kernel's answers. The kernel commits
// the transaction nevertheless, and reading it back shows that.
func TestENOBUFS(t *testing.T) {
	k := newKernel(t)
	small := kernel{k.netns, []nftables.ConnOption{nftables.WithSockOptions(func(c *netlink.Conn) error { return c.SetReadBuffer(1) })}}
	table := native(denying(t, forwarding(), "10.0.0.0/8", "192.0.2.1:80"))
	if err := small.commit(&table, leftovers{}); !errors.Is(err, syscall.ENOBUFS) {
		t.Errorf("got %v, want ENOBUFS", err)
	}
	if err := k.check(table); err != nil {
		t.Errorf("after ENOBUFS: %v", err)
	}
	if err := small.explainCommit(table, nftState{}, small.commit(&table, leftovers{})); err != nil {
		t.Errorf("got %v, want nil", err)
	}
}
