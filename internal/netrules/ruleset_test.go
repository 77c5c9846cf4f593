package netrules

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
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
			err := r.Check(NewPlan(forwarding()))
			if got := kindOf(err); got != RulesDiffer {
				t.Errorf("Check before Apply: %v, want RulesDiffer", err)
			}
			mustApply(t, r, forwarding())
			if err := r.Check(NewPlan(forwarding())); err != nil {
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
	if err := r.Check(NewPlan(forwarding())); kindOf(err) != RulesDiffer || !strings.Contains(err.Error(), want) {
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
	if err := rulesetOn(nft, legacy).Check(NewPlan(forwarding())); err != nil {
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

func TestCheckReadsOtherBackend(t *testing.T) {
	nft, legacy := newFakeKernel(NFT), newFakeKernel(Legacy)
	mustApply(t, rulesetOn(nft), forwarding())
	mustApply(t, rulesetOn(legacy), forwarding())
	if err := rulesetOn(nft, legacy).Check(NewPlan(forwarding())); kindOf(err) != RulesDiffer {
		t.Errorf("got %v, want RulesDiffer", err)
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
		"Check":  r.Check(NewPlan(forwarding())),
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

// TestRemoveReportsUnseen checks that Remove fails if the other backend's rules cannot be read:
// our chains may be among them.
func TestRemoveReportsUnseen(t *testing.T) {
	k := newFakeKernel(NFT)
	r := rulesetOn(k)
	mustApply(t, r, forwarding())
	r.unseen = &Error{Kind: MissingCapability, Cause: "no NET_RAW"}
	if err := r.Remove(context.Background()); kindOf(err) != MissingCapability {
		t.Errorf("got %v, want MissingCapability", err)
	}
	if got := k.dump(); strings.Contains(got, "IMDS") {
		t.Errorf("the rules of the readable backend were not removed:\n%s", got)
	}
}

// TestCheckReportsUnseen checks that Check fails if the other backend's rules cannot be read:
// they may apply before ours.
func TestCheckReportsUnseen(t *testing.T) {
	r := rulesetOn(newFakeKernel(NFT))
	mustApply(t, r, forwarding())
	plan := NewPlan(forwarding())
	if err := r.Check(plan); err != nil {
		t.Fatal(err)
	}
	r.unseen = &Error{Kind: MissingCapability, Cause: "no NET_RAW"}
	if err := r.Check(plan); kindOf(err) != MissingCapability || !strings.Contains(err.Error(), "are as planned, but no NET_RAW") {
		t.Errorf("got %v, want MissingCapability, and that the readable rules are as planned", err)
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
