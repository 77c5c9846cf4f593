package repo

import (
	"maps"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// foreign are flags and variables in the documentation that belong to Prometheus, Helm, kubectl and
// Azure's SDKs.
var foreign = []string{"--plain-http", "--storage.tsdb.retention.time", "--custom", "AZURE_CLIENT_SECRET", "AZURE_CLIENT_CERTIFICATE_PATH", "AZURE_USERNAME"}

var (
	flagName = regexp.MustCompile(`--[a-z][a-z.-]*`)
	// block is a fenced block with its language.
	block = regexp.MustCompile("(?ms)^ *```([a-z]*)\n(.*?)^ *```")
	// call is a program where a command begins: on a line of its own, after a prompt, a pipe
	// or an operator, or after the -- of kubectl. The rest is its arguments.
	call = regexp.MustCompile(`(?:^|&& |\|\| |\| |; | -- )(?:\$ )?(?:/|\./|bin/)?(proxy-init|proxy|webhook|imds-migrate|imds-cni)((?: [^|;&#]*)?)`)
	// subcommand is an argument that can be the name of a command.
	subcommand = regexp.MustCompile(`^[a-z]+$`)
)

// program is a program of this repository with its help text and the flags in the help texts
// of all its commands.
type program struct {
	path, help string
	flags      map[string]bool
}

// has reports whether the program has a flag, listed or hidden.
func (p program) has(flag string) bool {
	return p.flags[flag] || exec.Command(p.path, flag, "--help").Run() == nil
}

// takes reports whether the program has a command: its help text must show how to call it.
func (p program) takes(command string) bool {
	return regexp.MustCompile(`\b` + filepath.Base(p.path) + ` (?:[a-z]+ \| )*` + command + `\b`).MatchString(p.help)
}

func readPrograms(t *testing.T, dir string) map[string]program {
	t.Helper()
	all := map[string]program{}
	for name, commands := range map[string][]string{"proxy": {"", "check", "clients"}, "proxy-init": {""}, "webhook": {""}, "imds-migrate": {"", "inject", "plan", "check", "verify", "report", "retire"}, "imds-cni": {""}} {
		p := program{path: filepath.Join(dir, name), help: help(t, dir, name), flags: map[string]bool{"--help": true}}
		for _, command := range commands {
			for _, line := range flagLine.FindAllString(help(t, dir, name, strings.Fields(command)...), -1) {
				p.flags[flagName.FindString(line)] = true
			}
		}
		if len(p.flags) < 5 {
			t.Fatalf("%s: found the flags %v: flagLine does not match its help text", name, slices.Collect(maps.Keys(p.flags)))
		}
		all[name] = p
	}
	return all
}

// TestDocumentedNames: commands, flags, variables and exit codes are the same in documentation
// and programs.
func TestDocumentedNames(t *testing.T) {
	programs := readPrograms(t, binaries(t))
	t.Run("commands", func(t *testing.T) { testCommands(t, programs) })
	t.Run("variables", func(t *testing.T) { testEnvironment(t, programs) })
	t.Run("exit codes", func(t *testing.T) { testExitCodes(t, programs) })
}

// testCommands checks commands and flags in the documentation. CHANGELOG.md and the decision
// records may name those of the past.
func testCommands(t *testing.T, programs map[string]program) {
	calls, flags := 0, 0
	for _, file := range files(t, "*.md") {
		if file == "CHANGELOG.md" || strings.HasPrefix(file, "docs/adr/") {
			continue
		}
		lines, spans := commandsOf(read(t, file))
		for _, line := range append(lines, spans...) {
			for _, m := range call.FindAllStringSubmatch(line, -1) {
				calls++
				checkCall(t, file, m[1], programs[m[1]], strings.Fields(m[2]))
			}
		}
		for _, span := range spans {
			if flag := flagName.FindString(span); flag != "" && strings.HasPrefix(span, flag) {
				flags++
				checkFlag(t, file, flag, programs)
			}
		}
	}
	if calls < 20 || flags < 50 {
		t.Errorf("found %d calls and %d flags in the documentation, want at least 20 and 50", calls, flags)
	}
}

func checkCall(t *testing.T, file, name string, p program, args []string) {
	t.Helper()
	if len(args) > 0 && subcommand.MatchString(args[0]) && !p.takes(args[0]) {
		t.Errorf("%s: %s has no command %q", file, name, args[0])
	}
	for _, arg := range args {
		if flag := flagName.FindString(arg); flag != "" && strings.HasPrefix(arg, flag) && !p.has(flag) {
			t.Errorf("%s: %s has no flag %s", file, name, flag)
		}
	}
}

func checkFlag(t *testing.T, file, flag string, programs map[string]program) {
	t.Helper()
	for _, p := range programs {
		if p.has(flag) {
			return
		}
	}
	if !slices.Contains(foreign, flag) {
		t.Errorf("%s: no program has the flag %s", file, flag)
	}
}

// commandsOf returns the commands of a page: the lines of its fenced blocks, without the output
// of a console, and its code spans.
func commandsOf(markdown string) (lines, spans []string) {
	for _, block := range block.FindAllStringSubmatch(markdown, -1) {
		if !slices.Contains([]string{"", "console", "sh"}, block[1]) {
			continue
		}
		for line := range strings.Lines(strings.ReplaceAll(block[2], "\\\n", " ")) {
			line = strings.TrimSpace(line)
			if block[1] != "console" || strings.HasPrefix(line, "$ ") {
				lines = append(lines, line)
			}
		}
	}
	for _, span := range codeSpan.FindAllString(fence.ReplaceAllString(markdown, ""), -1) {
		spans = append(spans, strings.Trim(span, "`"))
	}
	return lines, spans
}

// testEnvironment checks that something reads each environment variable in the documentation:
// the source or a manifest names it, or it is that of a flag.
func testEnvironment(t *testing.T, programs map[string]program) {
	source := "AZURE_CLIENT_SECRET AZURE_CLIENT_CERTIFICATE_PATH AZURE_USERNAME" // SDKs read these
	for _, file := range files(t, "cmd/*.go", "internal/*.go", "deploy/*.yaml") {
		source += read(t, file)
	}
	for _, p := range programs {
		for flag := range p.flags {
			name := strings.ToUpper(strings.ReplaceAll(strings.TrimPrefix(flag, "--"), "-", "_"))
			source += " PROXY_" + name + " WEBHOOK_" + name + " IMDS_CNI_" + name
		}
	}
	names := regexp.MustCompile(`\b(?:AZURE|PROXY|WEBHOOK|METADATA|IMDS_CNI)_[A-Z_]*[A-Z]\b`).FindAllString(documentation(t), -1)
	if len(names) < 50 {
		t.Errorf("found %d variables in the documentation, want at least 50", len(names))
	}
	for _, name := range names {
		if !strings.Contains(source, name) && !slices.Contains(foreign, name) {
			t.Errorf("the documentation names the environment variable %s, which nothing reads", name)
		}
	}
}

// documentation returns the text of all pages that describe the programs as they are.
func documentation(t *testing.T) string {
	t.Helper()
	text := ""
	for _, file := range files(t, "docs/*.md", "README.md", "deploy/README.md", "charts/*/README.md") {
		if !strings.HasPrefix(file, "docs/adr/") {
			text += read(t, file)
		}
	}
	return text
}

// testExitCodes checks that each exit code in the help texts of imds-migrate, imds-cni and the
// webhook has a row in their pages. Those of proxy and proxy-init are generated.
func testExitCodes(t *testing.T, programs map[string]program) {
	for name, page := range map[string]string{"imds-migrate": "docs/imds-migrate.md", "webhook": "docs/webhook.md", "imds-cni": "docs/cni.md"} {
		_, list, found := strings.Cut(programs[name].help, "Exit codes:\n")
		codes := regexp.MustCompile(`(?m)^ +(\d+)  `).FindAllStringSubmatch(list, -1)
		if !found || len(codes) < 3 {
			t.Errorf("%s --help has the exit codes %q, want at least 3", name, codes)
		}
		for _, code := range codes {
			if !strings.Contains(read(t, page), "\n| "+code[1]+" | ") {
				t.Errorf("%s has no row for the exit code %s", page, code[1])
			}
		}
	}
}

// TestDocumentedAnnotations: each annotation, label and metric in the programs' source is in
// the documentation.
func TestDocumentedAnnotations(t *testing.T) {
	quoted := regexp.MustCompile(`"((?:azure\.workload\.identity|imds-oidc-proxy)/[a-z-]*[a-z])"`)
	prefix := regexp.MustCompile(`const prefix = "(imds_oidc_proxy_[a-z_]*)"`)
	suffix := regexp.MustCompile(`\bprefix ?\+ ?"([a-z_]+)"`)
	names := map[string]bool{}
	for _, file := range files(t, "cmd/*.go", "internal/*.go") {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		text := read(t, file)
		for _, m := range quoted.FindAllStringSubmatch(text, -1) {
			names[m[1]] = true
		}
		if begin := prefix.FindStringSubmatch(text); begin != nil {
			for _, m := range suffix.FindAllStringSubmatch(text, -1) {
				names[begin[1]+m[1]] = true
			}
		}
	}
	if len(names) < 20 {
		t.Errorf("found the names %v, want at least 20", slices.Collect(maps.Keys(names)))
	}
	text := documentation(t)
	for name := range names {
		if !strings.Contains(text, name) {
			t.Errorf("%s is not documented", name)
		}
	}
}
