package main

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/diff"
	"github.com/rogpeppe/go-internal/testscript"

	"imds-oidc-proxy/internal/manifest"
)

var update = flag.Bool("update", false, "write the outputs into the scripts")

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"imds-migrate": main, pluginName: main})
}

// TestScripts runs the transcripts in testdata/script with the real program.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script", UpdateScripts: *update,
		Setup: func(e *testscript.Env) error {
			// Flags for scripts that do not test them.
			e.Setenv("P", configuration[0])
			e.Setenv("I", configuration[1])
			e.Setenv("T", configuration[2])
			e.Setenv("C", configuration[3])
			// A file as PowerShell's > writes it, and a file with a byte order mark.
			return errors.Join(os.CopyFS(e.WorkDir+"/cases", os.DirFS("testdata/cases")),
				os.WriteFile(e.WorkDir+"/wide.yaml", []byte("\xff\xfek\x00:\x00 \x00v\x00"), 0o644),
				os.WriteFile(e.WorkDir+"/marked.yaml", []byte("\xef\xbb\xbfkind:   Marked\n"), 0o644))
		},
	})
}

// configuration is the flags that every run of inject in these tests needs.
var configuration = []string{
	"--proxy-image=registry.example.test/imds-oidc-proxy:v0.1.0",
	"--proxy-init-image=registry.example.test/imds-oidc-proxy-init:v0.1.0",
	"--tenant-id=22222222-2222-4222-8222-222222222222",
	"--client-id=11111111-1111-4111-8111-111111111111",
}

// filter runs a command on one text.
func filter(t *testing.T, command string, text []byte, args ...string) (manifests []byte, messages string) {
	t.Helper()
	var out, log bytes.Buffer
	args = append(append([]string{command}, configuration...), args...)
	if code := run(args, bytes.NewReader(text), &out, &log); code != exitOK {
		t.Fatalf("exit code %d: %s", code, log.String())
	}
	return out.Bytes(), log.String()
}

var forms = map[string]func([]byte) []byte{
	"as is":         func(b []byte) []byte { return b },
	"CRLF":          func(b []byte) []byte { return bytes.ReplaceAll(b, []byte("\n"), []byte("\r\n")) },
	"no last break": func(b []byte) []byte { return bytes.TrimSuffix(b, []byte("\n")) },
	"byte order":    func(b []byte) []byte { return append([]byte("\xef\xbb\xbf"), b...) },
}

// TestRoundTrip checks that inject is idempotent, and that uninject restores all bytes of a manifest,
// or else that inject has warned.
func TestRoundTrip(t *testing.T) {
	files, err := filepath.Glob("testdata/corpus/*")
	if err != nil || len(files) < 5 {
		t.Fatal("no corpus", err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for form, change := range forms {
			for _, mode := range [][]string{{}, {"--all"}, {"--all", "--native-sidecar=off"}} {
				t.Run(strings.Join(append([]string{filepath.Base(file), form}, mode...), "/"), func(t *testing.T) {
					checkRoundTrip(t, change(text), mode)
				})
			}
		}
	}
}

func checkRoundTrip(t *testing.T, text []byte, mode []string) {
	if slices.Contains(mode, "--all") {
		text = unmarked(t, text)
	}
	injected, messages := filter(t, commandInject, text, mode...)
	if !bytes.Contains(injected, []byte("azwi-proxy-init")) {
		t.Fatalf("nothing injected:\n%s", injected)
	}
	if again, _ := filter(t, commandInject, injected, mode...); !bytes.Equal(again, injected) {
		t.Errorf("a second run changes the manifest:\n%s", diff.Diff("first", injected, "second", again))
	}
	restored, _ := filter(t, commandUninject, injected, mode...)
	warned := strings.Contains(messages, "warning: imds-migrate uninject cannot undo")
	if exact := bytes.Equal(restored, text); exact == warned {
		t.Errorf("warned: %t: %s; after uninject:\n%s", warned, messages, diff.Diff("before", text, "after", restored))
	}
	checkAdditions(t, text, injected)
}

// unmarked returns manifests without the labels and annotations that --all adds.
func unmarked(t *testing.T, text []byte) []byte {
	t.Helper()
	m := &migration{options: options{namespace: "default"}, out: new(spool), messages: t.Output()}
	in, err := spooled(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	err = m.documents(&file{name: "corpus", stdin: in}, everyPart, func(d document) error {
		for _, o := range d.objects {
			paths, _ := m.options.paths(o.kindAndGroup())
			for _, path := range paths {
				places, err := o.places(path)
				for _, p := range places {
					err = errors.Join(err, p.node.Apply(unmark(p.node)))
				}
				if err != nil {
					return err
				}
			}
		}
		text, err := d.Text()
		m.out.Write(text)
		return err
	})
	if err != nil || m.refused > 0 {
		t.Fatal(err)
	}
	return m.out.memory
}

func unmark(template *manifest.Node) (operations []manifest.Operation) {
	for _, mark := range marks {
		part := template.Get("metadata", mark.part)
		switch path := "/metadata/" + mark.part; {
		case part.Get(mark.name) == nil:
		case part.Len() == 1:
			operations = append(operations, manifest.Operation{Op: "remove", Path: path})
		default:
			operations = append(operations, manifest.Operation{Op: "remove", Path: path + "/" + pointer(mark.name)})
		}
	}
	return operations
}

// checkAdditions checks that each line of the manifest is still there in order. In JSON and in flow
// style, lines may change: they get a comma, or more text in brackets.
func checkAdditions(t *testing.T, before, after []byte) {
	for line := range bytes.Lines(before) {
		line = bytes.TrimRight(line, "\r\n")
		if bytes.ContainsAny(line, "{}[]") || bytes.HasPrefix(bytes.TrimSpace(before), []byte("{")) {
			continue
		}
		i := bytes.Index(after, line)
		if i < 0 {
			t.Fatalf("the line %q is missing, or in another place", line)
		}
		after = after[i+len(line):]
	}
}
