package repo

import (
	"fmt"
	"strings"
	"testing"

	"imds-oidc-proxy/internal/inject"
)

// TestInjection fails when the table of docs/injection.md is not the one that pods
// are read by; `make docs` mends that.
func TestInjection(t *testing.T) {
	var b strings.Builder
	b.WriteString("| name | on | values | default | effect |\n|---|---|---|---|---|\n")
	for _, a := range inject.Annotations() {
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s |\n", a.Name, a.On, a.Values, a.Default, a.Effect)
	}
	checkGenerated(t, repository+"/docs/injection.md", map[string]string{"annotations": b.String()})
}
