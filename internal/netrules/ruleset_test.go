package netrules

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
)

// rulesetOn is a Ruleset whose first backend is the first kernel's.
func rulesetOn(kernels ...*fakeKernel) *Ruleset {
	r := &Ruleset{}
	for _, k := range kernels {
		r.backends = append(r.backends, k.backend())
	}
	return r
}

func mustApply(t *testing.T, r *Ruleset, c Config) {
	t.Helper()
	if err := r.Apply(context.Background(), NewPlan(c)); err != nil {
		t.Fatal(err)
	}
}

// meshed is a kernel that a service mesh has put rules into.
func meshed() *fakeKernel {
	k := newFakeKernel(ModeNFT)
	k.add("nat", "MESH_OUTPUT", "-m owner --uid-owner 1337 -j RETURN")
	k.add("nat", "MESH_OUTPUT", "-p tcp -j REDIRECT --to-ports 15001")
	k.add("nat", "OUTPUT", "-p tcp -j MESH_OUTPUT")
	k.add("filter", "OUTPUT", `-m comment --comment "looks like -j IMDS_PROXY_FILTER" -j ACCEPT`)
	return k
}

// azwi leaves what azure-workload-identity's script leaves when it runs twice.
func azwi(k *fakeKernel) {
	for range 2 {
		k.add("nat", azwiRedirect, "-p tcp -j REDIRECT --to-ports 8000")
		k.add("nat", "OUTPUT", "-d 169.254.169.254/32 -p tcp -m tcp --dport 80 -j "+azwiOutput)
		k.add("nat", azwiOutput, "-m owner --uid-owner 1501 -j ACCEPT")
		k.add("nat", azwiOutput, "-j "+azwiRedirect)
	}
}

func TestApplyIsDeclarative(t *testing.T) {
	once := meshed()
	mustApply(t, rulesetOn(once), forwarding())

	moved := forwarding()
	moved.ProxyPort = 9000
	for name, before := range map[string][]Config{
		"ten runs":        slices.Repeat([]Config{forwarding()}, 10),
		"another port":    {moved},
		"another mode":    {sealed()},
		"a deny list":     {denying(t, sealed(), "168.63.129.16")},
		"back and forth":  {sealed(), moved, sealed()},
		"nothing at all?": nil,
	} {
		t.Run(name, func(t *testing.T) {
			k := meshed()
			r := rulesetOn(k)
			for _, c := range before {
				mustApply(t, r, c)
			}
			mustApply(t, r, forwarding())
			if got, want := k.dump(), once.dump(); got != want {
				t.Errorf("rules:\n%s\nwant those of one run:\n%s", got, want)
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

func TestApplyMendsWhatOthersDid(t *testing.T) {
	for name, damage := range map[string]func(*fakeKernel){
		"a rule before ours": func(k *fakeKernel) {
			k.tables["nat"]["OUTPUT"] = slices.Insert(k.tables["nat"]["OUTPUT"], 0, "-A OUTPUT -p tcp -j MESH_OUTPUT")
		},
		"the jump twice":         func(k *fakeKernel) { k.add("nat", "OUTPUT", "-j "+natChain) },
		"a narrower jump":        func(k *fakeKernel) { k.add("filter", "OUTPUT", "-p udp -j "+filterChain) },
		"the jump gone":          func(k *fakeKernel) { k.tables["nat"]["OUTPUT"] = nil },
		"the chain emptied":      func(k *fakeKernel) { k.tables["filter"][filterChain] = nil },
		"a hole in the chain":    func(k *fakeKernel) { k.add("filter", filterChain, "-j ACCEPT") },
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
				t.Errorf("Check of the damage: %v, want RulesDiffer", err)
			}
			mustApply(t, r, forwarding())
			if err := r.Check(NewPlan(forwarding())); err != nil {
				t.Errorf("Check after Apply: %v", err)
			}
		})
	}
}

func TestCheckNamesRule(t *testing.T) {
	k := newFakeKernel(ModeNFT)
	r := rulesetOn(k)
	mustApply(t, r, forwarding())
	k.tables["filter"][filterChain][1] = "-A " + filterChain + " -j ACCEPT"
	want := "rule 2 of " + filterChain + ` is "-A ` + filterChain + ` -j ACCEPT"`
	if err := r.Check(NewPlan(forwarding())); kindOf(err) != RulesDiffer || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want RulesDiffer, %s", err, want)
	}
}

func TestApplyTakesOver(t *testing.T) {
	k := newFakeKernel(ModeNFT)
	azwi(k)
	mustApply(t, rulesetOn(k), forwarding())
	if dump := k.dump(); strings.Contains(dump, "AZWI") {
		t.Errorf("rules of azure-workload-identity are left:\n%s", dump)
	}
}

func TestApplyClearsOtherBackend(t *testing.T) {
	nft, legacy := newFakeKernel(ModeNFT), newFakeKernel(ModeLegacy)
	untouched := legacy.dump()
	mustApply(t, rulesetOn(legacy), sealed())
	azwi(legacy)
	mustApply(t, rulesetOn(nft, legacy), forwarding())
	if got := legacy.dump(); got != untouched {
		t.Errorf("left on the other backend:\n%s", got)
	}
	if want := []string{"filter", "nat"}; !slices.Equal(nft.commits, want) {
		t.Errorf("commits %v, want %v", nft.commits, want)
	}
	if err := rulesetOn(nft, legacy).Check(NewPlan(forwarding())); err != nil {
		t.Errorf("Check: %v", err)
	}
}

// TestApplyFailsOnOtherBackend: success would say that no older redirect is left.
func TestApplyFailsOnOtherBackend(t *testing.T) {
	boom := errors.New("boom")
	legacy := newFakeKernel(ModeLegacy)
	legacy.fail = func(string) error { return boom }
	err := rulesetOn(newFakeKernel(ModeNFT), legacy).Apply(context.Background(), NewPlan(forwarding()))
	if !errors.Is(err, boom) {
		t.Errorf("got %v, want %v", err, boom)
	}
}

func TestCheckSeesOtherBackend(t *testing.T) {
	nft, legacy := newFakeKernel(ModeNFT), newFakeKernel(ModeLegacy)
	mustApply(t, rulesetOn(nft), forwarding())
	mustApply(t, rulesetOn(legacy), forwarding())
	if err := rulesetOn(nft, legacy).Check(NewPlan(forwarding())); kindOf(err) != RulesDiffer {
		t.Errorf("got %v, want RulesDiffer", err)
	}
}

func TestRemoveLeavesTheRest(t *testing.T) {
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
		t.Errorf("rules:\n%s\nwant those from before:\n%s", got, before)
	}
	// The redirect goes while filter still rejects; the second run finds nothing.
	if want := []string{"nat", "filter"}; !slices.Equal(k.commits, want) {
		t.Errorf("commits %v, want %v", k.commits, want)
	}
}

// TestUnlistableTable: what cannot be listed must not be taken for empty. Apply
// would add a jump each time, and Remove leave everything and report success.
func TestUnlistableTable(t *testing.T) {
	k := newFakeKernel(ModeNFT)
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
		t.Errorf("rules:\n%s\nwant those from before:\n%s", got, before)
	}
}

// TestRemoveAdmitsUnseen: success would say that nothing of ours is left.
func TestRemoveAdmitsUnseen(t *testing.T) {
	k := newFakeKernel(ModeNFT)
	r := rulesetOn(k)
	mustApply(t, r, forwarding())
	r.unseen = &Error{Kind: MissingCapability, Cause: "no NET_RAW"}
	if err := r.Remove(context.Background()); kindOf(err) != MissingCapability {
		t.Errorf("got %v, want MissingCapability", err)
	}
	if got := k.dump(); strings.Contains(got, "IMDS") {
		t.Errorf("what can be seen is left:\n%s", got)
	}
}

// TestCheckAdmitsUnseen: what the other backend hides may come first.
func TestCheckAdmitsUnseen(t *testing.T) {
	r := rulesetOn(newFakeKernel(ModeNFT))
	mustApply(t, r, forwarding())
	plan := NewPlan(forwarding())
	if err := r.Check(plan); err != nil {
		t.Fatal(err)
	}
	r.unseen = &Error{Kind: MissingCapability, Cause: "no NET_RAW"}
	if err := r.Check(plan); kindOf(err) != MissingCapability || !strings.Contains(err.Error(), "are as planned, but no NET_RAW") {
		t.Errorf("got %v, want MissingCapability, and that what is seen is right", err)
	}
}

// TestFailureNeverOpens fails each step in turn, on a fresh namespace and on one
// that has another redirect: nat rules must never be there without filter's.
func TestFailureNeverOpens(t *testing.T) {
	boom := errors.New("boom")
	for _, before := range []string{"fresh", "redirected"} {
		for _, step := range []string{"list filter", "commit filter", "list nat", "commit nat"} {
			t.Run(before+", "+step, func(t *testing.T) {
				k := newFakeKernel(ModeNFT)
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
					t.Errorf("neither closed nor as before:\n%s", k.dump())
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

// TestApplyRetriesAfterRace has somebody delete a jump between our reading of it
// and our deleting of it.
func TestApplyRetriesAfterRace(t *testing.T) {
	k := newFakeKernel(ModeNFT)
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
	k := newFakeKernel(ModeNFT)
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
	nft, legacy := newFakeKernel(ModeNFT), newFakeKernel(ModeLegacy)
	// filter goes through, then the nat table turns out not to work.
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
		t.Fatalf("with a mode asked for: %v, want MissingModule", err)
	}
	r.auto = true
	mustApply(t, r, forwarding())
	if r.Mode() != ModeLegacy {
		t.Errorf("mode %s, want legacy", r.Mode())
	}
	if got := nft.dump(); got != empty {
		t.Errorf("left on nft:\n%s", got)
	}
}

func kindOf(err error) Kind {
	if failure, ok := errors.AsType[*Error](err); ok {
		return failure.Kind
	}
	return 0
}
