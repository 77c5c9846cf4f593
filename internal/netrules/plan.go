package netrules

import (
	"fmt"
	"strings"
)

// The chains of this package. Their names are how a later run, --check and
// --cleanup know them, and so must never be reused for anything else.
const (
	natChain    = "IMDS_PROXY_OUTPUT"
	filterChain = "IMDS_PROXY_FILTER"
)

// The chains of azure-workload-identity's proxy-init script, which are taken
// over: left in place they would go on redirecting to the old port.
const (
	azwiOutput   = "AZWI_PROXY_OUTPUT"
	azwiRedirect = "AZWI_PROXY_REDIRECT"
)

const (
	tableFilter = "filter"
	tableNAT    = "nat"
	hookOutput  = "OUTPUT"
)

// applyOrder puts filter, which rejects, before nat, which redirects: a failure
// between the two leaves the metadata address closed rather than open.
var applyOrder = [...]string{tableFilter, tableNAT}

// removeOrder is the reverse, for the same reason.
var removeOrder = [...]string{tableNAT, tableFilter}

// Plan is the set of rules that a [Config] asks for.
type Plan struct {
	chains map[string]chain // by table
}

// chain is a chain of ours with its rules, each a rule specification without
// the "-A CHAIN" that precedes it. OUTPUT jumps to it unconditionally, so that
// the jump is the same whatever the configuration, and can be found again.
type chain struct {
	name  string
	rules []string
}

// NewPlan returns the rules for a valid configuration.
func NewPlan(c Config) Plan {
	return Plan{map[string]chain{tableFilter: {filterChain, filterRules(c)}, tableNAT: {natChain, natRules(c)}}}
}

// natRules redirect the first packet of a connection; conntrack does the rest.
//
// REDIRECT in OUTPUT rewrites the destination to 127.0.0.1. That packet has its
// route on lo before it is received there, so net.ipv4.conf.*.route_localnet,
// which governs packets from outside, need not be set.
func natRules(c Config) []string {
	to := webTraffic(c)
	var rules []string
	if !c.Sealed {
		// To translate the proxy's own connection into itself settles where it
		// goes. ACCEPT would end this table only: a mesh's rules, in the other
		// backend or an nftables table of its own, would then take the
		// connection, and what the mesh sends on would come back here.
		rules = append(rules, fmt.Sprintf("%s %s -j DNAT --to-destination %s", to, exemption(c), c.Metadata))
	}
	return append(rules, fmt.Sprintf("%s -j REDIRECT --to-ports %d", to, c.ProxyPort))
}

// filterRules reject what is still addressed to the metadata service after nat:
// redirected packets carry 127.0.0.1 by then. What is left is other ports and
// protocols, connections that were open before the rules (nat looks only at new
// ones), and packets that conntrack calls invalid and so does not translate.
func filterRules(c Config) []string {
	to := webTraffic(c)
	// Where the metadata address is one of this host's own, as in a test or a
	// demonstration, a client's source address is that address too, and answers
	// to it must come through. What leaves by lo never leaves the host: in a pod
	// this matches nothing.
	rules := []string{"-d " + hostPrefix(c.Metadata.Addr()).String() + " -o lo -m conntrack --ctdir REPLY -j RETURN"}
	if !c.Sealed {
		// RETURN, not ACCEPT: rules that others put in this table still count.
		rules = append(rules,
			to+" "+exemption(c)+" -j RETURN",
			// The last packets of a connection that the proxy has closed belong
			// to no socket, hence to no UID. Rejecting them would leave the far
			// end retransmitting. No process can read through them, and write only
			// what it had queued, before the rules, when it closed the connection.
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

// exemption asks for UID and GID together: either alone is easily had by an
// image that happens to use the same number.
func exemption(c Config) string {
	return fmt.Sprintf("-m owner --uid-owner %d --gid-owner %d", c.UID, c.GID)
}

// reject answers rather than drops: clients that probe for a metadata service
// then move on at once instead of waiting for a timeout.
func reject(t Target) []string {
	if t.Port != 0 {
		return []string{fmt.Sprintf("-d %s -p tcp -m tcp --dport %d -j REJECT --reject-with tcp-reset", t.Prefix, t.Port)}
	}
	return []string{
		fmt.Sprintf("-d %s -p tcp -j REJECT --reject-with tcp-reset", t.Prefix),
		fmt.Sprintf("-d %s -j REJECT --reject-with icmp-port-unreachable", t.Prefix),
	}
}

// String is the plan as input for iptables-restore --noflush in a namespace
// that has no rules of ours yet.
func (p Plan) String() string {
	var b strings.Builder
	for _, table := range applyOrder {
		b.WriteString(p.commit(table, state{}))
	}
	return b.String()
}

// commit is the iptables-restore input that takes one table from its present
// state to the planned one.
func (p Plan) commit(table string, now state) string {
	c := p.chains[table]
	var b strings.Builder
	fmt.Fprintf(&b, "*%s\n", table)
	// With --noflush this line makes the chain, or empties the one that is there.
	fmt.Fprintf(&b, ":%s - [0:0]\n", c.name)
	writeRemoval(&b, now, c.name)
	fmt.Fprintf(&b, "-I %s 1 -j %s\n", hookOutput, c.name)
	for _, r := range c.rules {
		fmt.Fprintf(&b, "-A %s %s\n", c.name, r)
	}
	b.WriteString("COMMIT\n")
	return b.String()
}

// removal is the iptables-restore input that takes everything of ours, and of
// azure-workload-identity's, out of one table. Empty: there is nothing.
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

// writeRemoval deletes every jump into our chains, then the chains but keep.
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
