package netrules

import (
	"net/netip"
	"slices"
	"strings"
)

// tables is what this package reads through go-iptables.
type tables interface {
	// ListChains names the chains of a table.
	ListChains(table string) ([]string, error)
	// List returns a chain's rules as `iptables -S` prints them, after one line
	// that declares the chain.
	List(table, chain string) ([]string, error)
}

// state is what a table holds that matters here.
type state struct {
	// chains are those of ours, and of azure-workload-identity's, that exist.
	chains []string
	// jumps are the rules of OUTPUT that lead into them.
	jumps []string
	// output is OUTPUT, rule by rule.
	output []string
	// rules are those of our own chain.
	rules []string
	// foreign says that others have chains here, or rules in OUTPUT.
	foreign bool
	// kubernetes is the name of a chain that a node's kubelet or kube-proxy
	// made. Empty: none, as in any pod.
	kubernetes string
}

// kubernetesChains is the prefix of what kubelet and kube-proxy install, always
// in the node's own network namespace.
const kubernetesChains = "KUBE-"

// builtInChains are in every table without anybody having made them.
var builtInChains = [...]string{"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"}

func isOurs(chain string) bool {
	return chain == natChain || chain == filterChain || chain == azwiOutput || chain == azwiRedirect
}

// readState reads a table. It changes nothing.
func readState(t tables, table string) (state, error) {
	names, err := t.ListChains(table)
	if err != nil {
		return state{}, err
	}
	// Where the nft tool has added a base chain, iptables-nft begins with a remark,
	// at which go-iptables stops reading: ours would seem not to be there.
	if !slices.Contains(names, hookOutput) {
		cause := "the " + table + " table cannot be read: iptables does not list its chain " + hookOutput
		return state{}, &Error{WrongBackend, cause, nftOnlyRemedy}
	}
	var s state
	for _, name := range names {
		switch {
		case name == hookOutput:
			err = s.readOutput(t, table)
		case isOurs(name):
			s.chains = append(s.chains, name)
			if name == natChain || name == filterChain {
				s.rules, err = listRules(t, table, name)
			}
		case strings.HasPrefix(name, kubernetesChains):
			s.kubernetes = name
			s.foreign = true
		case !slices.Contains(builtInChains[:], name):
			s.foreign = true
		}
		if err != nil {
			return state{}, err
		}
	}
	return s, nil
}

// readOutput reads OUTPUT, the one chain from which rules of ours are reached.
func (s *state) readOutput(t tables, table string) error {
	rules, err := listRules(t, table, hookOutput)
	for _, rule := range rules {
		if isOurs(jumpTarget(rule)) {
			s.jumps = append(s.jumps, rule)
		} else {
			s.foreign = true
		}
	}
	s.output = rules
	return err
}

// listRules returns a chain's rules without the line that declares it.
func listRules(t tables, table, chain string) ([]string, error) {
	lines, err := t.List(table, chain)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(lines, func(l string) bool { return !strings.HasPrefix(l, "-A ") }), nil
}

// jumpTarget is where a rule sends a packet: the word after -j or -g. Empty: nowhere.
func jumpTarget(rule string) string {
	w := words(rule)
	for i := 0; i+1 < len(w); i++ {
		switch w[i] {
		case "-j", "-g":
			return w[i+1]
		case "--comment": // its value can be anything, "-j" too
			i++
		}
	}
	return ""
}

// words splits a rule as iptables-restore does. A quoted comment is one word:
// what it says must not be taken for a jump.
func words(rule string) []string {
	var out []string
	var word strings.Builder
	quoted, escaped, open := false, false, false
	for _, r := range rule {
		switch {
		case escaped:
			word.WriteRune(r)
			escaped = false
		case r == '\\' && quoted:
			escaped = true
		case r == '"':
			quoted, open = !quoted, true
		case r == ' ' && !quoted:
			if open {
				out = append(out, word.String())
				word.Reset()
			}
			open = false
		default:
			word.WriteRune(r)
			open = true
		}
	}
	if open {
		out = append(out, word.String())
	}
	return out
}

// canonical is a rule in a form that does not depend on the version and backend
// that printed it: options sorted, module loads left out, /32 undone. The
// matches of one rule are a conjunction, so that their order says nothing.
func canonical(rule string) string {
	w := words(rule)
	var options []string
	for i := 0; i < len(w); i++ {
		negated := len(options) > 0 && options[len(options)-1] == "!"
		switch {
		case w[i] == "-m":
			i++
		case len(options) == 0 || !negated && (w[i] == "!" || strings.HasPrefix(w[i], "-")):
			options = append(options, w[i])
		default:
			options[len(options)-1] += " " + strings.TrimSuffix(w[i], "/32")
		}
	}
	slices.Sort(options)
	return strings.Join(options, " ")
}

func hostPrefix(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
