package imds

import (
	"strings"

	"imds-oidc-proxy/internal/azure"
)

// route says who answers a path. The zero value is a path that is not of the
// metadata service, or that is not written as its clients write it: it is never
// forwarded.
type route int

const (
	routeNone route = iota
	routeToken
	routeInfo
	routeVersions
	routeForward
)

const (
	tokenPath    = "/metadata/identity/oauth2/token"
	infoPath     = "/metadata/identity/info"
	versionsPath = "/metadata/versions"
)

// maxPathLength is well above the longest path that IMDS documents (a leaf of
// /metadata/instance, about 100 bytes).
const maxPathLength = 512

// forwardable reports whether the real IMDS may be asked for a canonical path:
// a closed list of what is about the machine and not about its identity, and
// what lies below each.
func forwardable(canonical string) bool {
	for _, root := range [...]string{
		"/metadata/instance",
		"/metadata/attested",
		"/metadata/scheduledevents",
		"/metadata/loadbalancer",
	} {
		if rest, ok := strings.CutPrefix(canonical, root); ok && (rest == "" || rest[0] == '/') {
			return true
		}
	}
	return false
}

// classify decides who answers the path of a request, in its escaped form, and
// gives the path in its canonical spelling.
//
// A proxy that decides on one spelling of a path and forwards another lets the
// pod reach the node's identity (CVE-2022-23551). So nothing is decoded, cleaned
// or guessed here: a path has either a canonical spelling by the few rules of
// [canonicalPath], or no one answers it.
func classify(escapedPath string) (route, string) {
	if escapedPath == tokenPath { // as nearly every client spells it
		return routeToken, tokenPath
	}
	canonical, ok := canonicalPath(escapedPath)
	switch {
	case !ok:
		return routeNone, ""
	case canonical == tokenPath:
		return routeToken, canonical
	case canonical == infoPath:
		return routeInfo, canonical
	case canonical == versionsPath:
		return routeVersions, canonical
	case forwardable(canonical):
		return routeForward, canonical
	default:
		return routeNone, ""
	}
}

// canonicalPath spells a path of the metadata service in the one way in which it
// is compared and forwarded. It takes the variations that real clients send:
// a doubled leading slash (MSAL4J), the first segment in any case, one trailing
// slash (msal-node). Everything else must be canonical already: no escapes, no
// empty or dot segments, no bytes beyond the few that IMDS uses in its paths.
func canonicalPath(path string) (canonical string, ok bool) {
	if len(path) > maxPathLength {
		return "", false
	}
	if strings.HasPrefix(path, "//") {
		path = path[1:]
	}
	path = strings.TrimSuffix(path, "/")

	const root = "/metadata"
	if len(path) <= len(root) || !azure.EqualFoldASCII(path[:len(root)], root) {
		return "", false
	}
	below := path[len(root):]
	if below[0] != '/' {
		return "", false
	}
	for segment := range strings.SplitSeq(below[1:], "/") {
		if !canonicalSegment(segment) {
			return "", false
		}
	}
	if path[:len(root)] == root {
		return path, true
	}
	return root + below, true
}

// canonicalSegment reports whether a path segment is one that cannot be read in
// two ways: not empty, no dot segment, and of letters, digits, '-', '_' and '.'
// alone, all in ASCII.
func canonicalSegment(segment string) bool {
	if segment == "" || segment == "." || segment == ".." {
		return false
	}
	for i := range len(segment) {
		switch c := segment[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case c == '-', c == '_', c == '.':
		default:
			return false
		}
	}
	return true
}
