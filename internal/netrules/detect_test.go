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
	unprivileged := &Error{Kind: MissingCapability, Cause: "no NET_RAW"}
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
		"no rules":                  {mode: ModeAuto, want: ModeNFT},
		"zero mode":                 {want: ModeNFT},
		"mode nft":                  {mode: ModeNFT, legacy: side{ours: true}, want: ModeNFT},
		"mode legacy":               {mode: ModeLegacy, nft: side{ours: true}, want: ModeLegacy},
		"a mesh on legacy":          {mode: ModeAuto, legacy: side{foreign: true}, want: ModeLegacy},
		"a mesh on nft":             {mode: ModeAuto, nft: side{foreign: true}, want: ModeNFT},
		"meshes on both":            {mode: ModeAuto, nft: side{foreign: true}, legacy: side{foreign: true}, want: ModeNFT},
		"ours on legacy, mesh nft":  {mode: ModeAuto, nft: side{foreign: true}, legacy: side{ours: true}, want: ModeLegacy},
		"only legacy":               {mode: ModeAuto, nft: side{err: missing}, want: ModeLegacy},
		"only nft":                  {mode: ModeAuto, legacy: side{err: missing}, want: ModeNFT},
		"nft times out":             {mode: ModeAuto, nft: side{err: slow}, want: ModeLegacy, wantWarning: true},
		"nft not in the kernel":     {mode: ModeAuto, nft: side{err: &Error{Kind: MissingModule}}, want: ModeLegacy},
		"only nft, legacy in use":   {mode: ModeAuto, legacy: side{err: unprivileged, inUse: true}, want: ModeNFT, wantWarning: true},
		"mode legacy, no binary":    {mode: ModeLegacy, legacy: side{err: missing}, wantKind: NoBinary},
		"no binary":                 {mode: ModeAuto, nft: side{err: missing}, legacy: side{err: missing}, wantKind: NoBinary},
		"only legacy, unprivileged": {mode: ModeAuto, nft: side{err: missing}, legacy: side{err: unprivileged}, wantKind: MissingCapability},
		"both unprivileged":         {mode: ModeAuto, nft: side{err: unprivileged}, legacy: side{err: unprivileged}, wantKind: MissingCapability},
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

// TestNeitherBackend checks that the error has the causes and remedies of both backends, since
// one remedy is enough.
func TestNeitherBackend(t *testing.T) {
	module := &Error{Kind: MissingModule, Cause: "nft has no tables", Remedy: "load nf_tables"}
	unprivileged := &Error{Kind: MissingCapability, Cause: "NET_RAW is missing", Remedy: "add NET_RAW"}
	none := &Error{Kind: NoBinary, Cause: "no iptables-legacy", Remedy: "use the init image"}
	for name, tt := range map[string]struct {
		legacy *Error
		causes []string
		remedy string
	}{
		"two remedies":      {unprivileged, []string{"nft has no tables", "NET_RAW is missing"}, "for nft: load nf_tables; or for legacy: add NET_RAW"},
		"one has no binary": {none, []string{"nft has no tables", "no iptables-legacy"}, "load nf_tables"},
		"one remedy":        {module, []string{"nft has no tables"}, "load nf_tables"},
	} {
		_, err := choose(ModeAuto, []candidate{{mode: ModeNFT, err: module}, {mode: ModeLegacy, err: tt.legacy}})
		failure, ok := errors.AsType[*Error](err)
		if !ok || failure.Kind != MissingModule || failure.Remedy != tt.remedy {
			t.Errorf("%s: got %+v, want the remedy %q", name, failure, tt.remedy)
			continue
		}
		for _, cause := range tt.causes {
			if !strings.Contains(failure.Cause, cause) {
				t.Errorf("%s: %q does not contain %q", name, failure.Cause, cause)
			}
		}
	}
	// With a mode other than auto, the error is about that backend only.
	if _, err := choose(ModeNFT, []candidate{{mode: ModeNFT, err: module}, {mode: ModeLegacy, err: unprivileged}}); err != error(module) {
		t.Errorf("got %v, want %v", err, module)
	}
}

func TestReadCandidate(t *testing.T) {
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
			if err := got.read(k.backend()); err != nil {
				t.Fatal(err)
			}
			if got.ours != tt.want.ours || got.foreign != tt.want.foreign || got.kubernetes != tt.want.kubernetes {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestLegacyTablesAreNotCreated(t *testing.T) {
	k := newFakeKernel(ModeLegacy)
	listed := false
	k.fail = func(string) error { listed = true; return nil }
	b := k.backend()
	b.inUse = func(string) bool { return false }
	if _, err := b.read("nat"); err != nil || listed {
		t.Errorf("listed %v, error %v: listing a legacy table creates it", listed, err)
	}
}
