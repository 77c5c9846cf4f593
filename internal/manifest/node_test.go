package manifest_test

import (
	"reflect"
	"strings"
	"testing"
)

// TestValue checks that values are those of Kubernetes' YAML library, and that there is an error
// where that library differs from the YAML specification.
func TestValue(t *testing.T) {
	for _, c := range []struct {
		text, err string
		want      any
	}{
		{text: "a: 1\nb: 2\na: 3\n", err: "line 3: duplicate key a"},
		{text: `{"a": 1, "\u0061": 2}`, err: "line 1: duplicate key a"},
		{text: "x: &k a\n*k : 1\n? a\n: 2\n", err: "line 3: duplicate key a"},
		{text: "d: &d {a: 1}\nm:\n  <<: *d\n  a: 2\n", want: map[string]any{"a": int64(2)}},
		{text: "d: &d {a: 1}\nm:\n  a: 2\n  <<: *d\n", err: "line 4: duplicate key a, before << and in its mapping: write << once, before all other keys"},
		{text: "d: &d {a: 1}\nm:\n  b: 2\n  <<: *d\n", want: map[string]any{"a": int64(1), "b": int64(2)}},
		{text: "d: &d {a: 1}\ne: &e {a: 2}\nm: {<<: [*d, *e]}\n", want: map[string]any{"a": int64(1)}},
		{text: "d: &d {a: 1}\ne: &e {a: 2}\nm:\n  <<: *d\n  <<: *e\n", err: "line 5: duplicate key a, before << and in its mapping"},
		{text: "d: &d {a: 1, a: 2}\nm: {<<: *d}\n", err: "line 1: duplicate key a"},
		{text: "d: &d {a: 1}\ne: &e {a: 2, <<: *d}\nm: {<<: *e}\n", err: "line 2: duplicate key a, before << and in its mapping"},
		{text: "[y, Yes, on, TRUE, N, no, Off, false]", want: []any{true, true, true, true, false, false, false, false}},
		{text: "['y', \"yes\", !!str on, yEs, oN]", want: []any{"y", "yes", "on", "yEs", "oN"}},
		{text: "- !!bool yes\n- &x off\n- *x\n- |-\n  off\n", want: []any{true, false, false, "off"}},
		{text: "m: {<<: 3}\n", err: "line 1: the value of << must be a mapping or a list of mappings"},
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

// TestOnce checks that only the given keys must be unique.
func TestOnce(t *testing.T) {
	d, err := parse("x: &x {kind: Pod}\ndata: {}\nkind: List\ndata: {}\n")
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Root().Once("kind", "items"); err != nil {
		t.Errorf("kind occurs once, and items never: %v", err)
	}
	if err := d.Root().Once("data"); err == nil || err.Error() != "line 4: duplicate key data" {
		t.Errorf("data occurs twice: %v", err)
	}
	if err := d.Root().Get("kind").Once("kind"); err != nil {
		t.Errorf("a string has no keys: %v", err)
	}
}

func TestIsEmpty(t *testing.T) {
	d, err := parse("a:\nb: []\nc: {}\nd: null\ne: &e []\nf: *e\ng: ''\nh: 0\ni: [1]\nj: {k: l}\n")
	if err != nil {
		t.Fatal(err)
	}
	for key, value := range d.Root().All() {
		if want := key < "g"; value.IsEmpty() != want {
			t.Errorf("%s: got %t, want %t", key, !want, want)
		}
	}
	if !d.Root().Get("none").IsEmpty() {
		t.Error("a missing value is not empty")
	}
}

// TestAll checks the order of keys, and that those of merge keys come last.
func TestAll(t *testing.T) {
	d, err := parse("base: &base {c: 3, d: 4}\nuse:\n  <<: [*base]\n  a: 1\n  b: 2\n")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for key, value := range d.Root().Get("use").All() {
		text, _ := value.Scalar()
		got = append(got, key+text)
	}
	if want := "a1 b2 c3 d4"; strings.Join(got, " ") != want {
		t.Errorf("got %q, want %q", got, want)
	}
	for range d.Root().Get("use").All() {
		break // the iterator must not yield after this
	}
}
