package netrules

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestChoose(t *testing.T) {
	missing := &Error{Kind: NoBinary, Cause: "none"}
	slow := &Error{Kind: TimedOut, Cause: "no answer"}
	powerless := &Error{Kind: MissingCapability, Cause: "no NET_RAW"}
	type side struct {
		ours, foreign, inUse bool
		err                  error
	}
	for name, tt := range map[string]struct {
		mode        Mode
		nft, legacy side
		want        Mode
		wantKind    Kind
		wantWarning bool
	}{
		"nothing anywhere":           {mode: ModeAuto, want: ModeNFT},
		"zero mode":                  {want: ModeNFT},
		"asked for nft":              {mode: ModeNFT, legacy: side{ours: true}, want: ModeNFT},
		"asked for legacy":           {mode: ModeLegacy, nft: side{ours: true}, want: ModeLegacy},
		"a mesh on legacy":           {mode: ModeAuto, legacy: side{foreign: true}, want: ModeLegacy},
		"a mesh on nft":              {mode: ModeAuto, nft: side{foreign: true}, want: ModeNFT},
		"meshes on both":             {mode: ModeAuto, nft: side{foreign: true}, legacy: side{foreign: true}, want: ModeNFT},
		"ours on legacy, mesh nft":   {mode: ModeAuto, nft: side{foreign: true}, legacy: side{ours: true}, want: ModeLegacy},
		"only legacy":                {mode: ModeAuto, nft: side{err: missing}, want: ModeLegacy},
		"only nft":                   {mode: ModeAuto, legacy: side{err: missing}, want: ModeNFT},
		"nft does not answer":        {mode: ModeAuto, nft: side{err: slow}, want: ModeLegacy, wantWarning: true},
		"nft not in the kernel":      {mode: ModeAuto, nft: side{err: &Error{Kind: MissingModule}}, want: ModeLegacy},
		"only nft, legacy in use":    {mode: ModeAuto, legacy: side{err: powerless, inUse: true}, want: ModeNFT, wantWarning: true},
		"asked for what is not":      {mode: ModeLegacy, legacy: side{err: missing}, wantKind: NoBinary},
		"neither is there":           {mode: ModeAuto, nft: side{err: missing}, legacy: side{err: missing}, wantKind: NoBinary},
		"only legacy, and powerless": {mode: ModeAuto, nft: side{err: missing}, legacy: side{err: powerless}, wantKind: MissingCapability},
		"both powerless":             {mode: ModeAuto, nft: side{err: powerless}, legacy: side{err: powerless}, wantKind: MissingCapability},
	} {
		t.Run(name, func(t *testing.T) {
			var found []candidate
			for mode, s := range map[Mode]side{ModeNFT: tt.nft, ModeLegacy: tt.legacy} {
				c := candidate{mode: mode, err: s.err, ours: s.ours, foreign: s.foreign, inUse: s.inUse}
				if s.err == nil {
					c.backend = newFakeKernel(mode).backend()
				}
				found = append(found, c)
			}
			slices.SortFunc(found, func(a, b candidate) int { return strings.Compare(string(b.mode), string(a.mode)) })
			r, err := choose(tt.mode, found)
			if kindOf(err) != tt.wantKind || (err == nil) != (tt.wantKind == 0) {
				t.Fatalf("got error %v, want kind %d", err, tt.wantKind)
			}
			if err != nil {
				return
			}
			if r.Mode() != tt.want || (r.Warning() != "") != tt.wantWarning || r.Reason() == "" {
				t.Errorf("got %s (%q, warning %q), want %s, warning %v", r.Mode(), r.Reason(), r.Warning(), tt.want, tt.wantWarning)
			}
		})
	}
}

// TestNeitherBackend: who has to mend something hears of both, since either will do.
func TestNeitherBackend(t *testing.T) {
	module := &Error{Kind: MissingModule, Cause: "nft has no tables", Remedy: "load nf_tables"}
	powerless := &Error{Kind: MissingCapability, Cause: "NET_RAW is missing", Remedy: "add NET_RAW"}
	none := &Error{Kind: NoBinary, Cause: "no iptables-legacy", Remedy: "use the init image"}
	for name, tt := range map[string]struct {
		legacy *Error
		says   []string
		remedy string
	}{
		"either will do":  {powerless, []string{"nft has no tables", "NET_RAW is missing"}, "for nft: load nf_tables; or for legacy: add NET_RAW"},
		"one is not here": {none, []string{"nft has no tables", "no iptables-legacy"}, "load nf_tables"},
		"the same":        {module, []string{"nft has no tables"}, "load nf_tables"},
	} {
		_, err := choose(ModeAuto, []candidate{{mode: ModeNFT, err: module}, {mode: ModeLegacy, err: tt.legacy}})
		failure, ok := errors.AsType[*Error](err)
		if !ok || failure.Kind != MissingModule || failure.Remedy != tt.remedy {
			t.Errorf("%s: got %+v, want the remedy %q", name, failure, tt.remedy)
			continue
		}
		for _, says := range tt.says {
			if !strings.Contains(failure.Cause, says) {
				t.Errorf("%s: %q does not say %q", name, failure.Cause, says)
			}
		}
	}
	// Who asked for one hears of that one.
	if _, err := choose(ModeNFT, []candidate{{mode: ModeNFT, err: module}, {mode: ModeLegacy, err: powerless}}); err != error(module) {
		t.Errorf("got %v, want %v", err, module)
	}
}

func TestLook(t *testing.T) {
	for name, tt := range map[string]struct {
		setUp func(*fakeKernel)
		want  candidate
	}{
		"a pod":         {func(*fakeKernel) {}, candidate{}},
		"a mesh":        {func(k *fakeKernel) { *k = *meshed() }, candidate{foreign: true}},
		"the redirect":  {func(k *fakeKernel) { azwi(k) }, candidate{ours: true}},
		"half of it":    {func(k *fakeKernel) { k.add("filter", filterChain, "-j RETURN") }, candidate{ours: true}},
		"kube-proxy":    {func(k *fakeKernel) { k.add("nat", "KUBE-SERVICES", "-j RETURN") }, candidate{foreign: true, kubernetes: "KUBE-SERVICES"}},
		"only kubelet":  {func(k *fakeKernel) { k.tables["mangle"]["KUBE-KUBELET-CANARY"] = nil }, candidate{kubernetes: "KUBE-KUBELET-CANARY"}},
		"a filter rule": {func(k *fakeKernel) { k.add("filter", "OUTPUT", "-j ACCEPT") }, candidate{}},
	} {
		t.Run(name, func(t *testing.T) {
			k := newFakeKernel(ModeNFT)
			tt.setUp(k)
			var got candidate
			if err := got.look(k.backend()); err != nil {
				t.Fatal(err)
			}
			if got.ours != tt.want.ours || got.foreign != tt.want.foreign || got.kubernetes != tt.want.kubernetes {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestLegacyTablesAreNotMade(t *testing.T) {
	k := newFakeKernel(ModeLegacy)
	listed := false
	k.fail = func(string) error { listed = true; return nil }
	b := k.backend()
	b.inUse = func(string) bool { return false }
	if _, err := b.read("nat"); err != nil || listed {
		t.Errorf("listed %v, error %v: listing a legacy table makes it", listed, err)
	}
}
