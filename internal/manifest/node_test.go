package manifest_test

import (
	"reflect"
	"strings"
	"testing"
)

// TestValue: what Kubernetes' own library makes of it. An error where it takes another
// value than YAML's definition would have it, and none where they agree.
func TestValue(t *testing.T) {
	for _, c := range []struct {
		text, err string
		want      any
	}{
		{text: "a: 1\nb: 2\na: 3\n", err: "line 3: the key a is given twice"},
		{text: `{"a": 1, "\u0061": 2}`, err: "line 1: the key a is given twice"},
		{text: "x: &k a\n*k : 1\n? a\n: 2\n", err: "line 3: the key a is given twice"},
		{text: "d: &d {a: 1}\nm:\n  <<: *d\n  a: 2\n", want: map[string]any{"a": int64(2)}},
		{text: "d: &d {a: 1}\nm:\n  a: 2\n  <<: *d\n", err: "line 4: the key a is given twice, above << and by it: write << once, and above all keys"},
		{text: "d: &d {a: 1}\nm:\n  b: 2\n  <<: *d\n", want: map[string]any{"a": int64(1), "b": int64(2)}},
		{text: "d: &d {a: 1}\ne: &e {a: 2}\nm: {<<: [*d, *e]}\n", want: map[string]any{"a": int64(1)}},
		{text: "d: &d {a: 1}\ne: &e {a: 2}\nm:\n  <<: *d\n  <<: *e\n", err: "line 5: the key a is given twice, above << and by it"},
		{text: "d: &d {a: 1, a: 2}\nm: {<<: *d}\n", err: "line 1: the key a is given twice"},
		{text: "d: &d {a: 1}\ne: &e {a: 2, <<: *d}\nm: {<<: *e}\n", err: "line 2: the key a is given twice, above << and by it"},
		{text: "[y, Yes, on, TRUE, N, no, Off, false]", want: []any{true, true, true, true, false, false, false, false}},
		{text: "['y', \"yes\", !!str on, yEs, oN]", want: []any{"y", "yes", "on", "yEs", "oN"}},
		{text: "- !!bool yes\n- &x off\n- *x\n- |-\n  off\n", want: []any{true, false, false, "off"}},
		{text: "m: {<<: 3}\n", err: "line 1: << takes mappings"},
	} {
		d, err := parse(c.text)
		if err != nil {
			t.Fatalf("%q: %v", c.text, err)
		}
		m := d.Root()
		if m.Get("m") != nil {
			m = m.Get("m")
		}
		got, err := m.Value()
		if c.err != "" {
			if err == nil || !strings.HasPrefix(err.Error(), c.err) {
				t.Errorf("%q: %v, want %s", c.text, err, c.err)
			}
			continue
		}
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%q: %#v, %v, want %#v", c.text, got, err, c.want)
		}
	}
}

// TestOnce: keys that are not asked for may be there as often as they like.
func TestOnce(t *testing.T) {
	d, err := parse("x: &x {kind: Pod}\ndata: {}\nkind: List\ndata: {}\n")
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Root().Once("kind", "items"); err != nil {
		t.Errorf("kind is there once, and items not at all: %v", err)
	}
	if err := d.Root().Once("data"); err == nil || err.Error() != "line 4: the key data is given twice" {
		t.Errorf("data is there twice: %v", err)
	}
	if err := d.Root().Get("kind").Once("kind"); err != nil {
		t.Errorf("a string has no keys: %v", err)
	}
}
