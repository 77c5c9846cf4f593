package azure

import (
	"bytes"
	"testing"
)

// TestFoldsASCIIOnly checks that the case of every ASCII letter is folded, alone and within a
// text, and that of no other character.
func TestFoldsASCIIOnly(t *testing.T) {
	for c := range 256 {
		in := []byte{'x', byte(c), 'Y'}
		want := []byte{'x', byte(c), 'y'}
		if c < 0x80 {
			want = bytes.ToLower(in)
		}
		if got := lowerASCII(string(in)); got != string(want) {
			t.Errorf("lowerASCII(%q): got %q, want %q", in, got, want)
		}
		for d := range 256 {
			same := c == d || c < 0x80 && d < 0x80 && bytes.EqualFold([]byte{byte(c)}, []byte{byte(d)})
			if got := EqualFoldASCII(string([]byte{byte(c)}), string([]byte{byte(d)})); got != same {
				t.Errorf("EqualFoldASCII(%#x, %#x): got %v", c, d, got)
			}
		}
	}
	for _, other := range []string{"\u212a", "\u017f", "\uff2b"} {
		if lowerASCII(other) != other || EqualFoldASCII(other, "k") || EqualFoldASCII(other, "s") {
			t.Errorf("%q was folded", other)
		}
	}
}
