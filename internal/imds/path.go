package imds

import (
	"strings"

	"imds-oidc-proxy/internal/azure"
)

// route is the endpoint that answers a path. The zero value is for a path that is outside
// the metadata service or that no client of IMDS sends in this form: it is never forwarded.
type route int

const (
	routeNone route = iota
	routeToken
	routeInfo
	routeVersions
	routeForward
	routeOtherIdentity // a path of identity that is not served
	routeAppService    // served only if Config.AppServiceHeader is set
)

const (
	tokenPath    = "/metadata/identity/oauth2/token"
	identityRoot = "/metadata/identity"
	infoPath     = "/metadata/identity/info"
	versionsPath = "/metadata/versions"
)

// maxPathLength is well above the longest path that IMDS documents (a leaf of
// /metadata/instance, about 100 bytes).
const maxPathLength = 512

// forwardable reports whether a request for a canonical path may be forwarded to the real
// IMDS. The allow-list has only paths of instance metadata, never of identity, each with
// all paths below it.
func forwardable(canonical string) bool {
	for _, root := range [...]string{
		"/metadata/instance",
		"/metadata/attested",
		"/metadata/scheduledevents",
		"/metadata/loadbalancer",
	} {
		if isBelow(canonical, root) {
			return true
		}
	}
	return false
}

// isBelow reports whether a canonical path is root or below it.
func isBelow(canonical, root string) bool {
	rest, ok := strings.CutPrefix(canonical, root)
	return ok && (rest == "" || rest[0] == '/')
}

// classify returns the route for an escaped path, and the canonical path.
//
// A proxy that checks one form of a path and forwards another lets the pod get a token for
// the node's identity (CVE-2022-23551). So classify does not decode or clean a path: either
// it has a canonical form by the few rules of [canonicalPath], or it is not served.
func classify(escapedPath string) (route, string) {
	if escapedPath == tokenPath { // nearly every client sends this form
		return routeToken, tokenPath
	}
	if strings.TrimSuffix(escapedPath, "/") == azure.AppServicePath { // ms-rest-nodeauth appends the slash
		return routeAppService, azure.AppServicePath
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
	case isBelow(canonical, identityRoot):
		return routeOtherIdentity, canonical
	case forwardable(canonical):
		return routeForward, canonical
	default:
		return routeNone, ""
	}
}

// canonicalPath returns the canonical form of a path of the metadata service, which is
// compared and forwarded. It accepts the variations that real clients send: a doubled
// leading slash (MSAL4J), any case of the first segment, one trailing slash (msal-node).
// Apart from these the path must be canonical already: no escapes, no empty or dot
// segments, only the characters that IMDS uses in its paths.
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

// canonicalSegment reports whether two parsers cannot read a path segment differently: it
// is not empty, is no dot segment, and has only ASCII letters, digits, '-', '_' and '.'.
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
