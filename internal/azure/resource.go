package azure

import "strings"

// MaxPrefetch is the maximum number of resources that a proxy prefetches tokens for, which is
// how many tokens its cache holds.
const MaxPrefetch = 1024

// Resource is the resource that a token is for, as the caller spelled it: a GUID (with or
// without /.default) or an absolute URI. Its case and its trailing slash are kept, because
// they decide the audience of the token.
type Resource string

// maxResource is far above the length of any resource in use (under 200 bytes). It bounds what
// a caller can put into cache keys, logs and Entra's scope.
const maxResource = 1024

const (
	resourceReason     = "must be a URI without a fragment, such as https://vault.azure.net, or a GUID"
	longResourceReason = "must be at most 1024 bytes long"
)

// ParseResource parses a resource: a GUID, or an absolute URI of the characters that RFC 3986
// allows.
func ParseResource(s string) (Resource, error) {
	if len(s) > maxResource {
		return "", Invalid(s, longResourceReason)
	}
	if _, ok := ParseGUID(strings.TrimSuffix(s, "/.default")); ok {
		return Resource(s), nil
	}
	scheme, rest, ok := strings.Cut(s, ":")
	if !ok || !isScheme(scheme) || rest == "" || !isURI(rest) {
		return "", Invalid(s, resourceReason)
	}
	return Resource(s), nil
}

// isScheme reports whether s is a scheme as in RFC 3986: a letter, then letters, digits, '+',
// '-' and '.'.
func isScheme(s string) bool {
	for i := range len(s) {
		if c := s[i]; !isLetter(c) && (i == 0 || !isDigit(c) && strings.IndexByte("+-.", c) < 0) {
			return false
		}
	}
	return s != ""
}

// isURI reports whether s consists of RFC 3986's unreserved and reserved characters and of
// percent escapes. It refuses '#': a fragment has no meaning in a resource or in an authority.
func isURI(s string) bool {
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case isLetter(c), isDigit(c), strings.IndexByte("-._~:/?[]@!$&'()*+,;=", c) >= 0:
		case c == '%' && i+2 < len(s) && isHex(s[i+1]) && isHex(s[i+2]):
			i += 2
		default:
			return false
		}
	}
	return true
}
