package netrules

import (
	"fmt"
	"strings"
)

// The chains of this package. A later run, --check and --cleanup identify them by their names,
// which must never be used for anything else.
const (
	natChain    = "IMDS_PROXY_OUTPUT"
	filterChain = "IMDS_PROXY_FILTER"
)

// The chains of azure-workload-identity's proxy-init script. They are replaced: otherwise they
// would still redirect to the old port.
const (
	azwiOutput   = "AZWI_PROXY_OUTPUT"
	azwiRedirect = "AZWI_PROXY_REDIRECT"
)

const (
	tableFilter = "filter"
	tableNAT    = "nat"
	hookOutput  = "OUTPUT"
)

// applyOrder has filter, which rejects, before nat, which redirects: it fails closed, since a
// failure between the two leaves the metadata address rejected.
var applyOrder = [...]string{tableFilter, tableNAT}

// removeOrder is the reverse, for the same reason.
var removeOrder = [...]string{tableNAT, tableFilter}

// Plan is the set of rules for a [Config].
type Plan struct {
	native nftTable
	chains map[string]chain // of iptables, by table
}

// chain is one of this package's chains. Each rule is a rule specification without the
// preceding "-A CHAIN". OUTPUT jumps to the chain unconditionally, so that the jump does not
// depend on the configuration and can be found again.
type chain struct {
	name  string
	rules []string
}

// NewPlan returns the rules for a valid configuration.
func NewPlan(c Config) Plan {
	return Plan{native(c), map[string]chain{tableFilter: {filterChain, filterRules(c)}, tableNAT: {natChain, natRules(c)}}}
}

// natRules returns the rules that redirect the first packet of a connection. Conntrack
// redirects the other packets.
//
// REDIRECT in OUTPUT rewrites the destination to 127.0.0.1. The packet is routed to lo before
// it is received there, so net.ipv4.conf.*.route_localnet, which applies to packets from
// other hosts, need not be set.
func natRules(c Config) []string {
	to := webTraffic(c)
	var rules []string
	if !c.Sealed {
		// DNAT to the unchanged destination completes NAT for the proxy's own connection.
		// ACCEPT would only end this table: the rules of a service mesh, in the other
		// backend or in an nftables table, would then redirect the connection, and the
		// mesh's own connection to the metadata address would be redirected here.
		rules = append(rules, fmt.Sprintf("%s %s -j DNAT --to-destination %s", to, exemption(c), c.Metadata))
	}
	return append(rules, fmt.Sprintf("%s -j REDIRECT --to-ports %d", to, c.ProxyPort))
}

// filterRules returns the rules that reject packets that are still addressed to the metadata
// service after nat, where redirected packets have the destination 127.0.0.1. These packets
// are for other ports and protocols, belong to connections that were open before the rules
// (nat applies only to new ones), or are invalid for conntrack and thus not translated.
func filterRules(c Config) []string {
	to := webTraffic(c)
	// If the metadata address is an address of this host, as in a test or a demonstration,
	// it is also the source address of clients, and answers to it must pass. Packets to lo
	// do not leave the host. In a pod this rule matches no packet.
	rules := []string{"-d " + hostPrefix(c.Metadata.Addr()).String() + " -o lo -m conntrack --ctdir REPLY -j RETURN"}
	if !c.Sealed {
		// RETURN, not ACCEPT, so that other programs' rules in this table still apply.
		rules = append(rules,
			to+" "+exemption(c)+" -j RETURN",
			// The last packets of a connection that the proxy has closed belong to
			// no socket, and thus to no UID. If they were rejected, the other end
			// would retransmit. No process can receive an answer with them, and a
			// process can send only what it had queued before the rules existed,
			// when it closed the connection.
			to+" -m owner ! --socket-exists -j RETURN")
	}
	rules = append(rules, reject(Target{Prefix: hostPrefix(c.Metadata.Addr())})...)
	for _, t := range c.Deny {
		rules = append(rules, reject(t)...)
	}
	return rules
}

func webTraffic(c Config) string {
	return fmt.Sprintf("-d %s -p tcp -m tcp --dport %d", hostPrefix(c.Metadata.Addr()), c.Metadata.Port())
}

// exemption matches the UID and the GID together, because another image may use one of the two
// numbers by chance.
func exemption(c Config) string {
	return fmt.Sprintf("-m owner --uid-owner %d --gid-owner %d", c.UID, c.GID)
}

// reject rejects packets and does not drop them, so that clients that probe for a metadata
// service continue at once instead of waiting for a timeout.
func reject(t Target) []string {
	if t.Port != 0 {
		return []string{fmt.Sprintf("-d %s -p tcp -m tcp --dport %d -j REJECT --reject-with tcp-reset", t.Prefix, t.Port)}
	}
	return []string{
		fmt.Sprintf("-d %s -p tcp -j REJECT --reject-with tcp-reset", t.Prefix),
		fmt.Sprintf("-d %s -j REJECT --reject-with icmp-port-unreachable", t.Prefix),
	}
}

// Format returns the plan as text: for [Native] and [Auto] as input for nft -f, for the other
// backends as input for iptables-restore --noflush in a namespace without chains of this package.
func (p Plan) Format(backend Backend) string {
	if backend == Native || backend == Auto {
		return p.native.String()
	}
	var b strings.Builder
	for _, table := range applyOrder {
		b.WriteString(p.commit(table, state{}))
	}
	return b.String()
}

// commit returns the iptables-restore input that changes one table from its current state to
// the planned one.
func (p Plan) commit(table string, now state) string {
	c := p.chains[table]
	var b strings.Builder
	fmt.Fprintf(&b, "*%s\n", table)
	// With --noflush this line creates the chain, or empties the existing one.
	fmt.Fprintf(&b, ":%s - [0:0]\n", c.name)
	writeRemoval(&b, now, c.name)
	fmt.Fprintf(&b, "-I %s 1 -j %s\n", hookOutput, c.name)
	for _, r := range c.rules {
		fmt.Fprintf(&b, "-A %s %s\n", c.name, r)
	}
	b.WriteString("COMMIT\n")
	return b.String()
}

// removal returns the iptables-restore input that removes the chains of this package and of
// azure-workload-identity from one table, or "" if there are none.
func removal(table string, now state) string {
	if len(now.chains) == 0 && len(now.jumps) == 0 {
		return ""
	}
	var b strings.Builder
	fmt.Fprintf(&b, "*%s\n", table)
	writeRemoval(&b, now, "")
	b.WriteString("COMMIT\n")
	return b.String()
}

// writeRemoval writes the lines that delete every jump to our chains, then the chains except
// keep.
func writeRemoval(b *strings.Builder, now state, keep string) {
	for _, jump := range now.jumps {
		fmt.Fprintf(b, "-D %s\n", strings.TrimPrefix(jump, "-A "))
	}
	for _, name := range now.chains {
		if name != keep {
			fmt.Fprintf(b, "-F %s\n", name)
		}
	}
	for _, name := range now.chains {
		if name != keep {
			fmt.Fprintf(b, "-X %s\n", name)
		}
	}
}
