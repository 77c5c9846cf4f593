package netrules

import (
	"context"
	"fmt"
	"slices"
)

// Options configures [Open].
type Options struct {
	// Backend is the backend to use. Empty means [Auto].
	Backend Backend

	// Force continues in a network namespace that seems to be a node's own.
	Force bool
}

// Ruleset is the iptables rules of this process's network namespace.
type Ruleset struct {
	// backends are the backend to use, and after it the other one if it is usable.
	tools []*tool
	// auto allows the second backend if the kernel does not support the first.
	auto   bool
	reason string
	// unseen is why the other backend's rules cannot be read. It is nil if they can be
	// read, or if there are none.
	unseen error
}

// Backend returns the backend in use.
func (r *Ruleset) Backend() Backend { return r.tools[0].backend }

// Reason returns why this backend was chosen, in a few words for the log.
func (r *Ruleset) Reason() string { return r.reason }

// Warning returns which rules cannot be read, or "" if all can.
func (r *Ruleset) Warning() string {
	if r.unseen == nil {
		return ""
	}
	return r.unseen.Error()
}

// Open chooses the backend to use. In a node's own namespace it returns an *[Error] of
// [HostNetwork]. It changes no rules. When ctx is done, all reading of rules ends, also by the
// methods of the Ruleset.
//
// Auto chooses the backend that has nat rules in this namespace already: a backend with
// rules of this package or of azure-workload-identity before one with other rules, because
// of the rules of both backends, the kernel applies those first that were registered last.
// If neither has any, it chooses nft, or legacy if nft does not work.
func Open(ctx context.Context, o Options) (*Ruleset, error) {
	if err := useReadableLock(); err != nil {
		return nil, err
	}
	found := []candidate{survey(ctx, NFT), survey(ctx, Legacy)}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("looking for iptables: %w", err)
	}
	if reason := hostNetwork(found); reason != "" && !o.Force {
		return nil, hostNetworkError(reason)
	}
	return choose(o.Backend, found)
}

// Apply installs the planned rules and reads them back. After an error the rules are unchanged,
// or reject more than before.
func (r *Ruleset) Apply(ctx context.Context, p Plan) error {
	if err := r.tools[0].apply(ctx, p); err != nil {
		if err := r.fallBack(ctx, p, err); err != nil {
			return err
		}
	}
	for _, b := range r.tools[1:] {
		if err := b.remove(ctx); err != nil {
			return err
		}
	}
	return nil
}

// fallBack applies the plan to the second backend if the backend is auto and the kernel lacks
// modules for the first. Otherwise it returns the first backend's error.
func (r *Ruleset) fallBack(ctx context.Context, p Plan, first error) error {
	if !r.auto || len(r.tools) < 2 || !kindIs(first, MissingModule) {
		return first
	}
	if second := r.tools[1].apply(ctx, p); second != nil {
		return fmt.Errorf("%w; then %w", first, second)
	}
	r.reason = "the kernel lacks modules for the other backend: " + first.Error()
	slices.Reverse(r.tools)
	return nil
}

// Check returns the first difference between the namespace's rules and the plan, as an *[Error]
// of [RulesDiffer]. It also returns an error if the kernel has tables of the other backend in
// this namespace that cannot be read: they may contain an older redirect or another one.
func (r *Ruleset) Check(p Plan) error {
	if err := r.tools[0].check(p); err != nil {
		return err
	}
	for _, b := range r.tools[1:] {
		for _, table := range applyOrder {
			s, err := b.read(table)
			if err != nil {
				return err
			}
			if len(s.chains) > 0 {
				return differ(b.backend, table, "it has the chain "+s.chains[0]+", and the other backend has the redirect")
			}
		}
	}
	if r.unseen != nil {
		return fmt.Errorf("the rules of iptables-%s are as planned, but %w", r.Backend(), r.unseen)
	}
	return nil
}

// Remove removes the chains of this package and of azure-workload-identity from both backends,
// and nothing else. It returns an error if the rules of a backend cannot be read, because
// they may contain such chains.
func (r *Ruleset) Remove(ctx context.Context) error {
	for _, b := range r.tools {
		if err := b.remove(ctx); err != nil {
			return err
		}
	}
	return r.unseen
}
