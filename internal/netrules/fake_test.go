package netrules

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

// fakeKernel is a stateful fake of an iptables backend: it lists the rules that were added,
// rejects unknown chains, and commits atomically.
type fakeKernel struct {
	backend Backend
	// tables has the rules of each chain of each table.
	tables map[string]map[string][]string
	// commits are the tables of the commits, in order.
	commits []string
	// unlistable makes ListChains return no chains, as go-iptables does if the output of
	// iptables-nft begins with a comment.
	unlistable bool
	// fail, if set, is called before each listing ("list nat") and commit ("commit nat"),
	// and returns the error of that step.
	fail func(step string) error
}

func newFakeKernel(backend Backend) *fakeKernel {
	return &fakeKernel{backend: backend, tables: map[string]map[string][]string{
		"filter": {"INPUT": nil, "FORWARD": nil, "OUTPUT": nil},
		"nat":    {"PREROUTING": nil, "INPUT": nil, "OUTPUT": nil, "POSTROUTING": nil},
		"mangle": {"OUTPUT": nil},
	}}
}

func (k *fakeKernel) tool() *tool {
	return &tool{backend: k.backend, tables: k, restore: k.restore}
}

func (k *fakeKernel) failing(step string) error {
	if k.fail == nil {
		return nil
	}
	return k.fail(step)
}

func (k *fakeKernel) ListChains(table string) ([]string, error) {
	if err := k.failing("list " + table); err != nil {
		return nil, err
	}
	if k.unlistable {
		return nil, nil
	}
	var names []string
	for name := range k.tables[table] {
		names = append(names, name)
	}
	slices.Sort(names)
	return names, nil
}

func (k *fakeKernel) List(table, chain string) ([]string, error) {
	rules, ok := k.tables[table][chain]
	if !ok {
		return nil, fmt.Errorf("no chain %s in %s", chain, table)
	}
	return append([]string{"-N " + chain}, rules...), nil
}

// restore commits iptables-restore --noflush input for one table.
func (k *fakeKernel) restore(_ context.Context, input string) error {
	lines := strings.Split(strings.TrimSuffix(input, "\n"), "\n")
	table := strings.TrimPrefix(lines[0], "*")
	if err := k.failing("commit " + table); err != nil {
		return err
	}
	if lines[len(lines)-1] != "COMMIT" {
		return fmt.Errorf("no COMMIT in %q", input)
	}
	next := map[string][]string{}
	for name, rules := range k.tables[table] {
		next[name] = slices.Clone(rules)
	}
	for i, line := range lines[1 : len(lines)-1] {
		if err := execute(next, line); err != nil {
			return failedRun{"committing " + table, k.backend, 1, fmt.Sprintf("line %d failed: %v", i+2, err), input, false}.classify()
		}
	}
	k.tables[table] = next
	k.commits = append(k.commits, table)
	return nil
}

// execute executes one line of input on a table's chains.
func execute(chains map[string][]string, line string) error {
	f := strings.Fields(line)
	name := f[min(1, len(f)-1)]
	if declared, ok := strings.CutPrefix(f[0], ":"); ok {
		chains[declared] = nil
		return nil
	}
	rules, known := chains[name]
	if !known {
		return fmt.Errorf("Chain '%s' does not exist", name)
	}
	if target := jumpTarget(line); isOurs(target) {
		if _, ok := chains[target]; !ok {
			return fmt.Errorf("Chain '%s' does not exist", target)
		}
	}
	rule := "-A " + name + " " + strings.TrimPrefix(strings.Join(f[2:], " "), "1 ")
	switch f[0] {
	case "-A":
		chains[name] = append(rules, rule)
	case "-I":
		chains[name] = slices.Insert(rules, 0, rule)
	case "-D":
		i := slices.Index(rules, rule)
		if i < 0 {
			return fmt.Errorf("Bad rule (does a matching rule exist in that chain?)")
		}
		chains[name] = slices.Delete(rules, i, i+1)
	case "-F":
		chains[name] = nil
	case "-X":
		return deleteChain(chains, name)
	default:
		return fmt.Errorf("unknown command %q", line)
	}
	return nil
}

func deleteChain(chains map[string][]string, name string) error {
	if len(chains[name]) > 0 {
		return fmt.Errorf("Directory not empty")
	}
	for _, rules := range chains {
		for _, rule := range rules {
			if jumpTarget(rule) == name {
				return fmt.Errorf("Too many links")
			}
		}
	}
	delete(chains, name)
	return nil
}

// add appends a rule of another program to a chain, which it creates if necessary.
func (k *fakeKernel) add(table, chain, rule string) {
	k.tables[table][chain] = append(k.tables[table][chain], "-A "+chain+" "+rule)
}

// dump returns all chains and rules in a fixed order.
func (k *fakeKernel) dump() string {
	var b strings.Builder
	for _, table := range []string{"filter", "nat"} {
		names, _ := k.ListChains(table)
		for _, name := range names {
			fmt.Fprintf(&b, "%s %s\n", table, name)
			for _, rule := range k.tables[table][name] {
				fmt.Fprintf(&b, "  %s\n", rule)
			}
		}
	}
	return b.String()
}
