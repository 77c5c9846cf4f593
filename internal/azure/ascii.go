package azure

// This package folds the case of ASCII letters only. Unicode's case folding would accept
// U+212A KELVIN SIGN as k, and U+017F LONG S as s, in identifiers that decide which identity's
// token is returned.

// EqualFoldASCII reports whether a and b are equal, ignoring the case of ASCII letters.
func EqualFoldASCII(a, b string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range len(a) {
		if lowerByte(a[i]) != lowerByte(b[i]) {
			return false
		}
	}
	return true
}

// lowerASCII returns s with its ASCII letters in lower case. It does not allocate if s has
// no upper-case letters.
func lowerASCII(s string) string {
	for i := range len(s) {
		if lowerByte(s[i]) != s[i] {
			return lowerFrom(s, i)
		}
	}
	return s
}

func lowerFrom(s string, first int) string {
	b := []byte(s)
	for i := first; i < len(b); i++ {
		b[i] = lowerByte(b[i])
	}
	return string(b)
}

func lowerByte(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c + ('a' - 'A')
	}
	return c
}

func isLetter(c byte) bool { c = lowerByte(c); return 'a' <= c && c <= 'z' }

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

func isHex(c byte) bool { c = lowerByte(c); return isDigit(c) || 'a' <= c && c <= 'f' }
