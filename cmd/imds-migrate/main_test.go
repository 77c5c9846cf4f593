package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/diff"
	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"imds-migrate": main})
}

// TestScripts runs the program as a person would: testdata/script has the transcripts.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			// For scripts that are not about these: $P, $I, $T, $C.
			e.Setenv("P", configuration[0])
			e.Setenv("I", configuration[1])
			e.Setenv("T", configuration[2])
			e.Setenv("C", configuration[3])
			// What PowerShell's > writes, for the script about refusals; and what begins
			// with a byte order mark, for the one about files.
			return errors.Join(os.WriteFile(e.WorkDir+"/wide.yaml", []byte("\xff\xfek\x00:\x00 \x00v\x00"), 0o644),
				os.WriteFile(e.WorkDir+"/marked.yaml", []byte("\xef\xbb\xbfkind:   Marked\n"), 0o644))
		},
	})
}

// configuration is what every run here needs.
var configuration = []string{
	"--proxy-image=registry.example.test/imds-oidc-proxy:v0.1.0",
	"--proxy-init-image=registry.example.test/imds-oidc-proxy-init:v0.1.0",
	"--tenant-id=22222222-2222-4222-8222-222222222222",
	"--client-id=11111111-1111-4111-8111-111111111111",
}

// filter runs imds-migrate inject on one text.
func filter(t *testing.T, text []byte, args ...string) []byte {
	t.Helper()
	out, _ := filterAndTell(t, text, args...)
	return out
}

func filterAndTell(t *testing.T, text []byte, args ...string) (manifests []byte, messages string) {
	t.Helper()
	var out, told bytes.Buffer
	args = append(append([]string{"inject"}, configuration...), args...)
	if code := run(args, bytes.NewReader(text), &out, &told); code != exitOK {
		t.Fatalf("exit code %d: %s", code, told.String())
	}
	return out.Bytes(), told.String()
}

var forms = map[string]func([]byte) []byte{
	"as is":         func(b []byte) []byte { return b },
	"CRLF":          func(b []byte) []byte { return bytes.ReplaceAll(b, []byte("\n"), []byte("\r\n")) },
	"no last break": func(b []byte) []byte { return bytes.TrimSuffix(b, []byte("\n")) },
	"byte order":    func(b []byte) []byte { return append([]byte("\xef\xbb\xbf"), b...) },
}

// TestThereAndBack: once or twice is the same, and the way back leads to the same bytes,
// whatever the manifest looks like; or there is a warning, and only then.
func TestThereAndBack(t *testing.T) {
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
					checkThereAndBack(t, change(text), mode)
				})
			}
		}
	}
}

func checkThereAndBack(t *testing.T, text []byte, mode []string) {
	if slices.Contains(mode, "--all") {
		text = filter(t, text, "--uninject", "--all") // without the marks that are there
	}
	injected, messages := filterAndTell(t, text, mode...)
	if !bytes.Contains(injected, []byte("azwi-proxy-init")) {
		t.Fatalf("nothing injected:\n%s", injected)
	}
	if again := filter(t, injected, mode...); !bytes.Equal(again, injected) {
		t.Errorf("the second time is not the first:\n%s", diff.Diff("first", injected, "second", again))
	}
	back, warned := filter(t, injected, append(mode, "--uninject")...), strings.Contains(messages, "warning: --uninject will not")
	if exact := bytes.Equal(back, text); exact == warned {
		t.Errorf("warned: %t: %s; there and back:\n%s", warned, messages, diff.Diff("before", text, "after", back))
	}
	checkAdditions(t, text, injected)
}

// checkAdditions: what was a line stays one, but for JSON, where a line may get a comma
// or what follows in its brackets.
func checkAdditions(t *testing.T, before, after []byte) {
	for line := range bytes.Lines(before) {
		line = bytes.TrimRight(line, "\r\n")
		if bytes.ContainsAny(line, "{}[]") || bytes.HasPrefix(bytes.TrimSpace(before), []byte("{")) {
			continue
		}
		i := bytes.Index(after, line)
		if i < 0 {
			t.Fatalf("the line %q is gone, or not where it was", line)
		}
		after = after[i+len(line):]
	}
}
