package netrules

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
)

// candidate is a backend that was looked for.
type candidate struct {
	mode Mode
	// backend is nil where err says why it cannot be used.
	backend *backend
	err     error
	// ours says that it holds chains of this package, or of azure-workload-identity.
	ours bool
	// foreign says that it holds nat rules of others.
	foreign bool
	// inUse says that it has tables here, which where err is set nobody has read.
	inUse bool
	// kubernetes names a chain of kubelet or kube-proxy. Empty: there is none.
	kubernetes string
}

// survey finds a backend and looks at what it holds.
func survey(ctx context.Context, mode Mode) candidate {
	c := candidate{mode: mode}
	if mode == ModeLegacy {
		c.inUse = legacyTableExists(tableNAT) || legacyTableExists(tableFilter)
	}
	b, err := findBackend(ctx, mode)
	if err != nil {
		c.err = err
		return c
	}
	if missing := missingCapability(mode); missing != "" {
		cause := fmt.Sprintf("the capability %s is missing, which iptables-%s needs", missing, mode)
		c.err = &Error{MissingCapability, cause, capabilityRemedy(mode)}
		return c
	}
	if c.err = c.look(b); c.err == nil {
		c.backend = b
	}
	return c
}

// look reads the tables of a backend.
func (c *candidate) look(b *backend) error {
	for _, table := range applyOrder {
		s, err := b.read(table)
		if err != nil {
			return err
		}
		c.ours = c.ours || len(s.chains) > 0
		c.foreign = c.foreign || table == tableNAT && s.foreign
		c.kubernetes = cmp.Or(c.kubernetes, s.kubernetes)
	}
	// Newer kubelets mark their node's namespace in mangle only. Rules there that
	// cannot be read are no hindrance.
	if s, err := b.read("mangle"); err == nil {
		c.kubernetes = cmp.Or(c.kubernetes, s.kubernetes)
	}
	return nil
}

// What a candidate's rules say for it, least first.
const (
	unusable = iota
	usable
	weighsForeign
	weighsOurs
)

func (c candidate) weight() int {
	switch {
	case c.backend == nil:
		return unusable
	case c.ours:
		return weighsOurs
	case c.foreign:
		return weighsForeign
	}
	return usable
}

// mayHoldRules reports whether a backend that cannot be used may have rules all
// the same. Of legacy the kernel tells; nft has none where the kernel lacks it, and
// without its binary, or a capability that legacy needs too, nothing can be said.
func (c candidate) mayHoldRules() bool {
	if c.mode == ModeLegacy {
		return c.inUse
	}
	return !kindIs(c.err, MissingModule) && !kindIs(c.err, NoBinary) && !kindIs(c.err, MissingCapability)
}

// choose picks the backend to use from the two candidates, nft first.
func choose(mode Mode, found []candidate) (*Ruleset, error) {
	r := &Ruleset{auto: mode == ModeAuto || mode == "", reason: "asked for"}
	first := slices.IndexFunc(found, func(c candidate) bool { return c.mode == mode })
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
	r.backends = append(r.backends, chosen.backend)
	if other.backend != nil {
		r.backends = append(r.backends, other.backend)
	} else if other.mayHoldRules() {
		r.unseen = fmt.Errorf("iptables-%s may have rules here that cannot be seen: %w", other.mode, other.err)
	}
	return r, nil
}

// neither says why no backend works, and what would fix each. Its kind is that of
// the backend that auto would have chosen.
func neither(chosen, other candidate) error {
	first, known := errors.AsType[*Error](chosen.err)
	second, bothKnown := errors.AsType[*Error](other.err)
	if !known || !bothKnown {
		return fmt.Errorf("neither iptables backend works: %w; %w", chosen.err, other.err)
	}
	remedy := first.Remedy
	if second.Remedy != remedy && second.Kind != NoBinary {
		remedy = fmt.Sprintf("for %s: %s; or for %s: %s", chosen.mode, first.Remedy, other.mode, second.Remedy)
	}
	return &Error{first.Kind, fmt.Sprintf("neither iptables backend works: %s; %s", first.Cause, second.Cause), remedy}
}

// preferred is the index of the candidate that auto takes, and why.
func preferred(found []candidate) (int, string) {
	best := 0
	if found[1].weight() > found[0].weight() {
		best = 1
	}
	switch found[best].weight() {
	case weighsOurs:
		return best, "it holds the redirect here"
	case weighsForeign:
		return best, "it holds nat rules here"
	case unusable:
		// Neither works: of the two reasons, that of the binary that is there.
		if kindIs(found[0].err, NoBinary) {
			best = 1
		}
	}
	return best, "it works here"
}
