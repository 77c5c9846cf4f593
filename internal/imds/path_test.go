package imds

import (
	"net/url"
	"path"
	"regexp"
	"strings"
	"testing"
)

// laxest reads a path as the most generous server might: it unescapes until
// nothing changes, takes all slashes for one, drops parameters, resolves dots and
// folds case.
func laxest(p string) string {
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

// TestClassify: each spelling that is answered, and its neighbors that are not.
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
		{"/metadata/instances", routeNone, ""}, {"/metadata/Instance", routeNone, ""}, {"/metadata/identity", routeNone, ""},
		{"/metadata/identity/oauth2/token/x", routeNone, ""}, {"/metadata/identity/oauth2/tokens", routeNone, ""},
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

// TestSegmentBytes: a segment has letters, digits, '-', '_' and '.' alone, whatever other
// byte stands among them.
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

// FuzzPathPolicy: whatever the path, it is answered here, or it is forwarded in a
// canonical spelling of an allow-listed path that no server can read as a path of
// the identity endpoints.
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
		seen := laxest(p)
		switch route {
		case routeNone:
			if canonical != "" {
				t.Errorf("%q is not answered, and yet %q", p, canonical)
			}
		case routeForward:
			if !allowed.MatchString(canonical) || strings.Contains(canonical+"/", "/../") || strings.Contains(canonical+"/", "/./") {
				t.Errorf("%q is forwarded as %q", p, canonical)
			}
			if strings.HasPrefix(seen, "/metadata/identity") || strings.HasPrefix(laxest(canonical), "/metadata/identity") {
				t.Errorf("%q is forwarded and can be read as %q", p, seen)
			}
			fallthrough
		default:
			// What is answered is what anybody would have read.
			if seen != strings.ToLower(canonical) {
				t.Errorf("%q is read as %q here and as %q elsewhere", p, canonical, seen)
			}
		}
	})
}
