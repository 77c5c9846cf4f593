package repo

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"
)

const module = "imds-oidc-proxy"

// allowed lists, for each package outside test/, the packages of this module that it may import. A
// package that is not listed may exist only in test/.
var allowed = map[string][]string{
	"cmd/proxy":           {"internal/flagenv", "internal/imds", "internal/exchange", "internal/tokens", "internal/health", "internal/metrics", "internal/census", "internal/logging", "internal/loglimit", "internal/diagnose", "internal/server", "internal/sockets", "internal/termlog"},
	"cmd/proxy-init":      {"internal/flagenv", "internal/logging", "internal/netrules", "internal/termlog"},
	"cmd/imds-cni":        {"internal/cni", "internal/cniinstall", "internal/flagenv", "internal/health", "internal/logging", "internal/netrules", "internal/nodetaint", "internal/server"},
	"internal/azure":      {},
	"internal/flagenv":    {},
	"internal/imds":       {"internal/exchange", "internal/tokens"},
	"internal/server":     {},
	"internal/tokens":     {"internal/exchange"},
	"internal/exchange":   {},
	"internal/diagnose":   {"internal/exchange", "internal/tokens"},
	"internal/netrules":   {"internal/sockets"},
	"internal/nodetaint":  {},
	"internal/sockets":    {},
	"internal/cnirequest": {},
	"internal/cni":        {"internal/cnirequest", "internal/netrules"},
	"internal/cniinstall": {},
	"internal/health":     {},
	"internal/metrics":    {},
	"internal/census":     {},
	"internal/logging":    {"internal/flagenv"},
	"internal/loglimit":   {},
	"internal/termlog":    {},
	"internal/inject":     {"internal/cnirequest", "internal/flagenv"},
	"internal/manifest":   {},
	"internal/shell":      {},
	"internal/signs":      {},
	"internal/survey":     {"internal/signs"},
	"internal/plan":       {"internal/inject", "internal/signs", "internal/survey"},
	"internal/retire":     {"internal/plan", "internal/report", "internal/shell", "internal/survey"},
	"internal/output":     {"internal/inject", "internal/plan", "internal/report", "internal/retire", "internal/shell"},
	"internal/preflight":  {"internal/inject", "internal/survey"},
	"internal/report":     {"internal/census", "internal/inject", "internal/survey"},
	"internal/verify":     {"internal/inject", "internal/survey"},
	"cmd/imds-migrate":    {"internal/flagenv", "internal/inject", "internal/manifest", "internal/output", "internal/plan", "internal/preflight", "internal/report", "internal/retire", "internal/survey", "internal/verify"},
	"cmd/webhook":         {"internal/flagenv", "internal/health", "internal/inject", "internal/logging", "internal/loglimit"},
}

// everywhere lists the packages that every package may import.
var everywhere = []string{"internal/azure"}

// exclusive lists the dependencies that only one package may import.
var exclusive = map[string]string{
	"github.com/AzureAD/microsoft-authentication-library-for-go": "internal/exchange",
	"github.com/coreos/go-iptables":                              "internal/netrules",
	"github.com/fsnotify/fsnotify":                               "internal/cniinstall",
	"github.com/google/nftables":                                 "internal/netrules",
	"github.com/mdlayher/netlink":                                "internal/netrules",
	"github.com/go-chi/chi":                                      "cmd/proxy",
	"github.com/robfig/cron":                                     "internal/report",
	"go.yaml.in/yaml":                                            "internal/manifest",
}

// forbidden lists the import paths that a program in an injected pod must not link, nor any package
// that it may import: because of k8s.io the sidecar of azure-workload-identity v1.6.0 is a binary of
// 37 MB. ADR 0040 says why both kinds of programs still share one module.
var forbidden = []string{"k8s.io/", "sigs.k8s.io/"}

// kubernetesSide lists the packages that may link what is forbidden to others: they patch pods and
// do not run in them.
var kubernetesSide = []string{"internal/inject", "internal/survey", "internal/plan", "internal/output", "internal/preflight", "internal/report", "internal/retire", "internal/verify", "cmd/webhook", "cmd/imds-migrate"}

type goPackage struct {
	ImportPath string
	Imports    []string
	Deps       []string
}

// TestImports: every package outside test/ imports only what the lists above allow.
func TestImports(t *testing.T) {
	for _, p := range list(t, "../../cmd/...", "../../internal/...") {
		name := strings.TrimPrefix(p.ImportPath, module+"/")
		may, known := allowed[name]
		if !known {
			t.Errorf("%s is not in the import map: add it to test/repo/imports_test.go", name)
			continue
		}
		for _, imported := range p.Imports {
			checkImport(t, name, may, imported)
		}
		if !slices.Contains(kubernetesSide, name) {
			checkForbidden(t, name, p.Deps)
		}
		if slices.Contains(everywhere, name) {
			checkStandardOnly(t, name, p.Deps)
		}
	}
}

func checkForbidden(t *testing.T, name string, deps []string) {
	t.Helper()
	for _, dep := range deps {
		for _, prefix := range forbidden {
			if strings.HasPrefix(dep, prefix) {
				t.Errorf("%s links %s, which a program in an injected pod must not link", name, dep)
			}
		}
	}
}

// checkStandardOnly checks that a package depends only on the standard library, because every
// package may import it. An import path of the standard library has no dot before its first slash.
func checkStandardOnly(t *testing.T, name string, deps []string) {
	t.Helper()
	for _, dep := range deps {
		first, _, _ := strings.Cut(dep, "/")
		if strings.Contains(first, ".") || first == module {
			t.Errorf("%s links %s, which is not in the standard library", name, dep)
		}
	}
}

func checkImport(t *testing.T, name string, may []string, imported string) {
	t.Helper()
	if other, ours := strings.CutPrefix(imported, module+"/"); ours && !slices.Contains(may, other) && !slices.Contains(everywhere, other) {
		t.Errorf("%s imports %s; it may import %q", name, other, may)
	}
	for dependency, home := range exclusive {
		if strings.HasPrefix(imported, dependency) && name != home {
			t.Errorf("%s imports %s, which only %s may import", name, imported, home)
		}
	}
}

// TestContributingMap: the map in CONTRIBUTING.md names every directory with Go files, and no other. Below test/,
// the line of a directory also covers its subdirectories.
func TestContributingMap(t *testing.T) {
	named, found := mapped(t), map[string]bool{}
	for _, file := range files(t, "cmd/**.go", "internal/**.go", "test/**.go") {
		dir := path.Dir(file)
		name := dir
		for !named[name] && strings.HasPrefix(name, "test/") {
			name = path.Dir(name)
		}
		if !named[name] && !found[dir] {
			t.Errorf("%s is not in the map of CONTRIBUTING.md: add it, with one sentence", dir)
		}
		found[name], found[dir] = true, true
	}
	for name := range named {
		if !found[name] {
			t.Errorf("the map of CONTRIBUTING.md names %s, which has no Go files: remove it", name)
		}
	}
}

// mapped returns the first words of the lines of the map.
func mapped(t *testing.T) map[string]bool {
	t.Helper()
	text, err := os.ReadFile(repository + "/CONTRIBUTING.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(text), "\n## The map\n\n```\n")
	block, _, _ := strings.Cut(section, "```")
	names := map[string]bool{}
	for line := range strings.Lines(block) {
		if words := strings.Fields(line); len(words) > 0 {
			names[words[0]] = true
		}
	}
	return names
}

// list returns packages as the go command lists them, so that build tags and generated files are
// treated as in a build.
func list(t *testing.T, patterns ...string) []goPackage {
	t.Helper()
	out, err := exec.Command("go", append([]string{"list", "-deps=false", "-json=ImportPath,Imports,Deps"}, patterns...)...).Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var packages []goPackage
	decoder := json.NewDecoder(strings.NewReader(string(out)))
	for {
		var p goPackage
		err := decoder.Decode(&p)
		if errors.Is(err, io.EOF) {
			return packages
		}
		if err != nil {
			t.Fatal(err)
		}
		packages = append(packages, p)
	}
}
