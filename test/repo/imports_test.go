// The map of the packages: which package may import which, and which dependency
// belongs to one package only.
package repo

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "imds-oidc-proxy"

// allowed lists, for each package that ships, the packages of this module that
// it may import. A package that is not listed may not exist outside test/.
var allowed = map[string][]string{
	"cmd/proxy":            {"internal/flagenv", "internal/imds", "internal/exchange", "internal/tokens", "internal/health", "internal/metrics", "internal/census", "internal/logging", "internal/loglimit", "internal/diagnose"},
	"cmd/proxy-init":       {"internal/logging", "internal/netrules"},
	"internal/azure":       {},
	"internal/flagenv":     {},
	"internal/imds":        {"internal/exchange", "internal/tokens"},
	"internal/tokens":      {"internal/exchange"},
	"internal/exchange":    {},
	"internal/diagnose":    {"internal/exchange", "internal/tokens"},
	"internal/netrules":    {},
	"internal/health":      {},
	"internal/metrics":     {},
	"internal/census":      {},
	"internal/logging":     {},
	"internal/loglimit":    {},
	"internal/inject":      {},
	"internal/manifest":    {},
	"cmd/imds-migrate":     {"internal/inject", "internal/injectflags", "internal/manifest"},
	"internal/injectflags": {"internal/inject"},
	"cmd/webhook":          {"internal/health", "internal/inject", "internal/injectflags", "internal/logging", "internal/loglimit"},
}

// everywhere lists the packages that every package may import.
var everywhere = []string{"internal/azure"}

// only lists the dependencies that live in one room.
var only = map[string]string{
	"github.com/AzureAD/microsoft-authentication-library-for-go": "internal/exchange",
	"github.com/coreos/go-iptables":                              "internal/netrules",
	"github.com/go-chi/chi":                                      "internal/imds",
	"go.yaml.in/yaml":                                            "internal/manifest",
}

// never lists what no binary in a pod may link, nor any room that could end up in
// one: k8s.io is what makes the sidecar of azure-workload-identity v1.6.0 a binary
// of 37 MB. ADR 0040 has why both sides share a module all the same.
var never = []string{"k8s.io/", "sigs.k8s.io/"}

// kubernetesSide lists the rooms that never excepts: they patch pods, and run in
// none that they patch.
var kubernetesSide = []string{"internal/inject", "internal/injectflags", "cmd/webhook", "cmd/imds-migrate"}

type goPackage struct {
	ImportPath string
	Imports    []string
	Deps       []string
}

func TestImports(t *testing.T) {
	for _, p := range list(t, "../../cmd/...", "../../internal/...") {
		room := strings.TrimPrefix(p.ImportPath, module+"/")
		may, known := allowed[room]
		if !known {
			t.Errorf("%s: no place in the import map; give it one in %s", room, "test/repo")
			continue
		}
		for _, imported := range p.Imports {
			checkImport(t, room, may, imported)
		}
		if !slices.Contains(kubernetesSide, room) {
			checkNever(t, room, p.Deps)
		}
		if slices.Contains(everywhere, room) {
			checkStandardOnly(t, room, p.Deps)
		}
	}
}

func checkNever(t *testing.T, room string, deps []string) {
	t.Helper()
	for _, dep := range deps {
		for _, prefix := range never {
			if strings.HasPrefix(dep, prefix) {
				t.Errorf("%s links %s", room, dep)
			}
		}
	}
}

// checkStandardOnly: what every package may import must bring nothing along. An import path
// of the standard library has no dot before its first slash.
func checkStandardOnly(t *testing.T, room string, deps []string) {
	t.Helper()
	for _, dep := range deps {
		first, _, _ := strings.Cut(dep, "/")
		if strings.Contains(first, ".") || first == module {
			t.Errorf("%s links %s, which is not of the standard library", room, dep)
		}
	}
}

func checkImport(t *testing.T, room string, may []string, imported string) {
	t.Helper()
	if other, ours := strings.CutPrefix(imported, module+"/"); ours && !slices.Contains(may, other) && !slices.Contains(everywhere, other) {
		t.Errorf("%s imports %s; it may import %q", room, other, may)
	}
	for dependency, home := range only {
		if strings.HasPrefix(imported, dependency) && room != home {
			t.Errorf("%s imports %s, which lives in %s only", room, imported, home)
		}
	}
}

// list asks the go command, so that build tags and generated files are seen as
// the build sees them.
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
