package netrules

import (
	"context"
	"errors"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/nftables"
)

// rulesetOn returns a Ruleset with the backends of the kernels, in their order.
func rulesetOn(kernels ...*fakeKernel) *Ruleset {
	r := &Ruleset{}
	for _, k := range kernels {
		r.tools = append(r.tools, k.tool())
	}
	return r
}

func mustApply(t *testing.T, r *Ruleset, c Config) {
	t.Helper()
	if err := r.Apply(context.Background(), NewPlan(c)); err != nil {
		t.Fatal(err)
	}
}

// meshed returns a kernel with the rules of a service mesh.
func meshed() *fakeKernel {
	k := newFakeKernel(NFT)
	k.add("nat", "MESH_OUTPUT", "-m owner --uid-owner 1337 -j RETURN")
	k.add("nat", "MESH_OUTPUT", "-p tcp -j REDIRECT --to-ports 15001")
	k.add("nat", "OUTPUT", "-p tcp -j MESH_OUTPUT")
	k.add("filter", "OUTPUT", `-m comment --comment "looks like -j IMDS_PROXY_FILTER" -j ACCEPT`)
	return k
}

// azwi adds the rules of azure-workload-identity's script after two runs.
func azwi(k *fakeKernel) {
	for range 2 {
		k.add("nat", azwiRedirect, "-p tcp -j REDIRECT --to-ports 8000")
		k.add("nat", "OUTPUT", "-d 169.254.169.254/32 -p tcp -m tcp --dport 80 -j "+azwiOutput)
		k.add("nat", azwiOutput, "-m owner --uid-owner 1501 -j ACCEPT")
		k.add("nat", azwiOutput, "-j "+azwiRedirect)
	}
}

func TestApplyIsIdempotent(t *testing.T) {
	once := meshed()
	mustApply(t, rulesetOn(once), forwarding())

	moved := forwarding()
	moved.ProxyPort = 9000
	for name, before := range map[string][]Config{
		"ten runs":       slices.Repeat([]Config{forwarding()}, 10),
		"another port":   {moved},
		"another mode":   {sealed()},
		"a deny list":    {denying(t, sealed(), "168.63.129.16")},
		"back and forth": {sealed(), moved, sealed()},
		"one run":        nil,
	} {
		t.Run(name, func(t *testing.T) {
			k := meshed()
			r := rulesetOn(k)
			for _, c := range before {
				mustApply(t, r, c)
			}
			mustApply(t, r, forwarding())
			if got, want := k.dump(), once.dump(); got != want {
				t.Errorf("got rules:\n%s\nwant the rules after one run:\n%s", got, want)
			}
		})
	}
}

func TestApplyPutsJumpFirst(t *testing.T) {
	k := meshed()
	mustApply(t, rulesetOn(k), forwarding())
	for table, want := range map[string]string{"nat": "-A OUTPUT -j " + natChain, "filter": "-A OUTPUT -j " + filterChain} {
		if got := k.tables[table]["OUTPUT"][0]; got != want {
			t.Errorf("first in OUTPUT of %s: %q, want %q", table, got, want)
		}
	}
}

func TestApplyRepairsChanges(t *testing.T) {
	for name, damage := range map[string]func(*fakeKernel){
		"a rule before ours": func(k *fakeKernel) {
			k.tables["nat"]["OUTPUT"] = slices.Insert(k.tables["nat"]["OUTPUT"], 0, "-A OUTPUT -p tcp -j MESH_OUTPUT")
		},
		"the jump twice":         func(k *fakeKernel) { k.add("nat", "OUTPUT", "-j "+natChain) },
		"a narrower jump":        func(k *fakeKernel) { k.add("filter", "OUTPUT", "-p udp -j "+filterChain) },
		"no jump":                func(k *fakeKernel) { k.tables["nat"]["OUTPUT"] = nil },
		"the chain emptied":      func(k *fakeKernel) { k.tables["filter"][filterChain] = nil },
		"another rule":           func(k *fakeKernel) { k.add("filter", filterChain, "-j ACCEPT") },
		"rules out of order":     func(k *fakeKernel) { slices.Reverse(k.tables["filter"][filterChain]) },
		"the old redirect again": azwi,
	} {
		t.Run(name, func(t *testing.T) {
			k := meshed()
			r := rulesetOn(k)
			mustApply(t, r, forwarding())
			damage(k)
			err := r.Check(t.Context(), NewPlan(forwarding()))
			if got := kindOf(err); got != RulesDiffer {
				t.Errorf("Check before Apply: %v, want RulesDiffer", err)
			}
			mustApply(t, r, forwarding())
			if err := r.Check(t.Context(), NewPlan(forwarding())); err != nil {
				t.Errorf("Check after Apply: %v", err)
			}
		})
	}
}

func TestCheckNamesRule(t *testing.T) {
	k := newFakeKernel(NFT)
	r := rulesetOn(k)
	mustApply(t, r, forwarding())
	k.tables["filter"][filterChain][1] = "-A " + filterChain + " -j ACCEPT"
	want := "rule 2 of " + filterChain + ` is "-A ` + filterChain + ` -j ACCEPT"`
	if err := r.Check(t.Context(), NewPlan(forwarding())); kindOf(err) != RulesDiffer || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want RulesDiffer, %s", err, want)
	}
}

func TestApplyReplacesAzureWorkloadIdentity(t *testing.T) {
	k := newFakeKernel(NFT)
	azwi(k)
	mustApply(t, rulesetOn(k), forwarding())
	if dump := k.dump(); strings.Contains(dump, "AZWI") {
		t.Errorf("rules of azure-workload-identity were not removed:\n%s", dump)
	}
}

func TestApplyRemovesFromOtherBackend(t *testing.T) {
	nft, legacy := newFakeKernel(NFT), newFakeKernel(Legacy)
	untouched := legacy.dump()
	mustApply(t, rulesetOn(legacy), sealed())
	azwi(legacy)
	mustApply(t, rulesetOn(nft, legacy), forwarding())
	if got := legacy.dump(); got != untouched {
		t.Errorf("rules of the other backend:\n%s", got)
	}
	if want := []string{"filter", "nat"}; !slices.Equal(nft.commits, want) {
		t.Errorf("commits %v, want %v", nft.commits, want)
	}
	if err := rulesetOn(nft, legacy).Check(t.Context(), NewPlan(forwarding())); err != nil {
		t.Errorf("Check: %v", err)
	}
}

// TestApplyFailsOnOtherBackend checks that Apply fails if it cannot read the other backend: an
// older redirect may be there.
func TestApplyFailsOnOtherBackend(t *testing.T) {
	boom := errors.New("boom")
	legacy := newFakeKernel(Legacy)
	legacy.fail = func(string) error { return boom }
	err := rulesetOn(newFakeKernel(NFT), legacy).Apply(context.Background(), NewPlan(forwarding()))
	if !errors.Is(err, boom) {
		t.Errorf("got %v, want %v", err, boom)
	}
}

// TestCheckReadsOtherBackend checks that Check fails if the kernel has chains of another backend.
func TestCheckReadsOtherBackend(t *testing.T) {
	old := leftovers{chains: []*nftables.Chain{{Name: azwiOutput, Table: &nftables.Table{Name: "nat"}}}}
	for name, tt := range map[string]struct {
		kernel *fakeKernel
		others func(*Ruleset)
		want   string
	}{
		"native": {newFakeKernel(NFT), func(r *Ruleset) { r.nft.table = true }, nativeTable},
		"legacy": {newFakeKernel(NFT), func(r *Ruleset) { r.legacy.ours = []string{natChain} }, natChain},
		"nft":    {newFakeKernel(Legacy), func(r *Ruleset) { r.nft.old = old }, azwiOutput},
	} {
		r := rulesetOn(tt.kernel)
		mustApply(t, r, forwarding())
		tt.others(r)
		if err := r.Check(t.Context(), NewPlan(forwarding())); kindOf(err) != RulesDiffer || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want RulesDiffer, %s", name, err, tt.want)
		}
	}
}

func TestRemoveKeepsOtherRules(t *testing.T) {
	k := meshed()
	before := k.dump()
	r := rulesetOn(k)
	azwi(k)
	mustApply(t, r, forwarding())
	k.commits = nil
	for range 2 {
		if err := r.Remove(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	if got := k.dump(); got != before {
		t.Errorf("got rules:\n%s\nwant the rules before Apply:\n%s", got, before)
	}
	// The redirect is removed while filter still rejects. The second run removes nothing.
	if want := []string{"nat", "filter"}; !slices.Equal(k.commits, want) {
		t.Errorf("commits %v, want %v", k.commits, want)
	}
}

// TestUnlistableTable checks that a table that cannot be listed is not taken for an empty one:
// each Apply would add a jump, and Remove would report success without removing anything.
func TestUnlistableTable(t *testing.T) {
	k := newFakeKernel(NFT)
	r := rulesetOn(k)
	mustApply(t, r, forwarding())
	before := k.dump()
	k.unlistable = true
	for name, err := range map[string]error{
		"Apply":  r.Apply(context.Background(), NewPlan(forwarding())),
		"Check":  r.Check(t.Context(), NewPlan(forwarding())),
		"Remove": r.Remove(context.Background()),
	} {
		if kindOf(err) != WrongBackend {
			t.Errorf("%s: %v, want WrongBackend", name, err)
		}
	}
	k.unlistable = false
	if got := k.dump(); got != before {
		t.Errorf("got rules:\n%s\nwant unchanged rules:\n%s", got, before)
	}
}

// TestLegacyCannotBeRemoved has chains of ours on legacy, and no iptables-legacy that can remove
// them. Apply must not leave them beside a new redirect, and Remove must not report success.
func TestLegacyCannotBeRemoved(t *testing.T) {
	k := newFakeKernel(NFT)
	r := rulesetOn(k)
	mustApply(t, r, forwarding())
	before := k.dump()
	r.legacy.ours = []string{natChain}
	r.legacyTool = candidate{backend: Legacy, err: &Error{NoBinary, "no iptables-legacy", "use the init image"}}
	err := r.Apply(t.Context(), NewPlan(sealed()))
	if failure, ok := errors.AsType[*Error](err); !ok || failure.Kind != NoBinary || failure.Remedy != "use the init image" || !strings.Contains(failure.Cause, natChain) {
		t.Errorf("Apply: got %+v, want NoBinary with the remedy and the name of the chain", err)
	}
	if got := k.dump(); got != before {
		t.Errorf("Apply changed the rules:\n%s", got)
	}
	if err := r.Remove(t.Context()); kindOf(err) != NoBinary {
		t.Errorf("Remove: got %v, want NoBinary", err)
	}
	if got := k.dump(); strings.Contains(got, "IMDS") {
		t.Errorf("the rules of the other backend were not removed:\n%s", got)
	}
}

// TestFailClosed makes each step fail, in a namespace without rules and in one with another
// redirect. There must never be nat rules without the filter's.
func TestFailClosed(t *testing.T) {
	boom := errors.New("boom")
	for _, before := range []string{"fresh", "redirected"} {
		for _, step := range []string{"list filter", "commit filter", "list nat", "commit nat"} {
			t.Run(before+", "+step, func(t *testing.T) {
				k := newFakeKernel(NFT)
				r := rulesetOn(k)
				if before == "redirected" {
					mustApply(t, r, forwarding())
				}
				old := k.dump()
				k.fail = func(s string) error {
					if s == step {
						return boom
					}
					return nil
				}
				if err := r.Apply(context.Background(), NewPlan(sealed())); !errors.Is(err, boom) {
					t.Fatalf("got %v, want %v", err, boom)
				}
				k.fail = nil
				closed := slices.Equal(k.tables["filter"][filterChain], prefixed(filterChain, filterRules(sealed())))
				if !closed && k.dump() != old {
					t.Errorf("the rules neither reject nor are unchanged:\n%s", k.dump())
				}
			})
		}
	}
}

func prefixed(chain string, rules []string) []string {
	var out []string
	for _, r := range rules {
		out = append(out, "-A "+chain+" "+r)
	}
	return out
}

// TestApplyRetriesAfterRace simulates another process that deletes a jump after Apply has read
// it and before Apply deletes it.
func TestApplyRetriesAfterRace(t *testing.T) {
	k := newFakeKernel(NFT)
	r := rulesetOn(k)
	mustApply(t, r, forwarding())
	raced := 0
	k.fail = func(step string) error {
		if step == "commit nat" && raced < 2 {
			raced++
			k.tables["nat"]["OUTPUT"] = nil
			if raced == 2 {
				k.add("nat", "OUTPUT", "-j "+natChain)
			}
		}
		return nil
	}
	mustApply(t, r, sealed())
	if raced != 2 {
		t.Errorf("raced %d times, want 2", raced)
	}
}

func TestApplyGivesUpRacing(t *testing.T) {
	k := newFakeKernel(NFT)
	attempts := 0
	k.fail = func(step string) error {
		if step == "commit nat" {
			attempts++
		} else if step == "list nat" {
			k.tables["nat"]["OUTPUT"] = []string{"-A OUTPUT -j ACCEPT"}
		}
		return nil
	}
	err := rulesetOn(k).Apply(context.Background(), NewPlan(forwarding()))
	if kindOf(err) != RulesDiffer || attempts != maxAttempts {
		t.Errorf("got %v after %d attempts, want RulesDiffer after %d", err, attempts, maxAttempts)
	}
}

func TestApplyFallsBack(t *testing.T) {
	nft, legacy := newFakeKernel(NFT), newFakeKernel(Legacy)
	// The commit of filter succeeds, and that of nat fails.
	nft.fail = func(step string) error {
		if step == "commit nat" {
			return &Error{Kind: MissingModule, Cause: "no nft_redir"}
		}
		return nil
	}
	empty := nft.dump()
	r := rulesetOn(nft, legacy)
	err := r.Apply(context.Background(), NewPlan(forwarding()))
	if kindOf(err) != MissingModule {
		t.Fatalf("without auto: %v, want MissingModule", err)
	}
	r.auto = true
	mustApply(t, r, forwarding())
	if r.Backend() != Legacy {
		t.Errorf("backend %s, want legacy", r.Backend())
	}
	if got := nft.dump(); got != empty {
		t.Errorf("rules of nft:\n%s", got)
	}
}

func kindOf(err error) Kind {
	if failure, ok := errors.AsType[*Error](err); ok {
		return failure.Kind
	}
	return 0
}

// autoOn returns a Ruleset with the backend auto on a kernel whose nftables ends with an error, and
// with these iptables.
func autoOn(nftErr error, found ...candidate) *Ruleset {
	return &Ruleset{auto: true, nftErr: nftErr, survey: func(_ context.Context, b Backend) candidate {
		for _, c := range found {
			if c.backend == b {
				return c
			}
		}
		return candidate{backend: b, err: &Error{NoBinary, "no iptables-" + string(b), "use the init image"}}
	}}
}

func usableTool(k *fakeKernel) candidate { return candidate{backend: k.backend, tool: k.tool()} }

// TestLeavesNative checks to which backend auto falls back if the kernel does not support native.
func TestLeavesNative(t *testing.T) {
	module := &Error{MissingModule, "the kernel lacks the module nft_redir", "run modprobe"}
	broken := candidate{backend: NFT, err: &Error{WrongBackend, "cannot read", "move them"}}
	for name, tt := range map[string]struct {
		found []candidate
		want  Backend
	}{
		"both":        {[]candidate{usableTool(newFakeKernel(NFT)), usableTool(newFakeKernel(Legacy))}, NFT},
		"only nft":    {[]candidate{usableTool(newFakeKernel(NFT))}, NFT},
		"only legacy": {[]candidate{usableTool(newFakeKernel(Legacy))}, Legacy},
		"nft broken":  {[]candidate{broken, usableTool(newFakeKernel(Legacy))}, Legacy},
	} {
		r := autoOn(module, tt.found...)
		mustApply(t, r, forwarding())
		if r.Backend() != tt.want || r.Guard() || !strings.Contains(r.Reason(), "nft_redir") {
			t.Errorf("%s: got %s (guard %t, %q), want %s without a guard, and the module", name, r.Backend(), r.Guard(), r.Reason(), tt.want)
		}
		if err := r.Check(t.Context(), NewPlan(forwarding())); err != nil {
			t.Errorf("%s: Check: %v", name, err)
		}
		again := autoOn(module, tt.found...) // Check finds the backend by itself
		if err := again.Check(t.Context(), NewPlan(forwarding())); err != nil || again.Backend() != tt.want {
			t.Errorf("%s: Check in another run: %s, %v", name, again.Backend(), err)
		}
	}
}

// TestStaysNative checks when auto does not fall back, and when no backend is left.
func TestStaysNative(t *testing.T) {
	module := &Error{MissingModule, "the kernel lacks the module nft_redir", "run modprobe"}
	permission := &Error{MissingCapability, "NET_ADMIN is missing", "add it"}
	nft := newFakeKernel(NFT)
	untouched := nft.dump()
	for name, tt := range map[string]struct {
		r    *Ruleset
		want Kind
	}{
		"no permission":     {autoOn(permission, usableTool(nft)), MissingCapability},
		"unknown":           {autoOn(errors.New("boom"), usableTool(nft)), 0},
		"backend native":    {&Ruleset{nftErr: module}, MissingModule},
		"no iptables":       {autoOn(module), MissingModule},
		"permission, again": {&Ruleset{auto: true, kernel: noKernel(syscall.EPERM), survey: autoOn(nil, usableTool(nft)).survey}, MissingCapability},
	} {
		err := tt.r.Apply(t.Context(), NewPlan(forwarding()))
		if kindOf(err) != tt.want || err == nil || tt.r.Backend() != Native {
			t.Errorf("%s: got %v on %s, want kind %d on native", name, err, tt.r.Backend(), tt.want)
		}
		if name == "no iptables" && (!strings.Contains(err.Error(), "no iptables-nft") || !strings.Contains(err.Error(), "nft_redir")) {
			t.Errorf("%s: got %v, want what is missing for each backend", name, err)
		}
	}
	if got := nft.dump(); got != untouched {
		t.Errorf("rules of iptables:\n%s", got)
	}
}
