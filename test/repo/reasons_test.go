package repo

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"testing"
)

// TestRefusalReasons: the table in docs/metrics.md has every reason of a refused request, and
// no other.
func TestRefusalReasons(t *testing.T) {
	var documented []string
	page := read(t, "docs/metrics.md")
	for _, row := range regexp.MustCompile("(?m)^\\| (`[a-z_]+`(?:, `[a-z_]+`)*) \\|").FindAllStringSubmatch(section(t, page, "### Reasons of refused requests"), -1) {
		documented = append(documented, regexp.MustCompile(`[a-z_]+`).FindAllString(row[1], -1)...)
	}
	reasons := refusalReasons(t)
	slices.Sort(documented)
	slices.Sort(reasons)
	if len(reasons) < 10 || !slices.Equal(documented, reasons) {
		t.Errorf("docs/metrics.md has the reasons %q, internal/imds has %q", documented, reasons)
	}
}

// refusalReasons returns the reasons of the errors for refused requests: the variables of
// internal/imds/errors.go with a status that blames the request.
func refusalReasons(t *testing.T) []string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(repository, "internal/imds/errors.go"), nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var reasons []string
	for _, declaration := range file.Decls {
		group, ok := declaration.(*ast.GenDecl)
		if !ok || group.Tok != token.VAR {
			continue
		}
		for _, spec := range group.Specs {
			for _, value := range spec.(*ast.ValueSpec).Values {
				if reason := refusalReason(value); reason != "" {
					reasons = append(reasons, reason)
				}
			}
		}
	}
	return reasons
}

// refusalReason returns the reason in a call of invalidRequest(reason, …) or of
// newWireError(status, code, reason, …). Empty: the status does not blame the request, or the
// expression is no such call.
func refusalReason(value ast.Expr) string {
	call, ok := value.(*ast.CallExpr)
	if !ok {
		return ""
	}
	name, _ := call.Fun.(*ast.Ident)
	switch {
	case name != nil && name.Name == "invalidRequest":
		return literal(call.Args[0])
	case name != nil && name.Name == "newWireError":
		status, ok := call.Args[0].(*ast.SelectorExpr)
		if ok && slices.Contains([]string{"StatusBadRequest", "StatusUnauthorized", "StatusForbidden", "StatusNotFound", "StatusMethodNotAllowed"}, status.Sel.Name) {
			return literal(call.Args[2])
		}
	}
	return ""
}

func literal(expression ast.Expr) string {
	if l, ok := expression.(*ast.BasicLit); ok {
		text, _ := strconv.Unquote(l.Value)
		return text
	}
	return ""
}
