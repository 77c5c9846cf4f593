package netrules

import (
	"net/netip"
	"slices"
	"strings"
)

// tables is the part of go-iptables that reads rules.
type tables interface {
	// ListChains returns the names of a table's chains.
	ListChains(table string) ([]string, error)
	// List returns a chain's rules as `iptables -S` prints them, after one line
	// that declares the chain.
	List(table, chain string) ([]string, error)
}

// state is the part of a table that this package needs.
type state struct {
	// chains are the existing chains of this package and of azure-workload-identity.
	chains []string
	// jumps are the rules of OUTPUT that jump to these chains.
	jumps []string
	// output is the rules of OUTPUT.
	output []string
	// rules is the rules of this package's chain.
	rules []string
	// foreign is true if other programs have chains in the table or rules in OUTPUT.
	foreign bool
}

// builtInChains are the chains that the kernel creates.
var builtInChains = [...]string{"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"}

func isOurs(chain string) bool {
	return chain == natChain || chain == filterChain || chain == azwiOutput || chain == azwiRedirect
}

// readState reads a table without changing it.
func readState(t tables, table string) (state, error) {
	names, err := t.ListChains(table)
	if err != nil {
		return state{}, err
	}
	// If the nft tool has added a base chain, the output of iptables-nft begins with a
	// comment. go-iptables stops reading there, so that our chains would seem to be missing.
	if !slices.Contains(names, hookOutput) {
		cause := "cannot read the " + table + " table: iptables does not list its chain " + hookOutput
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
		case !slices.Contains(builtInChains[:], name):
			s.foreign = true
		}
		if err != nil {
			return state{}, err
		}
	}
	return s, nil
}

// readOutput reads OUTPUT, the only built-in chain with jumps to our chains.
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

// listRules returns a chain's rules, without the line that declares the chain.
func listRules(t tables, table, chain string) ([]string, error) {
	lines, err := t.List(table, chain)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(lines, func(l string) bool { return !strings.HasPrefix(l, "-A ") }), nil
}

// jumpTarget returns the target of a rule, which is the word after -j or -g, or "" if the rule
// has none.
func jumpTarget(rule string) string {
	w := words(rule)
	for i := 0; i+1 < len(w); i++ {
		switch w[i] {
		case "-j", "-g":
			return w[i+1]
		case "--comment": // its value can be any text, even "-j"
			i++
		}
	}
	return ""
}

// words splits a rule into words as iptables-restore does. A quoted comment is one word, so
// that its content is not parsed as a jump.
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

// canonical returns a rule in a form that does not depend on the iptables version and backend
// that printed it: with sorted options, without -m and its module, and without /32. The order
// of the options has no meaning, since all matches of a rule must apply.
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
