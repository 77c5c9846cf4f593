package netrules

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/google/nftables"
)

// nftState is what nf_tables has in a namespace, as far as this package needs it.
type nftState struct {
	// table is true if the native table exists; chains are its chains.
	table  bool
	chains []*nftables.Chain
	// old is the chains of iptables-nft that are ours.
	old leftovers
	// kubernetes is a chain or table of kubelet or kube-proxy. It is empty if there is none.
	kubernetes string
}

// kubeProxyTable is the table of kube-proxy in its nftables mode.
const kubeProxyTable = "kube-proxy"

// leftovers are the chains of this package and of azure-workload-identity in the tables of
// iptables-nft, and the rules of OUTPUT that jump to them.
type leftovers struct {
	jumps  []*nftables.Rule
	chains []*nftables.Chain
}

// read reads the state. It decodes no rule of another program.
func (k kernel) read() (s nftState, err error) {
	all, err := k.listChains()
	if err != nil {
		return s, explainReading(err)
	}
	for _, c := range all {
		switch {
		case c.Table.Family == nftables.TableFamilyINet && c.Table.Name == nativeTable:
			s.table = true
			s.chains = append(s.chains, c)
		case strings.HasPrefix(c.Name, kubernetesChains):
			s.kubernetes = "the chain " + c.Name
		case c.Table.Name == kubeProxyTable:
			s.kubernetes = "the table " + c.Table.Name
		case isLeftover(c):
			s.old.chains = append(s.old.chains, c)
		}
	}
	if s.old.jumps, err = k.jumpsTo(s.old.chains); err != nil {
		return s, explainReading(err)
	}
	return s, nil
}

func isLeftover(c *nftables.Chain) bool {
	return c.Table.Family == nftables.TableFamilyIPv4 && slices.Contains(applyOrder[:], c.Table.Name) && isOurs(c.Name)
}

// jumpsTo returns the rules of OUTPUT that jump to the chains.
func (k kernel) jumpsTo(chains []*nftables.Chain) ([]*nftables.Rule, error) {
	var jumps []*nftables.Rule
	var seen []string
	for _, c := range chains {
		if slices.Contains(seen, c.Table.Name) {
			continue
		}
		seen = append(seen, c.Table.Name)
		rules, err := k.listRules(c.Table.Family, c.Table.Name, hookOutput)
		if err != nil && !errors.Is(err, syscall.ENOENT) { // there may be no chain OUTPUT
			return nil, err
		}
		for _, r := range rules {
			if isOurs(r.jumpsTo()) {
				jumps = append(jumps, &nftables.Rule{Table: c.Table, Chain: &nftables.Chain{Name: hookOutput}, Handle: r.handle})
			}
		}
	}
	return jumps, nil
}

// stageRemoval adds the removal to the batch of a connection.
func (l leftovers) stageRemoval(conn *nftables.Conn) error {
	for _, r := range l.jumps {
		if err := conn.DelRule(r); err != nil {
			return err
		}
	}
	for _, c := range l.chains {
		conn.FlushChain(c)
	}
	for _, c := range l.chains {
		conn.DelChain(c)
	}
	return nil
}

// any reports whether there is something to remove.
func (s nftState) any() bool { return s.table || len(s.old.chains) > 0 }

// apply installs the table, removes the rules of earlier versions in the same transaction, and
// reads the table back. It tries again if another process changed the rules meanwhile.
func (k kernel) apply(t nftTable) error {
	var err error
	for range maxAttempts {
		if err = k.applyOnce(t); !kindIs(err, RulesDiffer) {
			return err
		}
	}
	return err
}

func (k kernel) applyOnce(t nftTable) error {
	now, err := k.read()
	if err != nil {
		return err
	}
	if err := k.explainCommit(t, now, k.commit(&t, now.old)); err != nil {
		return err
	}
	return k.check(t)
}

// remove removes the table and the rules of earlier versions.
func (k kernel) remove() error {
	var err error
	for range maxAttempts {
		var now nftState
		if now, err = k.read(); err != nil {
			return err
		}
		if !now.any() {
			return nil
		}
		if err = k.explainCommit(nftTable{}, now, k.commit(nil, now.old)); !kindIs(err, RulesDiffer) {
			return err
		}
	}
	return err
}

// removeTable removes the table only.
func (k kernel) removeTable() error {
	return k.explainCommit(nftTable{}, nftState{}, k.commit(nil, leftovers{}))
}

// check returns the first difference between the native table and the planned one.
func (k kernel) check(t nftTable) error {
	now, err := k.read()
	if err != nil {
		return err
	}
	difference, err := k.difference(t, now)
	if err != nil {
		return explainReading(err)
	}
	if difference != "" {
		return differ(Native, nativeTable, difference)
	}
	return nil
}

// difference returns the first difference, or "" if there is none.
func (k kernel) difference(t nftTable, now nftState) (string, error) {
	if !now.table {
		return "it does not exist", nil
	}
	for _, c := range now.chains {
		if !slices.ContainsFunc(t.chains, func(planned nftChain) bool { return planned.name == c.Name }) {
			return "it has the chain " + c.Name + ", which is not planned", nil
		}
	}
	for _, c := range t.chains {
		i := slices.IndexFunc(now.chains, func(found *nftables.Chain) bool { return found.Name == c.name })
		if i < 0 {
			return "there is no chain " + c.name, nil
		}
		if difference := c.hookDifference(now.chains[i]); difference != "" {
			return difference, nil
		}
		rules, err := k.listRules(nftables.TableFamilyINet, nativeTable, c.name)
		if difference := c.ruleDifference(rules); err != nil || difference != "" {
			return difference, err
		}
	}
	return k.setDifference(t.sets)
}

// hookDifference compares where the chain is called.
func (c nftChain) hookDifference(got *nftables.Chain) string {
	switch {
	case got.Hooknum == nil || got.Priority == nil || *got.Hooknum != *nftables.ChainHookOutput || got.Type != c.kind:
		return fmt.Sprintf("%s is not a %s chain of the hook output", c.name, c.kind)
	case *got.Priority != c.priority:
		return fmt.Sprintf("%s has the priority %d instead of %d", c.name, *got.Priority, c.priority)
	case got.Policy == nil || *got.Policy != nftables.ChainPolicyAccept:
		return fmt.Sprintf("%s has not the policy accept", c.name)
	}
	return ""
}

func (c nftChain) ruleDifference(got []kernelRule) string {
	if len(got) != len(c.rules) {
		return fmt.Sprintf("%s has %d rules instead of %d", c.name, len(got), len(c.rules))
	}
	for i, planned := range c.rules {
		if !got[i].is(planned) {
			return fmt.Sprintf("rule %d of %s is not %q", i+1, c.name, planned)
		}
	}
	return ""
}

func (k kernel) setDifference(sets []nftSet) (string, error) {
	conn, err := k.connect()
	if err != nil {
		return "", err
	}
	found, err := conn.GetSets(&nftables.Table{Name: nativeTable, Family: nftables.TableFamilyINet})
	if err != nil || len(found) != len(sets) {
		return fmt.Sprintf("it has %d sets instead of %d", len(found), len(sets)), err
	}
	for _, s := range sets {
		i := slices.IndexFunc(found, func(f *nftables.Set) bool { return f.Name == s.name })
		if i < 0 {
			return "there is no set " + s.name, nil
		}
		elements, err := conn.GetSetElements(found[i])
		if err != nil || !s.sameElements(elements) {
			return "the set " + s.name + " has other elements", err
		}
	}
	return "", nil
}

// InstallIn installs the redirect and the port guard by the native backend in the network
// namespace of a file, and reads them back. It replaces an earlier redirect. It makes no
// connection: see [Validate]. In a namespace with chains of kubelet or kube-proxy it returns an
// *[Error] of [HostNetwork].
func InstallIn(netns *os.File, c Config) error {
	k := kernel{netns: int(netns.Fd())}
	now, err := k.read()
	switch {
	case err != nil:
		return err
	case now.kubernetes != "":
		return hostNetworkError("it has " + now.kubernetes + " of kubelet or kube-proxy")
	}
	return k.apply(native(c))
}

// CheckIn returns an *[Error] of [RulesDiffer] unless the namespace of a file has the rules of
// InstallIn, and no other rules in their table.
func CheckIn(netns *os.File, c Config) error {
	return kernel{netns: int(netns.Fd())}.check(native(c))
}
