package netrules

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
)

// candidate is what survey found out about a backend.
type candidate struct {
	backend Backend
	// tool is nil if the backend cannot be used, for the reason err.
	tool *tool
	err  error
	// ours is true if it has chains of this package or of azure-workload-identity.
	ours bool
	// foreign is true if it has nat rules of other programs.
	foreign bool
	// inUse is true if it has tables in this namespace. They were not read if err is set.
	inUse bool
	// kubernetes is the name of a chain of kubelet or kube-proxy. It is empty if there is none.
	kubernetes string
}

// survey finds a backend and reads its tables.
func survey(ctx context.Context, backend Backend) candidate {
	c := candidate{backend: backend}
	if backend == Legacy {
		c.inUse = legacyTableExists(tableNAT) || legacyTableExists(tableFilter)
	}
	b, err := findTool(ctx, backend)
	if err != nil {
		c.err = err
		return c
	}
	if missing := missingCapability(backend); missing != "" {
		cause := fmt.Sprintf("the capability %s is missing, which iptables-%s needs", missing, backend)
		c.err = &Error{MissingCapability, cause, capabilityRemedy(backend)}
		return c
	}
	if c.err = c.read(b); c.err == nil {
		c.tool = b
	}
	return c
}

// read reads the tables of a backend.
func (c *candidate) read(b *tool) error {
	for _, table := range applyOrder {
		s, err := b.read(table)
		if err != nil {
			return err
		}
		c.ours = c.ours || len(s.chains) > 0
		c.foreign = c.foreign || table == tableNAT && s.foreign
		c.kubernetes = cmp.Or(c.kubernetes, s.kubernetes)
	}
	// Newer kubelets have a chain in the mangle table only. This package does not use that
	// table, so an error is ignored.
	if s, err := b.read("mangle"); err == nil {
		c.kubernetes = cmp.Or(c.kubernetes, s.kubernetes)
	}
	return nil
}

// The order of preference among candidates, lowest first.
const (
	unusable = iota
	usable
	hasForeign
	hasOurs
)

func (c candidate) preference() int {
	switch {
	case c.tool == nil:
		return unusable
	case c.ours:
		return hasOurs
	case c.foreign:
		return hasForeign
	}
	return usable
}

// mayHoldRules reports whether a backend that cannot be used may have rules nevertheless. For
// legacy, the kernel lists the tables. For nft it returns false if the kernel lacks nft, and
// also, as nothing can be found out then, if the binary is missing or the capability NET_ADMIN,
// which legacy needs too.
func (c candidate) mayHoldRules() bool {
	if c.backend == Legacy {
		return c.inUse
	}
	return !kindIs(c.err, MissingModule) && !kindIs(c.err, NoBinary) && !kindIs(c.err, MissingCapability)
}

// choose chooses the backend to use from the two candidates. The first candidate is nft.
func choose(backend Backend, found []candidate) (*Ruleset, error) {
	r := &Ruleset{auto: backend == Auto || backend == "", reason: "set by --backend"}
	first := slices.IndexFunc(found, func(c candidate) bool { return c.backend == backend })
	if r.auto {
		first, r.reason = preferred(found)
	}
	chosen, other := found[first], found[1-first]
	if chosen.err != nil && r.auto {
		return nil, neither(chosen, other)
	}
	if chosen.err != nil {
		return nil, chosen.err
	}
	r.tools = append(r.tools, chosen.tool)
	if other.tool != nil {
		r.tools = append(r.tools, other.tool)
	} else if other.mayHoldRules() {
		r.unseen = fmt.Errorf("iptables-%s may have rules here that cannot be read: %w", other.backend, other.err)
	}
	return r, nil
}

// neither returns the error for two backends that do not work, with a remedy for each. Its kind
// is that of the chosen backend's error.
func neither(chosen, other candidate) error {
	first, known := errors.AsType[*Error](chosen.err)
	second, bothKnown := errors.AsType[*Error](other.err)
	if !known || !bothKnown {
		return fmt.Errorf("neither iptables backend works: %w; %w", chosen.err, other.err)
	}
	remedy := first.Remedy
	if second.Remedy != remedy && second.Kind != NoBinary {
		remedy = fmt.Sprintf("for %s: %s; or for %s: %s", chosen.backend, first.Remedy, other.backend, second.Remedy)
	}
	return &Error{first.Kind, fmt.Sprintf("neither iptables backend works: %s; %s", first.Cause, second.Cause), remedy}
}

// preferred returns the index of the candidate that Auto chooses, and the reason.
func preferred(found []candidate) (int, string) {
	best := 0
	if found[1].preference() > found[0].preference() {
		best = 1
	}
	switch found[best].preference() {
	case hasOurs:
		return best, "it already has the redirect"
	case hasForeign:
		return best, "it already has nat rules"
	case unusable:
		// Neither works. The more useful error is that of a binary that exists.
		if kindIs(found[0].err, NoBinary) {
			best = 1
		}
	}
	return best, "it works here"
}
