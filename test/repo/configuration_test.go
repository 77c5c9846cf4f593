// Package repo keeps the repository consistent: packages import only what the import map
// allows, the documentation matches the programs, and its links are valid.
package repo

import (
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
)

const repository = "../.."

var update = flag.Bool("update", false, "write the generated parts into docs/")

// watchSources reads the directories that the binaries are built from, so that go test
// does not reuse a cached result after a change there.
func watchSources(t *testing.T) {
	t.Helper()
	for _, root := range []string{"cmd", "internal"} {
		err := filepath.WalkDir(filepath.Join(repository, root), func(string, fs.DirEntry, error) error { return nil })
		if err != nil {
			t.Fatal(err)
		}
	}
}

// help returns a command's help text.
func help(t *testing.T, dir, command string, args ...string) string {
	t.Helper()
	cmd := exec.Command(filepath.Join(dir, command), append(args, "--help")...)
	cmd.Env = []string{}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", command, err, out)
	}
	return string(out)
}

// option is one line of a list of flags.
type option struct{ name, value, defaultText, meaning string }

var (
	// flagLine is any line of a help text that describes a flag.
	flagLine = regexp.MustCompile(`(?m)^ +(?:-., )?--.*$`)
	// optionLine splits such a line. pflag writes [=true|false] after a flag that takes no
	// value, and [=VALUE] after a flag whose value is optional; the table omits both.
	optionLine   = regexp.MustCompile(`^ +(?:-., )?--([^ =[]+)(?: ([^ ].*?))?(?:\[=.*?\])? {3,}(.+)$`)
	defaultValue = regexp.MustCompile(`^(.*) \(default "?(.*?)"?\)$`)
	// flagOfVariable matches a variable and its flag, as proxy-init lists them.
	flagOfVariable = regexp.MustCompile(`(?m)^  ([A-Z_]+) +--([a-z-]+)$`)
	// variableLine matches a variable and its meaning, as proxy lists them.
	variableLine = regexp.MustCompile(`(?m)^  ((?:[A-Z_]{3,}(?:, )?)+) {2,}(.+)$`)
)

// options reads the flags of a help text. It fails for a flag that it cannot read, so that no
// flag is missing from the documentation.
func options(t *testing.T, help string) []option {
	t.Helper()
	var found []option
	for _, line := range flagLine.FindAllString(help, -1) {
		m := optionLine.FindStringSubmatch(line)
		if m == nil {
			t.Fatalf("cannot read the flag in this line of the help text: fix optionLine:\n%s", line)
		}
		o := option{name: m[1], value: m[2], meaning: m[3]}
		if d := defaultValue.FindStringSubmatch(o.meaning); d != nil {
			o.meaning, o.defaultText = d[1], d[2]
		}
		found = append(found, o)
	}
	return found
}

// proxyVariable returns the environment variable of a flag of the proxy, by the rule that its help
// states. The flags probe and version have none, because they choose what one run does.
func proxyVariable(name string) string {
	if name == "probe" || name == "version" {
		return ""
	}
	return "PROXY_" + strings.TrimPrefix(strings.ToUpper(strings.ReplaceAll(name, "-", "_")), "PROXY_")
}

// initVariables returns a function that returns the environment variable of a flag of proxy-init,
// as its help lists it.
func initVariables(help string) func(string) string {
	variables := map[string]string{}
	for _, m := range flagOfVariable.FindAllStringSubmatch(help, -1) {
		variables[m[2]] = m[1]
	}
	return func(name string) string { return variables[name] }
}

// table returns the flags as a Markdown table. The function variable returns the environment
// variable of a flag; nil: the table has no column for it.
func table(flags []option, variable func(string) string) string {
	var b strings.Builder
	b.WriteString("| flag | variable | default | meaning |\n|---|---|---|---|\n")
	if variable == nil {
		b.Reset()
		b.WriteString("| flag | default | meaning |\n|---|---|---|\n")
	}
	for _, o := range flags {
		fmt.Fprintf(&b, "| %s |", code(strings.TrimSpace("--"+o.name+" "+o.value)))
		if variable != nil {
			fmt.Fprintf(&b, " %s |", code(variable(o.name)))
		}
		fmt.Fprintf(&b, " %s | %s |\n", code(o.defaultText), strings.ReplaceAll(o.meaning, "|", `\|`))
	}
	return b.String()
}

func code(s string) string {
	if s == "" {
		return ""
	}
	return "`" + s + "`"
}

func variables(help string) string {
	var b strings.Builder
	b.WriteString("| variable | meaning |\n|---|---|\n")
	for _, m := range variableLine.FindAllStringSubmatch(help, -1) {
		fmt.Fprintf(&b, "| %s | %s |\n", code(strings.TrimSpace(m[1])), m[2])
	}
	return b.String()
}

// from returns the part of a help text that begins with start, as a Markdown code block.
func from(t *testing.T, help, start string) string {
	t.Helper()
	_, rest, found := strings.Cut(help, start)
	if !found {
		t.Fatalf("the help text has no %q:\n%s", start, help)
	}
	return "```\n" + strings.TrimSpace(start+rest) + "\n```\n"
}

// generated returns the generated parts of docs/configuration.md by the name in their marker.
func generated(t *testing.T, dir string) map[string]string {
	t.Helper()
	proxy, check, clients, proxyInit := help(t, dir, "proxy"), help(t, dir, "proxy", "check"), help(t, dir, "proxy", "clients"), help(t, dir, "proxy-init")
	return map[string]string{
		"proxy flags":           table(options(t, proxy), proxyVariable),
		"proxy variables":       variables(proxy),
		"proxy exit codes":      from(t, proxy, "Exit codes:"),
		"check flags":           table(options(t, check), nil),
		"check exit codes":      from(t, check, "Exit codes:"),
		"clients flags":         table(options(t, clients), nil),
		"clients exit codes":    from(t, clients, "Exit codes:"),
		"proxy-init flags":      table(options(t, proxyInit), initVariables(proxyInit)),
		"proxy-init exit codes": from(t, proxyInit, "Exit codes:"),
	}
}

// TestConfigurationOfCNI: docs/cni.md lists the flags of imds-cni.
func TestConfigurationOfCNI(t *testing.T) {
	flags := options(t, help(t, binaries(t), "imds-cni"))
	checkGenerated(t, repository+"/docs/cni.md", map[string]string{"imds-cni flags": table(flags, func(name string) string {
		if name == "version" {
			return ""
		}
		return "IMDS_CNI_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
	})})
}

// generatedPart matches a part of a page between its markers.
var generatedPart = regexp.MustCompile(`(?s)(<!-- generated: ([a-z -]+) -->\n).*?(<!-- end -->)`)

// TestOptions: options finds the flags of every type in the help text that pflag writes. A new
// version of pflag may write them differently.
func TestOptions(t *testing.T) {
	fs := pflag.NewFlagSet("", pflag.ContinueOnError)
	fs.Bool("bool", false, "off")
	fs.Bool("bool-on", true, "on")
	fs.BoolP("bool-short", "b", false, "off")
	fs.BoolFunc("bool-func", "call", func(string) error { return nil })
	fs.Count("count", "how often")
	fs.Duration("duration", time.Second, "how long")
	fs.Int("int", 1, "`CIDR[:TCP port]` of things")
	fs.String("string", "", "a text")
	fs.StringP("string-short", "s", "x", "a text")
	fs.StringSlice("strings", nil, "texts")
	fs.String("optional", "", "a `text`, or none")
	fs.Lookup("optional").NoOptDefVal = "none"

	var got, want []string
	for _, o := range options(t, "Flags:\n\n"+fs.FlagUsages()+"\nExit status: 0") {
		got = append(got, fmt.Sprintf("%s %q %q", o.name, o.value, o.meaning))
	}
	want = []string{
		`bool "" "off"`, `bool-func "" "call"`, `bool-on "" "on"`, `bool-short "" "off"`,
		`count "count" "how often"`, `duration "duration" "how long"`, `int "CIDR[:TCP port]" "CIDR[:TCP port] of things"`,
		`optional "text" "a text, or none"`, `string "string" "a text"`, `string-short "string" "a text"`,
		`strings "strings" "texts"`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("flags of the help text: got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestConfiguration: docs/configuration.md lists the flags and variables that the programs have.
func TestConfiguration(t *testing.T) {
	dir := binaries(t)
	t.Run("generated", func(t *testing.T) { testGenerated(t, dir) })
	t.Run("variables", func(t *testing.T) { testVariables(t, dir) })
}

// testGenerated fails if docs/configuration.md differs from the help of the programs. `make docs`
// rewrites it.
func testGenerated(t *testing.T, dir string) {
	checkGenerated(t, repository+"/docs/configuration.md", generated(t, dir))
}

// checkGenerated fails if a file does not have these parts between their markers. With -update it
// writes them there.
func checkGenerated(t *testing.T, file string, parts map[string]string) {
	t.Helper()
	old, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	fresh := generatedPart.ReplaceAllStringFunc(string(old), func(s string) string {
		m := generatedPart.FindStringSubmatch(s)
		seen[m[2]] = true
		return m[1] + "\n" + parts[m[2]] + "\n" + m[3]
	})
	for name, text := range parts {
		if !seen[name] {
			t.Errorf("%s has no marker <!-- generated: %s -->", file, name)
		}
		if strings.Count(text, "\n") < 3 {
			t.Errorf("%s: found nothing in the help text: %q", name, text)
		}
	}
	if fresh == string(old) {
		return
	}
	if !*update {
		t.Fatalf("%s is stale: run make docs", file)
	}
	if err := os.WriteFile(file, []byte(fresh), 0o644); err != nil {
		t.Fatal(err)
	}
}

// testVariables: the proxy reads the variables that [proxyVariable] returns. It must refuse an
// invalid value with an error that names the variable or its flag.
func testVariables(t *testing.T, dir string) {
	for _, name := range []string{"proxy-port", "admin-address", "log-level", "log-format", "probe-timeout", "strict-api-version", "imds-passthrough"} {
		cmd := exec.Command(filepath.Join(dir, "proxy"), "--version")
		cmd.Env = []string{proxyVariable(name) + "=?"}
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), name) && !strings.Contains(string(out), proxyVariable(name)) {
			t.Errorf("%s=?: got %v, want an error that names the variable: %s", proxyVariable(name), err, out)
		}
	}
}
