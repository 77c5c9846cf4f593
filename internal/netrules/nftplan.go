package netrules

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"imds-oidc-proxy/internal/azure"
)

// nativeTable is the table of the native backend, in the family inet. A later run, --check and
// --cleanup identify it by its name.
const nativeTable = "imds_proxy"

// The chains and sets of the native table.
const (
	filterOut = "filter_out"
	natOut    = "nat_out"
	guardOut  = "guard_out"
	denyAll   = "deny"
	denyPorts = "deny_ports"
)

// natPriority is the lowest priority that the kernel allows for a nat chain: -200 is that of
// connection tracking, which must come first. The kernel asks the nat chains of all backends
// and of all service meshes in the order of their priorities, and the first translation is
// final. ADR 0049 has the measurements.
const natPriority nftables.ChainPriority = -199

// nftTable is the content of the native table.
type nftTable struct {
	sets   []nftSet
	chains []nftChain
}

// nftSet is a set of ranges of addresses, or of addresses and TCP ports.
type nftSet struct {
	name      string
	withPorts bool
	targets   []Target // sorted, and without overlap
}

// nftChain is a base chain in the hook output.
type nftChain struct {
	name     string
	kind     nftables.ChainType
	priority nftables.ChainPriority
	rules    []nftRule
}

// nftRule is a list of matches and statements.
type nftRule []nftPart

// nftPart is one match or statement: as text for nft, and as expressions for the kernel.
type nftPart struct {
	text  string
	exprs []expr.Any
}

// native returns the table of a configuration.
func native(c Config) nftTable {
	everywhere, ports := denied(c.Deny)
	t := nftTable{chains: []nftChain{
		{filterOut, nftables.ChainTypeFilter, *nftables.ChainPriorityFilter, nftFilterRules(c, len(everywhere) > 0, len(ports) > 0)},
		{natOut, nftables.ChainTypeNAT, natPriority, nftNATRules(c)},
		{guardOut, nftables.ChainTypeFilter, *nftables.ChainPriorityFilter, nftGuardRules(c)},
	}}
	if len(everywhere) > 0 {
		t.sets = append(t.sets, nftSet{denyAll, false, everywhere})
	}
	if len(ports) > 0 {
		t.sets = append(t.sets, nftSet{denyPorts, true, ports})
	}
	return t
}

// nftNATRules returns the rules of natRules for nftables, and the one for [azure.RedirectProof].
func nftNATRules(c Config) []nftRule {
	to := nftWebTraffic(c)
	var rules []nftRule
	if !c.Sealed {
		rules = append(rules, rule(to, owner(c), dnat(c.Metadata)))
	}
	proof := netip.MustParseAddrPort(azure.RedirectProof)
	return append(rules,
		rule(to, redirect(c.ProxyPort)),
		rule(ipv4(), daddr(proof.Addr()), dport(proof.Port()), redirect(c.ProxyPort)))
}

// nftFilterRules returns the rules of filterRules for nftables. A rule that asks for the owner
// of a packet without one does not match.
func nftFilterRules(c Config, denyAddresses, denyTCPPorts bool) []nftRule {
	metadata := rule(ipv4(), daddr(c.Metadata.Addr()))
	rules := []nftRule{rule(metadata, outLoopback(), reply(), pass())}
	if !c.Sealed {
		to := nftWebTraffic(c)
		rules = append(rules, rule(to, owner(c), pass()), rule(to, anyOwner(), reset()), rule(to, pass()))
	}
	rules = append(rules, nftReject(metadata)...)
	if denyAddresses {
		rules = append(rules, nftReject(rule(ipv4(), inDenyAll()))...)
	}
	if denyTCPPorts {
		rules = append(rules, rule(ipv4(), tcp(), inDenyPorts(), reset()))
	}
	return rules
}

// nftReject returns the rules that reject all packets that match to.
func nftReject(to nftRule) []nftRule {
	return []nftRule{rule(to, tcp(), reset()), rule(to, unreachable())}
}

// nftGuardRules returns the rules of the port guard: an answer from the proxy's port on a
// loopback address that is not the proxy's becomes a reset, as a closed port sends it.
//
// The answer to the first packet of a connection belongs to the user that listens. A packet
// without an owner passes: the kernel sends such packets for connections that the proxy has
// not accepted yet, or has closed. A reset passes, since it carries no data.
func nftGuardRules(c Config) []nftRule {
	var rules []nftRule
	for _, from := range []nftRule{rule(ipv4(), saddr(loopback4)), rule(ipv6(), saddr(netip.IPv6Loopback()))} {
		from = rule(from, sport(c.ProxyPort))
		rules = append(rules, rule(from, owner(c), pass()), rule(from, isReset(), pass()), rule(from, anyOwner(), becomeReset()))
	}
	return rules
}

var loopback4 = netip.AddrFrom4([4]byte{127, 0, 0, 1})

func nftWebTraffic(c Config) nftRule {
	return rule(ipv4(), daddr(c.Metadata.Addr()), dport(c.Metadata.Port()))
}

// denied splits the targets into those for all protocols and those for a TCP port. Both are
// without overlap, because a set with overlapping ranges is an error.
func denied(targets []Target) (everywhere, ports []Target) {
	sorted := slices.Clone(targets)
	slices.SortFunc(sorted, func(a, b Target) int {
		return cmp.Or(cmp.Compare(a.Port, b.Port), cmp.Compare(a.Prefix.Bits(), b.Prefix.Bits()), a.Prefix.Addr().Compare(b.Prefix.Addr()))
	})
	for _, t := range sorted {
		list := &everywhere
		if t.Port != 0 {
			list = &ports
		}
		if !slices.ContainsFunc(*list, func(wider Target) bool { return wider.Port == t.Port && wider.Prefix.Contains(t.Prefix.Addr()) }) {
			*list = append(*list, t)
		}
	}
	return everywhere, ports
}

// String returns the table as input for nft -f, which replaces an existing table.
func (t nftTable) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "add table inet %[1]s\ndelete table inet %[1]s\ntable inet %[1]s {\n", nativeTable)
	for _, s := range t.sets {
		fmt.Fprintf(&b, "\tset %s {\n\t\ttype %s\n\t\tflags interval\n\t\telements = { %s }\n\t}\n\n", s.name, s.typeName(), s.elementText())
	}
	for i, c := range t.chains {
		if i > 0 {
			b.WriteString("\n")
		}
		fmt.Fprintf(&b, "\tchain %s {\n\t\ttype %s hook output priority %d; policy accept;\n", c.name, c.kind, c.priority)
		for _, r := range c.rules {
			fmt.Fprintf(&b, "\t\t%s\n", r)
		}
		b.WriteString("\t}\n")
	}
	return b.String() + "}\n"
}

func (s nftSet) typeName() string {
	if s.withPorts {
		return "ipv4_addr . inet_service"
	}
	return "ipv4_addr"
}

func (s nftSet) elementText() string {
	var elements []string
	for _, t := range s.targets {
		text := strings.TrimSuffix(t.Prefix.String(), "/32")
		if s.withPorts {
			text += fmt.Sprintf(" . %d", t.Port)
		}
		elements = append(elements, text)
	}
	return strings.Join(elements, ", ")
}

func (r nftRule) String() string {
	var words []string
	for _, p := range r {
		words = append(words, p.text)
	}
	return strings.Join(words, " ")
}

func (r nftRule) exprs() []expr.Any {
	var all []expr.Any
	for _, p := range r {
		all = append(all, p.exprs...)
	}
	return all
}
