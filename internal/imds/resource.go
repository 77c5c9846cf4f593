package imds

import "strings"

// maxResourceLength is far above any resource in use (under 200 bytes), and keeps
// what a caller can put into cache keys, logs and Entra's scope small.
const maxResourceLength = 1024

// ValidResource reports whether s is a GUID (with or without /.default) or an
// absolute URI, in the characters that RFC 3986 gives URIs. So it holds no
// spaces, no quotes and no control characters: it cannot add a second scope, and
// cannot break out of a log line, a JSON string or a cache key.
func ValidResource(s string) bool {
	if len(s) > maxResourceLength {
		return false
	}
	if _, ok := parseGUID(strings.TrimSuffix(s, "/.default")); ok {
		return true
	}
	scheme, rest, ok := strings.Cut(s, ":")
	return ok && validScheme(scheme) && rest != "" && uriCharacters(rest)
}

// validScheme is RFC 3986's scheme: a letter, then letters, digits, '+', '-', '.'.
func validScheme(s string) bool {
	for i := range len(s) {
		c := lowerByte(s[i])
		if 'a' <= c && c <= 'z' || i > 0 && ('0' <= c && c <= '9' || c == '+' || c == '-' || c == '.') {
			continue
		}
		return false
	}
	return s != ""
}

// uriCharacters reports whether s is of RFC 3986's unreserved and reserved
// characters and of percent escapes. A fragment has no meaning in a resource.
func uriCharacters(s string) bool {
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case strings.IndexByte("-._~:/?[]@!$&'()*+,;=", c) >= 0:
		case c == '%' && i+2 < len(s) && isHex(s[i+1]) && isHex(s[i+2]):
			i += 2
		default:
			return false
		}
	}
	return true
}

func isHex(c byte) bool {
	c = lowerByte(c)
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f'
}
