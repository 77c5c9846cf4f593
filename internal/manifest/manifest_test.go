package manifest_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/rogpeppe/go-internal/diff"
	"github.com/rogpeppe/go-internal/txtar"

	"imds-oidc-proxy/internal/manifest"
)

var update = flag.Bool("update", false, "write the patched texts into testdata")

// split returns the parts of a stream.
func split(text []byte) []manifest.Part {
	var parts []manifest.Part
	for reader := manifest.NewReader(bytes.NewReader(text)); ; {
		part, err := reader.Next()
		if err != nil {
			return parts
		}
		parts = append(parts, part)
	}
}

// TestReader checks where a stream is split, and the first line of each part.
func TestReader(t *testing.T) {
	for _, c := range []struct {
		text string
		want []manifest.Part
	}{
		{"", nil},
		{"a: 1", parts("a: 1", 1)},
		{"---\na: 1\n---\nb: 1\n", parts("---\na: 1\n", 1, "---\nb: 1\n", 3)},
		{"# c\n---\na: 1\n", parts("# c\n---\na: 1\n", 1)},
		{"---\n---\n", parts("---\n", 1, "---\n", 2)},
		{"a: 1\r\n---\r\nb: 1\r---\rc: 1", parts("a: 1\r\n", 1, "---\r\nb: 1\r", 2, "---\rc: 1", 4)},
		{"a: 1\n...\n%YAML 1.2\n---\nb: 1\n", parts("a: 1\n...\n", 1, "%YAML 1.2\n---\nb: 1\n", 3)},
		{"\xef\xbb\xbf---\na: 1\n---\n", parts("\xef\xbb\xbf---\na: 1\n", 1, "---\n", 3)},
		{"a: |\n  ---\n ...\n--- b\n", parts("a: |\n  ---\n ...\n", 1, "--- b\n", 4)},
	} {
		if got := split([]byte(c.text)); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%q: got %+v, want %+v", c.text, got, c.want)
		}
	}
}

func parts(textsAndLines ...any) []manifest.Part {
	var all []manifest.Part
	for pair := range slices.Chunk(textsAndLines, 2) {
		all = append(all, manifest.Part{Text: []byte(pair[0].(string)), Line: pair[1].(int)})
	}
	return all
}

// TestReaderError checks that an error of the stream is not taken for its end.
func TestReaderError(t *testing.T) {
	for _, text := range []string{"", "a: 1\n", "a: 1\r", "a: 1"} {
		reader := manifest.NewReader(io.MultiReader(strings.NewReader(text), iotest.ErrReader(io.ErrClosedPipe)))
		if _, err := reader.Next(); err != io.ErrClosedPipe {
			t.Errorf("%q: got %v, want %v", text, err, io.ErrClosedPipe)
		}
	}
}

// patched applies a patch to each document of a stream that is a mapping.
func patched(text []byte, patch []manifest.Operation) ([]byte, error) {
	var out bytes.Buffer
	for _, part := range split(text) {
		d, err := manifest.Parse(part)
		if err != nil {
			return nil, err
		}
		if d.Root().IsMapping() {
			if err := d.Root().Apply(patch); err != nil {
				return nil, err
			}
		}
		text, err := d.Text()
		if err != nil {
			return nil, err
		}
		out.Write(text)
	}
	return out.Bytes(), nil
}

func operations(t *testing.T, text []byte) []manifest.Operation {
	t.Helper()
	var patch []manifest.Operation
	for line := range bytes.Lines(text) {
		var op manifest.Operation
		if err := json.Unmarshal(line, &op); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		patch = append(patch, op)
	}
	return patch
}

// forms are other forms of a file with the same lines.
var forms = map[string]func([]byte) []byte{
	"as is":         func(b []byte) []byte { return b },
	"CRLF":          func(b []byte) []byte { return bytes.ReplaceAll(b, []byte("\n"), []byte("\r\n")) },
	"no last break": func(b []byte) []byte { return bytes.TrimSuffix(b, []byte("\n")) },
	"byte order":    func(b []byte) []byte { return append([]byte("\xef\xbb\xbf"), b...) },
	"second": func(b []byte) []byte {
		return append([]byte("# nothing here\n---\n...\n"), b...)
	},
}

// TestPatch compares the results of patches. Each file in testdata has a text, a patch, and the
// patched text or the error. If it also has a reverse patch, the result must be the original text.
func TestPatch(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("no testdata", err)
	}
	for _, file := range files {
		archive, err := txtar.ParseFile(file)
		if err != nil {
			t.Fatal(err)
		}
		sections := map[string][]byte{}
		for _, f := range archive.Files {
			sections[f.Name] = f.Data
		}
		for form, change := range forms {
			t.Run(filepath.Base(file)+"/"+form, func(t *testing.T) { checkPatch(t, sections, change) })
		}
		if *update {
			writeCase(t, file, archive, sections)
		}
	}
}

func checkPatch(t *testing.T, sections map[string][]byte, form func([]byte) []byte) {
	in := form(sections["in"])
	out, err := patched(in, operations(t, sections["patch"]))
	if reason, refused := sections["error"]; refused {
		if err == nil || !strings.Contains(err.Error(), strings.TrimSpace(string(reason))) {
			t.Errorf("error %v, want %s", err, reason)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if want := form(sections["out"]); !bytes.Equal(out, want) && !*update {
		t.Errorf("%s", diff.Diff("want", want, "got", out))
	}
	back, ok := sections["back"]
	if !ok {
		return
	}
	again, err := patched(out, operations(t, back))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(again, in) {
		t.Errorf("after the reverse patch:\n%s", diff.Diff("before", in, "after", again))
	}
}

func writeCase(t *testing.T, file string, archive *txtar.Archive, sections map[string][]byte) {
	t.Helper()
	out, err := patched(sections["in"], operations(t, sections["patch"]))
	if err != nil {
		return
	}
	found := false
	for i := range archive.Files {
		if archive.Files[i].Name == "out" {
			archive.Files[i].Data, found = out, true
		}
	}
	if !found {
		archive.Files = append(archive.Files, txtar.File{Name: "out", Data: out})
	}
	if err := os.WriteFile(file, txtar.Format(archive), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestNoLastBreak checks the error for a block scalar without a final line break: with lines after
// it, it would have one. A scalar with |- has none in any case.
func TestNoLastBreak(t *testing.T) {
	for style, want := range map[string]string{
		"|":  "line 2: the block scalar (|) at the end has no final line break, and an edit would add one: end the file with a line break, or write |-",
		">":  "line 2: the block scalar (|) at the end has no final line break",
		"|+": "line 2: the block scalar (|) at the end has no final line break",
		"|-": "",
	} {
		_, err := patched([]byte("a: "+style+"\n  b"), []manifest.Operation{{Op: "add", Path: "/c", Value: "d"}})
		if (err == nil) != (want == "") || err != nil && !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: %v, want %s", style, err, want)
		}
	}
}

// TestCannotRemove checks the error for a block that would lose all entries, and that starts in the
// line of its key or dash.
func TestCannotRemove(t *testing.T) {
	const sharesLine = ": it starts in the line of its key or dash; put it on lines of its own"
	for _, c := range []struct{ text, path, want string }{
		{"- a: 1\n", "/0/a", "line 1: cannot remove all of 0" + sharesLine},
		{"x:\n  y:\n  - - a\n", "/x/y/0/0", "line 3: cannot remove all of x.y.0" + sharesLine},
		{"--- &a\nb: c\n", "/b", "line 2: cannot remove all of the document"},
	} {
		d, err := parse(c.text)
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Root().Apply([]manifest.Operation{{Op: "remove", Path: c.path}}); err != nil {
			t.Fatal(err)
		}
		if _, err := d.Text(); err == nil || err.Error() != c.want {
			t.Errorf("%q: got %v, want %s", c.text, err, c.want)
		}
	}
}
