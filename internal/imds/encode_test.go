package imds

import (
	"encoding/json"
	"testing"
)

// FuzzJSONString: encoding/json reads what is written, with invalid UTF-8 replaced.
func FuzzJSONString(f *testing.F) {
	for _, s := range []string{"", `"`, `\`, "\x00\x1f ~\x7f", "é\u2028\U0001f600", "\xff\xc0\xaf", "a&b<c>d"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		encoded := appendJSONString(nil, s)
		var got string
		if err := json.Unmarshal(encoded, &got); err != nil || got != string([]rune(s)) {
			t.Errorf("%q is written as %s and read as %q (%v)", s, encoded, got, err)
		}
	})
}
