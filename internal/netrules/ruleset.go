package netrules

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Options says how to reach the namespace's rules.
type Options struct {
	// Mode is the backend to use. Empty means [ModeAuto].
	Mode Mode

	// Force goes on in what looks like a node's own network namespace.
	Force bool
}

// Ruleset is the iptables of the network namespace that the process is in.
type Ruleset struct {
	// backends holds the one to use first, then the other one where it is there.
	backends []*backend
	// auto allows the second backend where the kernel does not support the first.
	auto    bool
	reason  string
	warning string
}

// Mode is the backend in use.
func (r *Ruleset) Mode() Mode { return r.backends[0].mode }

// Reason says what decided for that backend, in a few words for the log.
func (r *Ruleset) Reason() string { return r.reason }

// Warning says what could not be seen. Empty: nothing.
func (r *Ruleset) Warning() string { return r.warning }

// Open finds the backend to use, and refuses a node's own namespace with an
// *[Error] of [HostNetwork]. It installs nothing.
//
// Auto takes the backend that holds nat rules in this namespace already, ours or
// azure-workload-identity's before anybody else's: between rules of both
// backends, the kernel asks first those that were registered last. Where neither
// holds any it takes nft, or legacy where nft does not work.
func Open(o Options) (*Ruleset, error) {
	if err := useReadableLock(); err != nil {
		return nil, err
	}
	var found []candidate
	for _, mode := range []Mode{ModeNFT, ModeLegacy} {
		found = append(found, survey(mode))
	}
	if reason := hostNetwork(found); reason != "" && !o.Force {
		return nil, &Error{
			Kind:   HostNetwork,
			Cause:  "refusing to change the rules of a node's own network namespace: " + reason,
			Remedy: "keep the proxy out of pods with hostNetwork: true; where this is a pod after all (alone in a virtual machine, say), use --force",
		}
	}
	return choose(o.Mode, found)
}

// candidate is a backend that was looked for.
type candidate struct {
	mode Mode
	// backend is nil where err says why it cannot be used.
	backend *backend
	err     error
	// nat is what its nat table holds.
	nat state
	// kubernetes names a chain of kubelet or kube-proxy. Empty: there is none.
	kubernetes string
}

// survey finds a backend and looks at what it holds.
func survey(mode Mode) candidate {
	c := candidate{mode: mode}
	b, err := findBackend(mode)
	if err != nil {
		c.err = err
		return c
	}
	if missing := missingCapability(mode); missing != "" {
		c.err = &Error{
			Kind:   MissingCapability,
			Cause:  fmt.Sprintf("the capability %s is missing, which iptables-%s needs", missing, mode),
			Remedy: capabilityRemedy(mode),
		}
		return c
	}
	for _, table := range []string{tableNAT, tableFilter, "mangle"} {
		s, err := b.read(table)
		if err != nil {
			c.err = err
			return c
		}
		if table == tableNAT {
			c.nat = s
		}
		if s.kubernetes != "" {
			c.kubernetes = s.kubernetes
			break
		}
	}
	c.backend = b
	return c
}

// weight ranks what a backend holds already: nothing, somebody's nat rules, ours.
func (c candidate) weight() int {
	switch {
	case c.backend == nil:
		return -1
	case len(c.nat.chains) > 0:
		return 2
	case c.nat.foreign > 0:
		return 1
	}
	return 0
}

// choose picks the backend to use from the candidates, nft first.
func choose(mode Mode, found []candidate) (*Ruleset, error) {
	r := &Ruleset{auto: mode == ModeAuto || mode == "", reason: "asked for"}
	first := slices.IndexFunc(found, func(c candidate) bool { return c.mode == mode })
	if r.auto {
		first = 0
		if found[1].weight() > found[0].weight() {
			first = 1
		}
		r.reason = [...]string{"it works here", "it holds nat rules here", "it holds the redirect here"}[max(found[first].weight(), 0)]
	}
	chosen, other := found[first], found[1-first]
	if chosen.err != nil {
		return nil, chosen.err
	}
	r.backends = append(r.backends, chosen.backend)
	if other.backend != nil {
		r.backends = append(r.backends, other.backend)
	} else if other.mode == ModeLegacy && (legacyTableExists(tableNAT) || legacyTableExists(tableFilter)) {
		r.warning = fmt.Sprintf("iptables-%s has tables here that cannot be seen: %v", other.mode, other.err)
	}
	return r, nil
}

// maxAttempts bounds how often rules are committed that somebody else changed
// between the reading and the commit. Two runs at once settle in two or three.
const maxAttempts = 5

// Apply makes the namespace's rules the planned ones, and reads them back. On
// error they are what they were, or reject more.
func (r *Ruleset) Apply(ctx context.Context, p Plan) error {
	err := r.backends[0].apply(ctx, p)
	var failure *Error
	if r.auto && len(r.backends) > 1 && errors.As(err, &failure) && failure.Kind == MissingModule {
		if second := r.backends[1].apply(ctx, p); second != nil {
			return &Error{failure.Kind, failure.Cause + "; then " + second.Error(), failure.Remedy}
		}
		r.reason = "the other one lacks kernel modules: " + failure.Cause
		slices.Reverse(r.backends)
		err = nil
	}
	if err != nil {
		return err
	}
	for _, b := range r.backends[1:] {
		if err := b.remove(ctx); err != nil {
			return err
		}
	}
	return r.Check(p)
}

// Check reports, as an *[Error] of [RulesDiffer], the first way in which the
// namespace's rules are not the planned ones.
func (r *Ruleset) Check(p Plan) error {
	if err := r.backends[0].check(p); err != nil {
		return err
	}
	for _, b := range r.backends[1:] {
		for _, table := range applyOrder {
			s, err := b.read(table)
			if err != nil {
				return err
			}
			if len(s.chains) > 0 {
				return differ(b.mode, table, "it holds "+s.chains[0]+", and so does the other backend")
			}
		}
	}
	return nil
}

// Remove takes away everything of ours and of azure-workload-identity's, on both
// backends, and nothing else.
func (r *Ruleset) Remove(ctx context.Context) error {
	for _, b := range r.backends {
		if err := b.remove(ctx); err != nil {
			return err
		}
	}
	return nil
}

// read reads a table. A legacy table that does not exist is left so: to list it
// would make it.
func (b *backend) read(table string) (state, error) {
	if b.inUse != nil && !b.inUse(table) {
		return state{}, nil
	}
	return readState(b.tables, table)
}

// apply commits the plan until it reads back as it should.
func (b *backend) apply(ctx context.Context, p Plan) error {
	var err error
	for range maxAttempts {
		if err = b.applyOnce(ctx, p); err == nil {
			err = b.check(p)
		}
		var failure *Error
		if !errors.As(err, &failure) || failure.Kind != RulesDiffer {
			return err
		}
	}
	return err
}

func (b *backend) applyOnce(ctx context.Context, p Plan) error {
	for _, table := range applyOrder {
		now, err := b.read(table)
		if err != nil {
			return err
		}
		if err := b.restore(ctx, p.commit(table, now)); err != nil {
			return err
		}
	}
	return nil
}

func (b *backend) remove(ctx context.Context) error {
	for _, table := range removeOrder {
		now, err := b.read(table)
		if err != nil {
			return err
		}
		if input := removal(table, now); input != "" {
			if err := b.restore(ctx, input); err != nil {
				return err
			}
		}
	}
	return nil
}

// check compares both tables with the plan.
func (b *backend) check(p Plan) error {
	for _, table := range applyOrder {
		now, err := b.read(table)
		if err != nil {
			return err
		}
		if difference := p.chain(table).difference(now); difference != "" {
			return differ(b.mode, table, difference)
		}
	}
	return nil
}

// difference says how a table's state departs from the planned chain. Empty: it
// does not.
func (c chain) difference(now state) string {
	jump := canonical("-A " + hookOutput + " -j " + c.name)
	switch {
	case !slices.Contains(now.chains, c.name):
		return "there is no chain " + c.name
	case len(now.chains) > 1:
		return "the chains of an earlier redirect are there: " + strings.Join(now.chains, " ")
	case len(now.output) == 0 || canonical(now.output[0]) != jump:
		return "the jump to " + c.name + " is not the first rule of " + hookOutput
	case len(now.jumps) > 1:
		return fmt.Sprintf("there are %d jumps to %s", len(now.jumps), c.name)
	case len(now.rules) != len(c.rules):
		return fmt.Sprintf("%s has %d rules instead of %d", c.name, len(now.rules), len(c.rules))
	}
	for i, rule := range c.rules {
		if canonical(now.rules[i]) != canonical("-A "+c.name+" "+rule) {
			return fmt.Sprintf("rule %d of %s is %q", i+1, c.name, now.rules[i])
		}
	}
	return ""
}

func differ(mode Mode, table, what string) *Error {
	return &Error{
		Kind:   RulesDiffer,
		Cause:  fmt.Sprintf("the %s table (%s) is not as planned: %s", table, mode, what),
		Remedy: "run proxy-init again, after whatever else changes this pod's rules",
	}
}
