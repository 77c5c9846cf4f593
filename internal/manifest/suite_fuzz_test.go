package manifest_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

	"imds-oidc-proxy/internal/manifest"
)

// location is a value in a tree.
type location struct {
	path   string
	length int // of a list or mapping; -1 for other values
	isList bool
}

// locations returns all values of a tree, sorted by path.
func locations(v any, path string) []location {
	switch v := v.(type) {
	case map[string]any:
		all := []location{{path: path, length: len(v)}}
		for _, key := range slices.Sorted(maps.Keys(v)) {
			all = append(all, locations(v[key], path+"/"+strings.NewReplacer("~", "~0", "/", "~1").Replace(key))...)
		}
		return all
	case []any:
		all := []location{{path: path, length: len(v), isList: true}}
		for i := range v {
			all = append(all, locations(v[i], path+"/"+strconv.Itoa(i))...)
		}
		return all
	}
	return []location{{path: path, length: -1}}
}

var fuzzValues = []any{
	"plain", "8000", "yes", "a: b # c", "two\nlines", "", nil, true, 7.0, []any{}, map[string]any{},
	[]any{"a", map[string]any{"b": []any{"c"}}},
	map[string]any{"name": "x", "env": []any{map[string]any{"name": "y"}}},
}

// chosen returns an operation for a tree that depends on four bytes.
func chosen(tree any, choice []byte) (manifest.Operation, bool) {
	all := locations(tree, "")
	at := all[(int(choice[0])<<8|int(choice[1]))%len(all)]
	value := fuzzValues[int(choice[2])%len(fuzzValues)]
	switch {
	case choice[3]%3 == 0 && at.path != "":
		return manifest.Operation{Op: "remove", Path: at.path}, true
	case choice[3]%3 == 1 && at.path != "":
		return manifest.Operation{Op: "replace", Path: at.path, Value: value}, true
	case at.isList:
		return manifest.Operation{Op: "add", Path: at.path + "/" + strconv.Itoa(int(choice[3])%(at.length+1)), Value: value}, true
	case at.length >= 0:
		return manifest.Operation{Op: "add", Path: fmt.Sprintf("%s/added-%d", at.path, choice[3]), Value: value}, true
	}
	return manifest.Operation{}, false
}

// applied implements RFC 6902 for decoded values, independently of the package.
func applied(tree any, op manifest.Operation, tokens []string) any {
	if len(tokens) == 0 {
		return op.Value
	}
	token := strings.NewReplacer("~1", "/", "~0", "~").Replace(tokens[0])
	switch t := tree.(type) {
	case map[string]any:
		t = maps.Clone(t)
		if len(tokens) == 1 && op.Op == "remove" {
			delete(t, token)
		} else {
			t[token] = applied(t[token], op, tokens[1:])
		}
		return t
	case []any:
		t = slices.Clone(t)
		i, _ := strconv.Atoi(token)
		switch {
		case len(tokens) > 1 || op.Op == "replace":
			t[i] = applied(t[i], op, tokens[1:])
		case op.Op == "remove":
			t = slices.Delete(t, i, i+1)
		default:
			t = slices.Insert(t, i, op.Value)
		}
		return t
	}
	return tree
}

// FuzzSplice checks that the edited text has the values of the patched tree, that documents without
// operations do not change, and that additions remove no byte.
func FuzzSplice(f *testing.F) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		archive, err := txtar.ParseFile(file)
		if err != nil {
			f.Fatal(err)
		}
		for i := range 20 {
			f.Add(archive.Files[0].Data, []byte{0, byte(7 * i), byte(i), byte(i), 0, byte(3 * i), byte(2 * i), byte(i / 3)})
		}
	}
	f.Fuzz(func(t *testing.T, text, choices []byte) {
		var all [][]byte
		for _, part := range split(text) {
			all = append(all, part.Text)
			checkSplice(t, part, choices)
		}
		if !bytes.Equal(bytes.Join(all, nil), text) {
			t.Errorf("the parts %q are not the stream %q", all, text)
		}
	})
}

func checkSplice(t *testing.T, part manifest.Part, choices []byte) {
	d, err := manifest.Parse(part)
	if err != nil {
		checkError(t, err, part)
		return
	}
	if !d.Root().IsMapping() {
		return
	}
	want, err := d.Root().Value()
	if err != nil {
		return
	}
	onlyAdds, changed := true, false
	for ; len(choices) >= 4; choices = choices[4:] {
		op, ok := chosen(want, choices)
		if !ok {
			continue
		}
		onlyAdds = onlyAdds && op.Op == "add"
		if err := d.Root().Apply([]manifest.Operation{op}); err != nil {
			checkError(t, err, part)
			return
		}
		changed = true
		want = applied(want, op, strings.Split(op.Path, "/")[1:])
	}
	got, err := d.Text()
	if err != nil {
		checkError(t, err, part)
		return
	}
	if !changed && !bytes.Equal(got, part.Text) {
		t.Errorf("%q became %q without an operation", part.Text, got)
	}
	if onlyAdds && !isWithin(part.Text, got) {
		t.Errorf("%q lacks bytes of %q", got, part.Text)
	}
	checkValue(t, got, want)
}

func checkValue(t *testing.T, text []byte, want any) {
	t.Helper()
	d, err := manifest.Parse(manifest.Part{Text: text, Line: 1})
	if err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	got, err := d.Root().Value()
	if err != nil || !reflect.DeepEqual(numbers(got), numbers(want)) {
		t.Errorf("%q has the value %#v, %v\nwant %#v", text, got, err, want)
	}
}

// numbers converts every number to float64, as encoding/json does.
func numbers(v any) any {
	switch v := v.(type) {
	case int64:
		return float64(v)
	case map[string]any:
		m := map[string]any{}
		for key, value := range v {
			m[key] = numbers(value)
		}
		return m
	case []any:
		l := make([]any, len(v))
		for i := range v {
			l[i] = numbers(v[i])
		}
		return l
	}
	return v
}

// isWithin reports whether whole contains all bytes of part in order, except for blanks, which may be
// removed from {  }.
func isWithin(part, whole []byte) bool {
	part = bytes.Join(bytes.Fields(part), nil)
	for _, b := range whole {
		if len(part) > 0 && part[0] == b {
			part = part[1:]
		}
	}
	return len(part) == 0
}

func checkError(t *testing.T, err error, part manifest.Part) {
	t.Helper()
	where, ok := errors.AsType[*manifest.Error](err)
	if !ok || where.Line < part.Line || strings.Contains(where.Reason, "\n") {
		t.Errorf("%v: want an error of one line with a line number", err)
	}
}
