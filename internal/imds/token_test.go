package imds

import (
	"encoding/json"
	"strings"
	"testing"
)

// checkJSONString checks that encoding/json decodes the encoded string, with invalid UTF-8
// replaced.
func checkJSONString(t *testing.T, s string) {
	t.Helper()
	encoded := appendJSONString(nil, s)
	var got string
	if err := json.Unmarshal(encoded, &got); err != nil || got != string([]rune(s)) {
		t.Errorf("%q is encoded as %s and decoded as %q (%v)", s, encoded, got, err)
	}
}

// TestJSONString: every byte is encoded correctly at every position, although plainPrefix
// checks eight bytes at a time.
func TestJSONString(t *testing.T) {
	for c := range 256 {
		for before := range 18 {
			checkJSONString(t, strings.Repeat("a", before)+string([]byte{byte(c)})+strings.Repeat("z", 17-before))
		}
	}
	const plain = "https://vault.azure.net/?a=b&c=<d>"
	if got := string(appendJSONString(nil, plain)); got != `"`+plain+`"` {
		t.Errorf("got %s, want it without escapes", got)
	}
}

func FuzzJSONString(f *testing.F) {
	for _, s := range []string{"", `"`, `\`, "\x00\x1f ~\x7f", "é\u2028\U0001f600", "\xff\xc0\xaf", "a&b<c>d", "eight ch\"rs and more"} {
		f.Add(s)
	}
	f.Fuzz(checkJSONString)
}
