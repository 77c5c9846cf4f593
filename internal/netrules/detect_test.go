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
		ours, foreign bool
		err           error
	}
	for name, tt := range map[string]struct {
		backend     Backend
		nft, legacy side
		want        Backend
		wantKind    Kind
	}{
		"no rules":                  {backend: Auto, want: NFT},
		"backend nft":               {backend: NFT, legacy: side{ours: true}, want: NFT},
		"backend legacy":            {backend: Legacy, nft: side{ours: true}, want: Legacy},
		"a mesh on legacy":          {backend: Auto, legacy: side{foreign: true}, want: Legacy},
		"a mesh on nft":             {backend: Auto, nft: side{foreign: true}, want: NFT},
		"meshes on both":            {backend: Auto, nft: side{foreign: true}, legacy: side{foreign: true}, want: NFT},
		"ours on legacy, mesh nft":  {backend: Auto, nft: side{foreign: true}, legacy: side{ours: true}, want: Legacy},
		"only legacy":               {backend: Auto, nft: side{err: missing}, want: Legacy},
		"only nft":                  {backend: Auto, legacy: side{err: missing}, want: NFT},
		"nft times out":             {backend: Auto, nft: side{err: slow}, want: Legacy},
		"nft not in the kernel":     {backend: Auto, nft: side{err: &Error{Kind: MissingModule}}, want: Legacy},
		"only nft, unprivileged":    {backend: Auto, legacy: side{err: unprivileged}, want: NFT},
		"backend legacy, no binary": {backend: Legacy, legacy: side{err: missing}, wantKind: NoBinary},
		"no binary":                 {backend: Auto, nft: side{err: missing}, legacy: side{err: missing}, wantKind: NoBinary},
		"only legacy, unprivileged": {backend: Auto, nft: side{err: missing}, legacy: side{err: unprivileged}, wantKind: MissingCapability},
		"both unprivileged":         {backend: Auto, nft: side{err: unprivileged}, legacy: side{err: unprivileged}, wantKind: MissingCapability},
	} {
		t.Run(name, func(t *testing.T) {
			var found []candidate
			for backend, s := range map[Backend]side{NFT: tt.nft, Legacy: tt.legacy} {
				c := candidate{backend: backend, err: s.err, ours: s.ours, foreign: s.foreign}
				if s.err == nil {
					c.tool = newFakeKernel(backend).tool()
				}
				found = append(found, c)
			}
			slices.SortFunc(found, func(a, b candidate) int { return strings.Compare(string(b.backend), string(a.backend)) })
			r := &Ruleset{auto: tt.backend == Auto, reason: "set"}
			err := r.choose(tt.backend, found)
			if kindOf(err) != tt.wantKind || (err == nil) != (tt.wantKind == 0) {
				t.Fatalf("got error %v, want kind %d", err, tt.wantKind)
			}
			if err != nil {
				return
			}
			if r.Backend() != tt.want || r.Reason() == "" {
				t.Errorf("got %s (%q), want %s", r.Backend(), r.Reason(), tt.want)
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
		err := (&Ruleset{auto: true}).choose(Auto, []candidate{{backend: NFT, err: module}, {backend: Legacy, err: tt.legacy}})
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
	// With a backend other than auto, the error is about that backend only.
	if err := new(Ruleset).choose(NFT, []candidate{{backend: NFT, err: module}, {backend: Legacy, err: unprivileged}}); err != error(module) {
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
		"kube-proxy":    {func(k *fakeKernel) { k.add("nat", "KUBE-SERVICES", "-j RETURN") }, candidate{foreign: true}},
		"a filter rule": {func(k *fakeKernel) { k.add("filter", "OUTPUT", "-j ACCEPT") }, candidate{}},
	} {
		t.Run(name, func(t *testing.T) {
			k := newFakeKernel(NFT)
			tt.setUp(k)
			var got candidate
			if err := got.read(k.tool()); err != nil {
				t.Fatal(err)
			}
			if got.ours != tt.want.ours || got.foreign != tt.want.foreign {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestLegacyTablesAreNotCreated(t *testing.T) {
	k := newFakeKernel(Legacy)
	listed := false
	k.fail = func(string) error { listed = true; return nil }
	b := k.tool()
	b.inUse = func(string) bool { return false }
	if _, err := b.read("nat"); err != nil || listed {
		t.Errorf("listed %v, error %v: listing a legacy table creates it", listed, err)
	}
}
