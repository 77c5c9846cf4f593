package repo

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"imds-oidc-proxy/internal/inject"
)

// TestInjectionTable: docs/injection.md has the annotations that injection reads, and the rules
// that proxy-init prints. `make docs` rewrites both.
func TestInjectionTable(t *testing.T) {
	var b strings.Builder
	b.WriteString("| name | on | values | default | effect |\n|---|---|---|---|---|\n")
	for _, a := range inject.Annotations() {
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s |\n", a.Name, a.On, a.Values, a.Default, a.Effect)
	}
	checkGenerated(t, repository+"/docs/injection.md", map[string]string{"annotations": b.String(), "rules": defaultRules(t)})
}

// defaultRules returns the rules of the redirect with default settings, as a code block.
func defaultRules(t *testing.T) string {
	t.Helper()
	cmd := exec.Command(filepath.Join(binaries(t), "proxy-init"), "--dry-run")
	cmd.Env = []string{}
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return "```\n" + strings.TrimSpace(string(out)) + "\n```\n"
}
