package netrules

import (
	"cmp"
	"context"
	"errors"
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

// Ruleset is the rules of this process's network namespace.
type Ruleset struct {
	// kernel is nf_tables, and nft is what it had when the rules were read. nftErr is not nil
	// if the kernel has no nf_tables.
	kernel kernel
	nft    nftState
	nftErr error

	// legacy is what iptables-legacy had when the rules were read. If it has chains of ours,
	// legacyTool removes them, or has the reason why it cannot.
	legacy     legacyState
	legacyTool candidate

	// tools are the iptables to use, and after it the other one if it is usable. There are
	// none while the native backend is in use. survey finds them.
	tools  []*tool
	survey func(context.Context, Backend) candidate

	// auto allows another backend if the kernel does not support the first.
	auto   bool
	reason string
}

// Backend returns the backend in use.
func (r *Ruleset) Backend() Backend {
	if len(r.tools) == 0 {
		return Native
	}
	return r.tools[0].backend
}

// Reason returns why this backend was chosen, in a few words for the log.
func (r *Ruleset) Reason() string { return r.reason }

// Guard reports whether the backend in use has the port guard.
func (r *Ruleset) Guard() bool { return r.Backend() == Native }

// Open reads the rules and chooses the backend to use. In a node's own namespace it returns an
// *[Error] of [HostNetwork]. It changes no rules. When ctx is done, all reading by iptables ends,
// also by the methods of the Ruleset.
//
// Auto chooses the native backend. If the kernel does not support it, [Ruleset.Apply] uses an
// iptables backend instead: one that has nat rules in this namespace already, or else nft, or
// else legacy. Without the capability to change rules no backend works, and there is none to
// choose.
func Open(ctx context.Context, o Options) (*Ruleset, error) {
	if reason := initialNamespace(); reason != "" && !o.Force {
		return nil, hostNetworkError(reason)
	}
	r := &Ruleset{survey: survey, auto: o.Backend == Auto || o.Backend == "", reason: "set by --backend"}
	if r.auto {
		r.reason = "the kernel supports it"
	}
	if err := r.read(ctx); err != nil {
		return nil, err
	}
	if found := cmp.Or(r.nft.kubernetes, r.legacy.kubernetes); found != "" && !o.Force {
		return nil, hostNetworkError("it has " + found + " of kubelet or kube-proxy")
	}
	if o.Backend == NFT || o.Backend == Legacy {
		return r, r.openTools(ctx, o.Backend)
	}
	return r, nil
}

// read reads the rules of all backends, without iptables.
func (r *Ruleset) read(ctx context.Context) (err error) {
	if r.nft, err = r.kernel.read(); kindIs(err, MissingModule) {
		r.nftErr = err
	} else if err != nil {
		return err
	}
	if r.legacy, err = readLegacy(); err != nil {
		return err
	}
	if len(r.legacy.ours) > 0 {
		r.legacyTool = r.survey(ctx, Legacy)
	}
	return nil
}

// openTools finds the iptables of a backend, and chooses one of them for [Auto].
func (r *Ruleset) openTools(ctx context.Context, backend Backend) error {
	found := []candidate{r.survey(ctx, NFT), r.survey(ctx, Legacy)}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("looking for iptables: %w", err)
	}
	return r.choose(backend, found)
}

// Apply installs the planned rules and reads them back, and then removes those of the other
// backends. After an error the rules are unchanged, or reject more than before.
func (r *Ruleset) Apply(ctx context.Context, p Plan) error {
	if err := r.canRemoveLegacy(); err != nil {
		return err
	}
	if err := r.applyOwn(ctx, p); err != nil {
		return err
	}
	return r.removeOthers(ctx)
}

// applyOwn installs the planned rules with the backend in use, or with another one if the kernel
// does not support it.
func (r *Ruleset) applyOwn(ctx context.Context, p Plan) error {
	if r.Backend() == Native {
		err := r.nftErr
		if err == nil {
			err = r.kernel.apply(p.native)
		}
		if err == nil {
			return nil
		}
		if err := r.leaveNative(ctx, err); err != nil {
			return err
		}
	}
	if err := r.tools[0].apply(ctx, p); err != nil {
		return r.fallBack(ctx, p, err)
	}
	return nil
}

// canRemoveLegacy returns an error if iptables-legacy has chains of ours that cannot be removed.
func (r *Ruleset) canRemoveLegacy() error {
	if len(r.legacy.ours) == 0 || r.legacyTool.err == nil || r.Backend() == Legacy {
		return nil
	}
	e, ok := errors.AsType[*Error](r.legacyTool.err)
	if !ok {
		return r.legacyTool.err
	}
	return &Error{e.Kind, fmt.Sprintf("iptables-legacy has the chain %s of an earlier redirect, which must be removed: %s", r.legacy.ours[0], e.Cause), e.Remedy}
}

// leaveNative opens iptables after an error of the native backend, if the backend is auto and the
// kernel does not support the native one. Otherwise it returns the error.
func (r *Ruleset) leaveNative(ctx context.Context, native error) error {
	if !r.auto || !kindIs(native, MissingModule) {
		return native
	}
	if err := r.openTools(ctx, Auto); err != nil {
		return also(native, err)
	}
	r.reason = fmt.Sprintf("%s; not native: %v", r.reason, native)
	return nil
}

// also adds the cause of a second error to the first, whose kind and remedy remain.
func also(first, second error) error {
	e, ok := errors.AsType[*Error](first)
	if !ok {
		return fmt.Errorf("%w; %w", first, second)
	}
	return &Error{e.Kind, e.Cause + "; " + second.Error(), e.Remedy}
}

// fallBack applies the plan to the second iptables if the backend is auto and the kernel lacks
// modules for the first. Otherwise it returns the first one's error.
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

// removeOthers removes the rules of all backends but the one in use. Its rules are in place by
// then: there is no moment without a redirect.
func (r *Ruleset) removeOthers(ctx context.Context) error {
	for _, t := range r.tools[min(1, len(r.tools)):] {
		if err := t.remove(ctx); err != nil {
			return err
		}
	}
	switch b := r.Backend(); {
	case b == Native && len(r.legacy.ours) > 0:
		return r.legacyTool.tool.remove(ctx)
	case b == NFT && r.nft.table:
		return r.kernel.removeTable()
	case b == Legacy && r.nft.any():
		return r.kernel.remove()
	}
	return nil
}

// Check returns the first difference between the namespace's rules and the plan, as an *[Error]
// of [RulesDiffer]. If the backend is auto, it checks the one that has the redirect.
func (r *Ruleset) Check(ctx context.Context, p Plan) error {
	if r.auto && (r.nftErr != nil || !r.nft.table && len(r.nft.old.chains)+len(r.legacy.ours) > 0) {
		if err := r.openTools(ctx, Auto); err != nil {
			return err
		}
	}
	if err := r.checkOwn(p); err != nil {
		return err
	}
	switch b := r.Backend(); {
	case b != Native && r.nft.table:
		return differ(Native, nativeTable, "it exists beside the redirect of iptables")
	case b != NFT && len(r.nft.old.chains) > 0:
		c := r.nft.old.chains[0]
		return differ(NFT, c.Table.Name, "it has the chain "+c.Name+", and another backend has the redirect")
	case b != Legacy && len(r.legacy.ours) > 0:
		return differ(Legacy, tableNAT+" or "+tableFilter, "it has the chain "+r.legacy.ours[0]+", and another backend has the redirect")
	}
	return nil
}

func (r *Ruleset) checkOwn(p Plan) error {
	switch {
	case r.Backend() != Native:
		return r.tools[0].check(p)
	case r.nftErr != nil:
		return r.nftErr
	}
	return r.kernel.check(p.native)
}

// Remove removes the native table, and the chains of this package and of azure-workload-identity
// from both iptables backends, and nothing else.
func (r *Ruleset) Remove(ctx context.Context) error {
	for _, t := range r.tools {
		if err := t.remove(ctx); err != nil {
			return err
		}
	}
	if r.nft.any() {
		if err := r.kernel.remove(); err != nil {
			return err
		}
	}
	if len(r.legacy.ours) == 0 {
		return nil
	}
	if err := r.canRemoveLegacy(); err != nil {
		return err
	}
	return r.legacyTool.tool.remove(ctx)
}
