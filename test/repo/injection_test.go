package repo

import (
	"fmt"
	"strings"
	"testing"

	"imds-oidc-proxy/internal/inject"
)

// TestInjectionTable: the table of docs/injection.md lists the annotations that injection reads.
// `make docs` rewrites it.
func TestInjectionTable(t *testing.T) {
	var b strings.Builder
	b.WriteString("| name | on | values | default | effect |\n|---|---|---|---|---|\n")
	for _, a := range inject.Annotations() {
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s |\n", a.Name, a.On, a.Values, a.Default, a.Effect)
	}
	checkGenerated(t, repository+"/docs/injection.md", map[string]string{"annotations": b.String()})
}
