package netrules

import (
	"context"
	"fmt"
	"slices"
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
	auto   bool
	reason string
	// unseen says why the other backend's rules cannot be read. Nil: they can, or
	// there are none.
	unseen error
}

// Mode is the backend in use.
func (r *Ruleset) Mode() Mode { return r.backends[0].mode }

// Reason says what decided for that backend, in a few words for the log.
func (r *Ruleset) Reason() string { return r.reason }

// Warning says what could not be seen. Empty: nothing.
func (r *Ruleset) Warning() string {
	if r.unseen == nil {
		return ""
	}
	return r.unseen.Error()
}

// Open finds the backend to use, and refuses a node's own namespace with an
// *[Error] of [HostNetwork]. It installs nothing. With ctx, all reading of rules ends:
// also that of the Ruleset.
//
// Auto takes the backend that holds nat rules in this namespace already, ours or
// azure-workload-identity's before anybody else's: between rules of both
// backends, the kernel asks first those that were registered last. Where neither
// holds any it takes nft, or legacy where nft does not work.
func Open(ctx context.Context, o Options) (*Ruleset, error) {
	if err := useReadableLock(); err != nil {
		return nil, err
	}
	found := []candidate{survey(ctx, ModeNFT), survey(ctx, ModeLegacy)}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("looking for iptables: %w", err)
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

// Apply makes the namespace's rules the planned ones, and reads them back. On
// error they are what they were, or reject more.
func (r *Ruleset) Apply(ctx context.Context, p Plan) error {
	if err := r.backends[0].apply(ctx, p); err != nil {
		if err := r.fallBack(ctx, p, err); err != nil {
			return err
		}
	}
	for _, b := range r.backends[1:] {
		if err := b.remove(ctx); err != nil {
			return err
		}
	}
	return nil
}

// fallBack applies the plan to the second backend, where there is a choice and
// the kernel lacks modules for the first; else it returns the first one's error.
func (r *Ruleset) fallBack(ctx context.Context, p Plan, first error) error {
	if !r.auto || len(r.backends) < 2 || !kindIs(first, MissingModule) {
		return first
	}
	if second := r.backends[1].apply(ctx, p); second != nil {
		return fmt.Errorf("%w; then %w", first, second)
	}
	r.reason = "the other one lacks kernel modules: " + first.Error()
	slices.Reverse(r.backends)
	return nil
}

// Check reports, as an *[Error] of [RulesDiffer], the first way in which the
// namespace's rules are not the planned ones. It is an error too that rules of the
// other backend cannot be seen, where the kernel has tables of it here: an older
// redirect, or somebody else's, may be among them.
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
	if r.unseen != nil {
		return fmt.Errorf("the rules of iptables-%s are as planned, but %w", r.Mode(), r.unseen)
	}
	return nil
}

// Remove takes away everything of ours and of azure-workload-identity's, on both
// backends, and nothing else. It is an error that rules of a backend cannot be
// seen: ours may be among them.
func (r *Ruleset) Remove(ctx context.Context) error {
	for _, b := range r.backends {
		if err := b.remove(ctx); err != nil {
			return err
		}
	}
	return r.unseen
}
