package imds

import (
	"net/url"
	"path"
	"regexp"
	"strings"
	"testing"
)

// normalize returns the path that a very lenient server could see: it removes all levels of
// escapes, treats backslashes and Unicode slashes as slashes, removes path parameters,
// resolves dot segments and ignores the case.
func normalize(p string) string {
	for {
		p = strings.NewReplacer("\\", "/", "\uff0f", "/", "\u2215", "/", "\xc0\xaf", "/").Replace(p)
		next, err := url.PathUnescape(p)
		if err != nil || next == p {
			break
		}
		p = next
	}
	segments := strings.Split(p, "/")
	for i, s := range segments {
		segments[i], _, _ = strings.Cut(s, ";")
		segments[i] = strings.TrimRight(segments[i], "\x00 \t\r\n")
	}
	p = path.Clean("/" + strings.Join(segments, "/"))
	return strings.ToLower(strings.NewReplacer("\u212a", "k", "\u017f", "s").Replace(p))
}

// TestClassify: paths that are served, and similar paths that are not.
func TestClassify(t *testing.T) {
	longest := "/metadata/instance/" + strings.Repeat("x", maxPathLength-len("/metadata/instance/"))
	for _, test := range []struct {
		path  string
		route route
		want  string
	}{
		{"/metadata/identity/oauth2/token", routeToken, tokenPath},
		{"//metadata/identity/oauth2/token/", routeToken, tokenPath},
		{"/METADATA/identity/oauth2/token", routeToken, tokenPath},
		{"/metadata/identity/info", routeInfo, infoPath},
		{"/msi/token", routeAppService, "/msi/token"}, {"/msi/token/", routeAppService, "/msi/token"},
		{"//msi/token", routeNone, ""}, {"/msi/token//", routeNone, ""}, {"/MSI/token", routeNone, ""}, {"/msi/token/x", routeNone, ""},
		{"/msi/%74oken", routeNone, ""}, {"/msi/./token", routeNone, ""}, {"/msi", routeNone, ""}, {"msi/token", routeNone, ""},
		{"/metadata/versions/", routeVersions, versionsPath},
		{"/metadata/instance", routeForward, "/metadata/instance"},
		{"/Metadata/instance/compute", routeForward, "/metadata/instance/compute"},
		{"/metadata/attested/document", routeForward, "/metadata/attested/document"},
		{"/metadata/scheduledevents", routeForward, "/metadata/scheduledevents"},
		{"/metadata/loadbalancer", routeForward, "/metadata/loadbalancer"},
		{"/metadata/instance/...", routeForward, "/metadata/instance/..."},
		{longest, routeForward, longest},
		{longest + "x", routeNone, ""},
		{"", routeNone, ""}, {"/", routeNone, ""}, {"//", routeNone, ""}, {"/metadata", routeNone, ""}, {"/metadata/", routeNone, ""},
		{"/metadatas/instance", routeNone, ""}, {"/metadataXinstance", routeNone, ""}, {"xmetadata/instance", routeNone, ""},
		{"///metadata/instance", routeNone, ""}, {"/metadata//instance", routeNone, ""}, {"/metadata/instance//", routeNone, ""},
		{"/metadata/instance/.", routeNone, ""}, {"/metadata/instance/../x", routeNone, ""},
		{"/metadata/instances", routeNone, ""}, {"/metadata/Instance", routeNone, ""},
		{"/metadata/identity", routeOtherIdentity, "/metadata/identity"}, {"/Metadata/identity/", routeOtherIdentity, "/metadata/identity"},
		{"/metadata/identity/getPlatformMetadata", routeOtherIdentity, "/metadata/identity/getPlatformMetadata"},
		{"/metadata/identity/oauth2/token/x", routeOtherIdentity, "/metadata/identity/oauth2/token/x"},
		{"/metadata/identity/oauth2/tokens", routeOtherIdentity, "/metadata/identity/oauth2/tokens"},
		{"/metadata/identityX", routeNone, ""}, {"/metadata/Identity/x", routeNone, ""}, {"/metadata/identity/../x", routeNone, ""},
	} {
		if route, got := classify(test.path); route != test.route || got != test.want {
			t.Errorf("%.100q: got %d %.100q, want %d %.100q", test.path, route, got, test.route, test.want)
		}
	}
	const accepted = "-.09AZ_az"
	for _, c := range []byte("\x00\t !#$%&'()*+,-./09:;<=>?@AZ[\\]^_`az{|}~\x7f\x80\xff") {
		path := "/metadata/instance/x" + string([]byte{c}) + "y"
		if _, got := classify(path); (got == path) != (strings.IndexByte(accepted, c) >= 0 || c == '/') {
			t.Errorf("%q: got %q", path, got)
		}
	}
}

// TestSegmentBytes: of all bytes, a segment may have only letters, digits, '-', '_' and '.'.
func TestSegmentBytes(t *testing.T) {
	const allowed = "-.0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz"
	for b := range 256 {
		segment := "a" + string([]byte{byte(b)}) + "Z"
		want := strings.IndexByte(allowed, byte(b)) >= 0
		if got := canonicalSegment(segment); got != want {
			t.Errorf("%q: got %v, want %v", segment, got, want)
		}
	}
}

// FuzzPathPolicy: any path is either answered by this package or forwarded as a canonical
// path on the allow-list, which no server can read as a path of an identity endpoint.
func FuzzPathPolicy(f *testing.F) {
	for _, p := range []string{
		tokenPath, infoPath, versionsPath, tokenPath + "/", "/" + tokenPath, "/Metadata/instance/compute",
		"/metadata/instance/../identity/oauth2/token", "/metadata/instance/%2e%2e/identity/oauth2/token",
		"/metadata/instance/..;/identity", "/metadata/attested\\..\\identity", "/metadata/loadbalancer%252f..%252fidentity",
		"/metadata/scheduledevents/\u212a", "/metadata//instance", "//metadata//instance", "/metadata/instance/", "*", "",
		"http://169.254.169.254/metadata/instance", "/metadata/instance/...", "/readyz/../metadata/instance",
	} {
		f.Add(p)
	}
	allowed := regexp.MustCompile(`^/metadata/(instance|attested|scheduledevents|loadbalancer)(/[A-Za-z0-9._-]+)*$`)
	f.Fuzz(func(t *testing.T, p string) {
		route, canonical := classify(p)
		if again, same := classify(canonical); route != routeNone && (again != route || same != canonical) {
			t.Errorf("%q becomes %q, which becomes %q", p, canonical, same)
		}
		seen := normalize(p)
		switch route {
		case routeNone:
			if canonical != "" {
				t.Errorf("%q is not served, but has the canonical path %q", p, canonical)
			}
		case routeForward:
			if !allowed.MatchString(canonical) || strings.Contains(canonical+"/", "/../") || strings.Contains(canonical+"/", "/./") {
				t.Errorf("%q is forwarded as %q", p, canonical)
			}
			if strings.HasPrefix(seen, "/metadata/identity") || strings.HasPrefix(normalize(canonical), "/metadata/identity") {
				t.Errorf("%q is forwarded and can be read as %q", p, seen)
			}
			fallthrough
		default:
			// Any server reads the path in the same way as this package.
			if seen != strings.ToLower(canonical) {
				t.Errorf("%q: this package reads %q, a lenient server %q", p, canonical, seen)
			}
		}
	})
}
