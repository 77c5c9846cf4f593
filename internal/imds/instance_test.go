package imds_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/imds"
)

const instanceDocument = `{
  "compute": {
    "azEnvironment": "AzurePublicCloud",
    "location": "westeurope",
    "name": "",
    "isHostCompatibilityLayerVm": true,
    "platformFaultDomain": 0,
    "licenseType": null,
    "tagsList": [{"name": "team", "value": "shop \"front\" & back\n"}],
    "vmId": "5c08b38e-4d57-4c23-ac45-aca61037f084"
  },
  "network": {"interface": [
    {"ipv4": {"ipAddress": [{"privateIpAddress": "10.0.0.4"}]}, "macAddress": "0011AAFFBB22"},
    {"ipv4": {"ipAddress": []}}
  ]}
}`

func parseInstance(t testing.TB, document string, fields map[string]string) *imds.Instance {
	t.Helper()
	i, err := imds.ParseInstance([]byte(document), fields)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// servingInstance returns a handler that serves a document, and forwards other requests to a decoy.
func servingInstance(t *testing.T, document string, fields map[string]string) (*imds.Handler, *decoy) {
	t.Helper()
	machine := newDecoy(t)
	cfg := config(&tokenSource{})
	cfg.Instance = parseInstance(t, document, fields)
	cfg.Passthrough = azure.MetadataURL(machine.URL)
	return newHandler(t, cfg), machine
}

// TestInstance: requests get the element that their path names, as from IMDS, and never ask it.
func TestInstance(t *testing.T) {
	const v = "?api-version=2021-02-01"
	h, machine := servingInstance(t, instanceDocument, nil)
	for _, test := range []struct {
		target string
		status int
		want   string // the body, or a part of an error
	}{
		{"/metadata/instance" + v, 200, `{"compute":{"azEnvironment":"AzurePublicCloud","location":"westeurope","name":"","isHostCompatibilityLayerVm":"true","platformFaultDomain":"0","licenseType":"","tagsList":[{"name":"team","value":"shop \"front\" & back\u000a"}],"vmId":"5c08b38e-4d57-4c23-ac45-aca61037f084"},"network":{"interface":[{"ipv4":{"ipAddress":[{"privateIpAddress":"10.0.0.4"}]},"macAddress":"0011AAFFBB22"},{"ipv4":{"ipAddress":[]}}]}}`},
		{"/metadata/instance/network/interface/1" + v, 200, `{"ipv4":{"ipAddress":[]}}`},
		{"/metadata/instance/network/interface/0/ipv4/ipAddress" + v + "&format=json", 200, `[{"privateIpAddress":"10.0.0.4"}]`},
		{"//Metadata/instance/network/interface/1/" + v, 200, `{"ipv4":{"ipAddress":[]}}`},
		{"/metadata/instance" + v + "&format=text", 200, "compute/\nnetwork/"},
		{"/metadata/instance/compute" + v + "&format=text", 200, "azEnvironment\nlocation\nname\nisHostCompatibilityLayerVm\nplatformFaultDomain\nlicenseType\ntagsList/\nvmId"},
		{"/metadata/instance/network/interface" + v + "&format=text", 200, "0/\n1/"},
		{"/metadata/instance/network/interface/1/ipv4/ipAddress" + v + "&format=text", 200, ""},
		{"/metadata/instance/compute/location" + v + "&format=text", 200, "westeurope"},
		{"/metadata/instance/compute/location?format=text&api-version=2021-10-01", 200, "westeurope"}, // MSAL
		{"/metadata/instance/compute/platformFaultDomain" + v + "&format=text", 200, "0"},
		{"/metadata/instance/compute/name" + v + "&format=text", 200, ""},
		{"/metadata/instance/compute/tagsList/0/value" + v + "&format=text", 200, "shop \"front\" & back\n"},
		{"/metadata/instance/compute/location" + v, 400, "format=text"},
		{"/metadata/instance/compute/location" + v + "&format=json", 400, "format=text"},
		{"/metadata/instance/compute" + v + "&format=xml", 400, "must be json or text"},
		{"/metadata/instance/compute" + v + "&format=", 400, "must be json or text"},
		{"/metadata/instance/compute" + v + "&format=text&format=json", 400, "more than once"},
		{"/metadata/instance/compute" + v + "&Format=text&format=json", 400, "more than once"},
		{"/metadata/instance/compute" + v + "&unknown=1", 200, `{"azEnvironment":`},
		{"/metadata/instance/compute/zone" + v + "&format=text", 403, "no such element"},
		{"/metadata/instance/compute/Location" + v + "&format=text", 403, "no such element"},
		{"/metadata/instance/compute/location/x" + v + "&format=text", 403, "no such element"},
		{"/metadata/instance/network/interface/2" + v, 403, "no such element"},
		{"/metadata/instance/network/interface/00" + v, 403, "no such element"},
		{"/metadata/instance/network/interface/-1" + v, 403, "no such element"},
		{"/metadata/instancex" + v, 404, "not served"},
	} {
		w := get(h, test.target)
		got := w.Body.String()
		whole := test.status == http.StatusOK && !strings.HasSuffix(test.want, ":")
		if w.Code != test.status || whole && got != test.want || !strings.Contains(got, test.want) {
			t.Errorf("%s: got %d %s, want %d %s", test.target, w.Code, got, test.status, test.want)
		}
		isText := test.status == 200 && strings.Contains(test.target, "format=text")
		if kind := w.Header().Get("Content-Type"); (kind == "text/plain; charset=utf-8") != isText || (kind == "application/json; charset=utf-8") == isText ||
			w.Header().Get("Content-Length") != fmt.Sprint(len(got)) {
			t.Errorf("%s: got headers %v", test.target, w.Header())
		}
	}
	if seen := machine.seen(); len(seen) != 0 {
		t.Errorf("IMDS saw %q", seen)
	}
	const events = "/metadata/scheduledevents?api-version=2020-07-01"
	if w := get(h, events); w.Code != 200 || fmt.Sprint(machine.seen()) != "["+events+"]" {
		t.Errorf("scheduled events: got %d, want them from IMDS", w.Code)
	}
}

// TestInstanceVersion: without a known API version, the answer has the newest ones, which programs
// look for.
func TestInstanceVersion(t *testing.T) {
	h, _ := servingInstance(t, instanceDocument, nil)
	for _, query := range []string{"", "?", "?api-version=", "?api-version=2017-09-01", "?api-version=latest", "?API-VERSION=2021-02-01", "?version=2021-02-01", "?format=xml"} {
		w := get(h, "/metadata/instance/compute"+query)
		var answer struct {
			Error    string   `json:"error"`
			Versions []string `json:"newest-versions"`
		}
		if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil || w.Code != 400 || !strings.HasPrefix(answer.Error, "Bad request. api-version") ||
			fmt.Sprint(answer.Versions) != "[2025-04-07 2024-07-17 2024-03-15]" {
			t.Errorf("%s: got %d %s", query, w.Code, w.Body)
		}
		for _, version := range answer.Versions {
			if w := get(h, "/metadata/instance/compute?api-version="+version); w.Code != 200 {
				t.Errorf("%s: got %d %s", version, w.Code, w.Body)
			}
		}
	}
}

// TestInstanceRefusals: forged requests are refused as at the token endpoint, and observed.
func TestInstanceRefusals(t *testing.T) {
	cfg := config(&tokenSource{})
	cfg.Instance = parseInstance(t, instanceDocument, nil)
	var event imds.Event
	cfg.Observe = func(_ *http.Request, e imds.Event) { event = e }
	h := newHandler(t, cfg)
	const target = "/metadata/instance?api-version=2021-02-01"
	for _, test := range []struct {
		name, reason string
		status       int
		change       func(*http.Request)
	}{
		{"valid", "", 200, func(*http.Request) {}},
		{"no header", "no_metadata_header", 400, func(r *http.Request) { r.Header.Del("Metadata") }},
		{"forwarded", "forwarded_for", 400, func(r *http.Request) { r.Header.Set("X-Forwarded-For", "192.0.2.1") }},
		{"foreign host", "foreign_host", 400, func(r *http.Request) { r.Host = "metadata.example.test" }},
		{"POST", "method_not_allowed", 405, func(r *http.Request) { r.Method = http.MethodPost }},
		{"HEAD", "method_not_allowed", 405, func(r *http.Request) { r.Method = http.MethodHead }},
		{"no version", "no_api_version", 400, func(r *http.Request) { r.URL.RawQuery = "" }},
		{"unknown version", "unknown_api_version", 400, func(r *http.Request) { r.URL.RawQuery = "api-version=1" }},
		{"unknown format", "unknown_format", 400, func(r *http.Request) { r.URL.RawQuery += "&format=xml" }},
		{"leaf", "instance_leaf", 400, func(r *http.Request) { r.URL.Path += "/compute/location" }},
		{"missing", "instance_missing", 403, func(r *http.Request) { r.URL.Path += "/compute/zone" }},
		{"duplicate", "duplicate_param", 400, func(r *http.Request) { r.URL.RawQuery += "&api-version=2021-02-01" }},
		{"malformed", "malformed_query", 400, func(r *http.Request) { r.URL.RawQuery += "&a;b" }},
	} {
		r := httptest.NewRequest(http.MethodGet, target, nil)
		r.Host = "169.254.169.254"
		r.Header.Set("Metadata", "true")
		test.change(r)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != test.status || event.Refusal != test.reason || event.Endpoint != imds.EndpointInstance || event.Status != w.Code {
			t.Errorf("%s: got %d, observed %+v, want %d %q", test.name, w.Code, event, test.status, test.reason)
		}
	}
}

// TestInstanceTraversal: no path leads out of the document: not to files, not to the node, and not to
// elements with hostile names.
func TestInstanceTraversal(t *testing.T) {
	h, machine := servingInstance(t, `{"compute": {"name": "vm"}, "..": {"identity": "dots"}, ".": "one dot", "": "empty", "a/b": "slash", "%2e%2e": "escaped", "compute\u0000": "nul", "compute\\": "backslash"}`, nil)
	address := serve(t, h)
	for _, below := range []string{
		"/..", "/../identity/oauth2/token", "/%2e%2e", "/%2e%2e/identity", "/.%2e/identity", "/..%2fidentity", "/..%5cidentity", "/%252e%252e", "/..;/identity", "/.", "/./compute",
		"//", "//compute", "/%2f", "/compute/../../../etc/passwd", "/compute/..%2f..%2f..%2fetc%2fpasswd", "/a/b", "/a%2fb", "/compute%00", "/compute/%00", `/compute\`, `/compute\..\..`,
		"/compute%5c", "/" + strings.Repeat("a/", 300), "/compute/name/../name", "/compute/name%00", "/etc/passwd", "/file:///etc/passwd", "/proc/self/environ",
	} {
		for _, format := range []string{"", "&format=text"} {
			answer := string(exchangeBytes(t, address, []byte("GET /metadata/instance"+below+"?api-version=2021-02-01"+format+
				" HTTP/1.1\r\nHost: 169.254.169.254\r\nMetadata: true\r\nConnection: close\r\n\r\n")))
			if !strings.HasPrefix(answer, "HTTP/1.1 403 ") && !strings.HasPrefix(answer, "HTTP/1.1 404 ") && !strings.HasPrefix(answer, "HTTP/1.1 400 ") {
				t.Errorf("%s%s: got %s, want 400, 403 or 404", below, format, answer)
			}
			for _, hostile := range []string{"dots", "one dot", "empty", "slash", "escaped", "nul", "root:"} {
				if _, body, _ := strings.Cut(answer, "\r\n\r\n"); strings.Contains(body, hostile) {
					t.Errorf("%s%s: got %s", below, format, answer)
				}
			}
		}
	}
	if seen := machine.seen(); len(seen) != 0 {
		t.Errorf("IMDS saw %q", seen)
	}
}

// TestHostileWithInstance: with a document, no hostile request for instance metadata reaches IMDS.
func TestHostileWithInstance(t *testing.T) {
	h, machine := servingInstance(t, instanceDocument, nil)
	address := serve(t, withShortBodyTimeout(h))
	files, err := filepath.Glob("testdata/hostile/*.txt")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		for _, c := range readCases(t, file) {
			exchangeBytes(t, address, c.request)
			for _, target := range machine.seen() {
				if strings.HasPrefix(target, "/metadata/instance") {
					t.Errorf("%s: IMDS saw %s", c.name, target)
				}
			}
		}
	}
}

// TestParseInstance: what is wrong with a document is one line, and the bounds hold.
func TestParseInstance(t *testing.T) {
	nested := func(n int) string { return `{"a":` + strings.Repeat("[", n) + strings.Repeat("]", n) + "}" }
	list := func(n int) string { return `{"a":[` + strings.TrimSuffix(strings.Repeat("0,", n), ",") + "]}" }
	sized := func(n int) string { return `{"a":"` + strings.Repeat("x", n-len(`{"a":""}`)) + `"}` }
	for _, test := range []struct {
		name, document string
		fields         map[string]string
		want           string // empty: valid
	}{
		{"empty object", "{}", nil, ""},
		{"white space around", " \n{}\n ", nil, ""},
		{"as large as allowed", sized(imds.MaxInstance), nil, ""},
		{"too large", sized(imds.MaxInstance + 1), nil, "must have at most 524288 bytes"},
		{"10 MB", sized(10 << 20), nil, "must have at most 524288 bytes"},
		{"as deep as allowed", nested(32), nil, ""},
		{"too deep", nested(33), nil, "must be nested at most 32 levels deep"},
		{"much too deep", `{"a":` + strings.Repeat("[", 200_000), nil, "must be nested at most 32 levels deep"},
		{"as many values as allowed", list(9_998), nil, ""},
		{"too many values", list(9_999), nil, "must have at most 10000 values"},
		{"empty", "", nil, "must be JSON: EOF"},
		{"a list", "[]", nil, "must be a JSON object"},
		{"a string", `"x"`, nil, "must be a JSON object"},
		{"null", "null", nil, "must be a JSON object"},
		{"YAML", "compute:\n  location: westeurope\n", nil, "must be JSON: invalid character"},
		{"truncated", `{"compute": {`, nil, "must be JSON: "},
		{"two objects", "{}{}", nil, "without text after it"},
		{"a brace after it", "{}}", nil, "without text after it"},
		{"the same name twice", `{"compute": {"name": "a", "name": "b"}}`, nil, `must not have the name "name" twice`},
		{"the same name twice, once escaped", `{"compute": {"name": "a", "n\u0061me": "b"}}`, nil, `must not have the name "name" twice`},
		{"a long name twice", `{"` + strings.Repeat("n", 500) + `": 1, "` + strings.Repeat("n", 500) + `": 2}`, nil, "twice in one object"},

		{"field below a string", `{"compute": "x"}`, map[string]string{"compute/name": "vm"}, `field "compute/name": must be the path of a string`},
		{"field of an object", `{"compute": {"name": {}}}`, map[string]string{"compute/name": "vm"}, `field "compute/name": must be the path of a string`},
		{"field with dots", `{}`, map[string]string{"compute/../name": "vm"}, `field "compute/../name": must be a path such as compute/name`},
		{"field without a path", `{}`, map[string]string{"": "vm"}, `field "": must be a path such as compute/name`},
		{"field of a list", `{"network": {"interface": []}}`, map[string]string{"network/interface/0/macAddress": "x"}, "the list has no item 0"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := imds.ParseInstance([]byte(test.document), test.fields)
			if (err == nil) != (test.want == "") || err != nil && (!strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "\n") || len(err.Error()) > 300) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

// TestInstanceFields: fields complete the document, and do not replace what it has.
func TestInstanceFields(t *testing.T) {
	h, _ := servingInstance(t, `{"compute": {"location": "westeurope", "name": ""}, "network": {"interface": [{}]}}`, map[string]string{
		"compute/location": "northeurope", "compute/name": "node-1", "compute/osProfile/computerName": "node-1", "compute/zone": "", "network/interface/0/macAddress": "0011AAFFBB22",
	})
	for path, want := range map[string]string{
		"compute/location": "westeurope", "compute/name": "node-1", "compute/osProfile/computerName": "node-1", "network/interface/0/macAddress": "0011AAFFBB22",
	} {
		if w := get(h, "/metadata/instance/"+path+"?api-version=2021-02-01&format=text"); w.Code != 200 || w.Body.String() != want {
			t.Errorf("%s: got %d %s, want %q", path, w.Code, w.Body, want)
		}
	}
	if w := get(h, "/metadata/instance/compute/zone?api-version=2021-02-01&format=text"); w.Code != http.StatusForbidden {
		t.Errorf("empty field: got %d %s, want 403", w.Code, w.Body)
	}
	whole := get(h, "/metadata/instance?api-version=2021-02-01").Body.String()
	if want := `{"compute":{"location":"westeurope","name":"node-1","osProfile":{"computerName":"node-1"}},"network":{"interface":[{"macAddress":"0011AAFFBB22"}]}}`; whole != want {
		t.Errorf("got %s, want %s", whole, want)
	}
}

// discard is a response writer that keeps nothing.
type discard struct{ header http.Header }

func (d discard) Header() http.Header         { return d.header }
func (d discard) WriteHeader(int)             {}
func (d discard) Write(b []byte) (int, error) { return len(b), nil }

// TestInstanceMemory: the largest documents take a small part of the container's 64 MiB, and an
// answer does not copy the document.
func TestInstanceMemory(t *testing.T) {
	allocated := func(f func()) uint64 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		f()
		runtime.ReadMemStats(&after)
		return after.TotalAlloc - before.TotalAlloc
	}
	heap := func() uint64 {
		runtime.GC()
		runtime.GC() // the first one leaves what a sync.Pool holds
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	many := make([]string, 9_998)
	for i := range many {
		many[i] = fmt.Sprintf(`"%048d":0`, i)
	}
	for name, document := range map[string]string{
		"a long string": `{"a":"` + strings.Repeat("x", imds.MaxInstance-8) + `"}`,
		"escapes":       `{"a":"` + strings.Repeat("\\u0001", imds.MaxInstance/6-2) + `"}`,
		"many values":   `{"a":{` + strings.Join(many[:9_000], ",") + "}}",
		"many objects":  `{"a":[` + strings.TrimSuffix(strings.Repeat(`{},`, 9_998), ",") + "]}",
	} {
		before := heap()
		parsed := parseInstance(t, document, nil)
		if used := int64(heap()) - int64(before); used > 8<<20 {
			t.Errorf("%s: takes %d KiB", name, used>>10)
		} else {
			t.Logf("%s: %d KiB, takes %d KiB", name, len(document)>>10, used>>10)
		}
		cfg := config(&tokenSource{})
		cfg.Instance = parsed
		h := newHandler(t, cfg)
		r := httptest.NewRequest(http.MethodGet, "/metadata/instance?api-version=2021-02-01", nil)
		r.Host = "169.254.169.254"
		r.Header.Set("Metadata", "true")
		const requests = 100
		if got := allocated(func() {
			for range requests {
				h.ServeHTTP(discard{http.Header{}}, r)
			}
		}) / requests; got > 4<<10 {
			t.Errorf("%s: an answer allocates %d bytes", name, got)
		}
		runtime.KeepAlive(parsed)
	}
}

// FuzzInstance: for any document, each path that a listing names is served in both formats, and
// the JSON of the whole document is valid and contains strings only.
func FuzzInstance(f *testing.F) {
	f.Add(instanceDocument)
	f.Add(`{"a":[[],{}],"":{"/":"\u0000"},"..":1e400}`)
	f.Fuzz(func(t *testing.T, document string) {
		parsed, err := imds.ParseInstance([]byte(document), nil)
		if err != nil {
			return
		}
		cfg := config(&tokenSource{})
		cfg.Instance = parsed
		h := newHandler(t, cfg)
		whole := get(h, "/metadata/instance?api-version=2021-02-01")
		var values map[string]any
		if err := json.Unmarshal(whole.Body.Bytes(), &values); err != nil || whole.Code != 200 {
			t.Fatalf("got %d %s: %v", whole.Code, whole.Body, err)
		}
		onlyStrings(t, values)
		listing := get(h, "/metadata/instance?api-version=2021-02-01&format=text")
		if listing.Code != 200 {
			t.Fatalf("got %d %s", listing.Code, listing.Body)
		}
	})
}

func onlyStrings(t *testing.T, v any) {
	switch v := v.(type) {
	case string:
	case []any:
		for _, item := range v {
			onlyStrings(t, item)
		}
	case map[string]any:
		for _, item := range v {
			onlyStrings(t, item)
		}
	default:
		t.Errorf("%v is a %T", v, v)
	}
}
