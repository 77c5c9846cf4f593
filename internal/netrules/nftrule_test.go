package netrules

import (
	"testing"

	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// encoded returns a rule as the kernel sends it.
func encoded(t testing.TB, exprs ...expr.Any) []byte {
	t.Helper()
	var list []netlink.Attribute
	for _, e := range exprs {
		data, err := expr.Marshal(unix.NFPROTO_INET, e)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, netlink.Attribute{Type: unix.NFTA_LIST_ELEM, Data: data})
	}
	all, err := netlink.MarshalAttributes(list)
	if err != nil {
		t.Fatal(err)
	}
	attributes, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.NFTA_RULE_HANDLE, Data: []byte{0, 0, 0, 0, 0, 0, 0, 7}},
		{Type: unix.NFTA_RULE_EXPRESSIONS, Data: all},
	})
	if err != nil {
		t.Fatal(err)
	}
	return append(make([]byte, messageHeader), attributes...)
}

// TestRuleIs checks that a rule equals the planned one only with the same expressions.
func TestRuleIs(t *testing.T) {
	planned := rule(ipv4(), dport(80), pass())
	exprs := planned.exprs()
	last := len(exprs) - 1
	for name, tt := range map[string]struct {
		exprs []expr.Any
		want  bool
	}{
		"itself":             {exprs, true},
		"fewer":              {exprs[:last], false},
		"more":               {append(exprs[:len(exprs):len(exprs)], &expr.Counter{}), false},
		"another verdict":    {append(exprs[:last:last], &expr.Verdict{Kind: expr.VerdictAccept}), false},
		"a jump":             {append(exprs[:last:last], &expr.Verdict{Kind: expr.VerdictJump, Chain: "x"}), false},
		"another expression": {append(exprs[:last:last], &expr.Immediate{Register: 1, Data: []byte{1}}), false},
		"another name":       {append(exprs[:last:last], &expr.Counter{}), false},
	} {
		got, err := parseRule(encoded(t, tt.exprs...))
		if err != nil || got.handle != 7 || got.is(planned) != tt.want {
			t.Errorf("%s: got %+v, %v, equal: %t, want %t", name, got, err, got.is(planned), tt.want)
		}
	}
}

func TestJumpsTo(t *testing.T) {
	for want, exprs := range map[string][]expr.Any{
		natChain: {&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictJump, Chain: natChain}},
		"goto":   {&expr.Verdict{Kind: expr.VerdictGoto, Chain: "goto"}},
		"":       {&expr.Immediate{Register: 1, Data: []byte("IMDS")}, &expr.Verdict{Kind: expr.VerdictAccept}},
	} {
		r, err := parseRule(encoded(t, exprs...))
		if got := r.jumpsTo(); err != nil || got != want {
			t.Errorf("got %q, %v, want %q", got, err, want)
		}
	}
}

// FuzzParseRule checks that no message makes the parser panic.
func FuzzParseRule(f *testing.F) {
	f.Add(encoded(f, native(forwarding()).chains[0].rules[0].exprs()...))
	f.Add([]byte{0, 0, 0})
	f.Add(encoded(f, &expr.Verdict{Kind: expr.VerdictJump, Chain: natChain}))
	f.Fuzz(func(t *testing.T, message []byte) {
		if r, err := parseRule(message); err == nil {
			r.jumpsTo()
		}
	})
}
