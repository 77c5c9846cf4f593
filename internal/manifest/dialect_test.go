package manifest_test

import (
	"strings"
	"testing"

	"imds-oidc-proxy/internal/manifest"
)

// TestJSONStrings checks characters and escapes that JSON allows in a string and YAML does not.
// Kubernetes parses JSON with a JSON parser.
func TestJSONStrings(t *testing.T) {
	const text = "{\"a\": \"\x7f \u0085 \u009f \u2028\u2029 \ufeff \uffff é \\/ \\ud83d\\ude00 \\\\/ \\\"\\u0041\"}"
	const want = "\x7f \u0085 \u009f \u2028\u2029 \ufeff \uffff é / 😀 \\/ \"A"
	d, err := parse(text)
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := d.Root().Get("a").Scalar(); got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if err := d.Root().Apply([]manifest.Operation{{Op: "add", Path: "/b", Value: "c"}}); err != nil {
		t.Fatal(err)
	}
	out, err := d.Text()
	if got := strings.TrimSuffix(text, "}") + `, "b": "c"}`; err != nil || string(out) != got {
		t.Errorf("%q, %v, want %q", out, err, got)
	}
}
