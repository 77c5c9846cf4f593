package netrules

import (
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
}

// survey finds a backend and reads its tables.
func survey(ctx context.Context, backend Backend) candidate {
	c := candidate{backend: backend}
	t, err := findTool(ctx, backend)
	if err == nil {
		err = useReadableLock()
	}
	if missing := missingCapability(backend); err == nil && missing != "" {
		cause := fmt.Sprintf("the capability %s is missing, which iptables-%s needs", missing, backend)
		err = &Error{MissingCapability, cause, capabilityRemedy(backend)}
	}
	if err == nil {
		err = c.read(t)
	}
	if err != nil {
		c.err = err
		return c
	}
	c.tool = t
	return c
}

// read reads the tables of a backend.
func (c *candidate) read(t *tool) error {
	for _, table := range applyOrder {
		s, err := t.read(table)
		if err != nil {
			return err
		}
		c.ours = c.ours || len(s.chains) > 0
		c.foreign = c.foreign || table == tableNAT && s.foreign
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

// choose chooses the iptables to use from the two candidates. The first candidate is nft.
func (r *Ruleset) choose(backend Backend, found []candidate) error {
	first := slices.IndexFunc(found, func(c candidate) bool { return c.backend == backend })
	if r.auto {
		first, r.reason = preferred(found)
	}
	chosen, other := found[first], found[1-first]
	switch {
	case chosen.err != nil && r.auto:
		return neither(chosen, other)
	case chosen.err != nil:
		return chosen.err
	}
	r.tools = []*tool{chosen.tool}
	if other.tool != nil {
		r.tools = append(r.tools, other.tool)
	}
	return nil
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
