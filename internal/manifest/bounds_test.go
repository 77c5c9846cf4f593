package manifest_test

import (
	"fmt"
	"strings"
	"testing"

	"imds-oidc-proxy/internal/manifest"
)

func parse(text string) (*manifest.Document, error) {
	return manifest.Parse(manifest.Part{Text: []byte(text), Line: 1})
}

// TestAliases checks that recursive aliases are refused, and aliases that expand to too many values.
func TestAliases(t *testing.T) {
	bomb := []string{"a0: &a0 [x]"}
	for i := range 9 {
		bomb = append(bomb, fmt.Sprintf("a%d: &a%d [%s*a%d]", i+1, i+1, strings.Repeat(fmt.Sprintf("*a%d, ", i), 9), i))
	}
	wide := "a: &a [" + strings.Repeat("x, ", 2000) + "]\nb: [" + strings.Repeat("*a, ", 600) + "]\n"
	for text, want := range map[string]string{
		"a: &a\n  b: [1, *a]\n":          "line 2: *a is an alias of a value that contains it",
		"&r\nkind: List\nitems:\n- *r\n": "line 4: *r is an alias of a value that contains it",
		"a: &a\n  <<: *a\n":              "line 2: *a is an alias of a value that contains it",
		"a: &a {? *a : 1}\n":             "line 1: *a is an alias of a value that contains it",
		strings.Join(bomb, "\n"):         "line 8: the aliases of this document expand to too many values: write the values out",
		wide:                             "line 1: the aliases of this document expand to too many values: write the values out",
	} {
		if _, err := parse(text); err == nil || err.Error() != want {
			t.Errorf("%.100q: %v, want %s", text, err, want)
		}
	}
	if _, err := parse("a: &a [1]\nb: &b [*a, *a]\nc: [*b, *b]\nd: &a [2]\ne: *a\n"); err != nil {
		t.Error(err)
	}
}
