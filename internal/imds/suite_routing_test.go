package imds_test

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"imds-oidc-proxy/internal/imds"
)

func TestRouting(t *testing.T) {
	for _, test := range []struct {
		method, target string
		metadata       bool
		status         int
		body           string // empty: an error in IMDS's format
	}{
		{"GET", "/metadata/identity/info?api-version=2018-02-01", true, 200, `{"tenantId":"` + tenantID + `"}`},
		{"GET", "/metadata/identity/info", false, 400, ""},
		{"GET", "/metadata/versions", false, 400, ""},
		{"GET", "/metadata/identity/getplatformmetadata", false, 403, ""},
		{"POST", "/metadata/identity/issuecredential", false, 403, ""},
		{"GET", "/metadata/identity", false, 403, ""},
		{"GET", "/metadata/identity/oauth2", false, 403, ""},
		{"GET", "/metadata", false, 404, ""},
		{"GET", "/", false, 404, ""},
		{"GET", "/latest/meta-data/", false, 404, ""},
		{"PUT", "/latest/api/token", false, 404, ""},
		{"GET", "/computeMetadata/v1/", false, 404, ""},
		{"POST", tokenPath, false, 405, ""},
		{"PUT", tokenPath + "/", true, 405, ""},
		{"OPTIONS", tokenPath, true, 405, ""},
		{"DELETE", "/metadata/versions", true, 405, ""},
		{"POST", "/readyz", false, 405, ""},
		{"GET", "/readyz", false, 200, "ok"},
		{"GET", "/readyz/", false, 404, ""},
		{"GET", "/metadata/instance", true, 403, ""}, // forwarding is off
	} {
		t.Run(test.method+" "+test.target, func(t *testing.T) {
			tokens := &tokenSource{}
			r := httptest.NewRequest(test.method, test.target, nil)
			r.Host = "169.254.169.254"
			if test.metadata {
				r.Header.Set("Metadata", "true")
			}
			w := httptest.NewRecorder()
			newHandler(t, config(tokens)).ServeHTTP(w, r)
			if w.Code != test.status {
				t.Errorf("got %d %s, want %d", w.Code, w.Body, test.status)
			}
			if test.body == "" {
				decodeError(t, w)
			} else if got := w.Body.String(); got != test.body {
				t.Errorf("got %q, want %q", got, test.body)
			}
			if allow := w.Header().Get("Allow"); (allow == "GET") != (test.status == 405) {
				t.Errorf("got Allow %q with status %d", allow, test.status)
			}
			if got := tokens.seen(); len(got) != 0 {
				t.Errorf("asked for %+v", got)
			}
		})
	}
}

func TestVersions(t *testing.T) {
	w := get(newHandler(t, config(&tokenSource{})), "/metadata/versions")
	var body struct{ APIVersions []string }
	if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil || w.Code != 200 {
		t.Fatalf("got %d %s", w.Code, w.Body)
	}
	// The token endpoint must accept all of these versions.
	for _, v := range body.APIVersions {
		w := get(newHandler(t, config(&tokenSource{})), tokenPath+"?api-version="+v+"&resource="+vault)
		if w.Code != http.StatusOK {
			t.Errorf("api-version %s: got %d", v, w.Code)
		}
	}
	if len(body.APIVersions) < 20 {
		t.Errorf("got %d versions", len(body.APIVersions))
	}
}

// TestFallback: the fallback answers requests outside the metadata service. They need no
// Metadata header, and an event has the status of the answer.
func TestFallback(t *testing.T) {
	cfg := config(&tokenSource{})
	var status int
	cfg.Fallback = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(status)
		io.WriteString(w, "because")
	})
	var got imds.Event
	cfg.Observe = func(_ *http.Request, e imds.Event) { got = e }
	h := newHandler(t, cfg)
	for _, want := range []imds.Event{
		{Endpoint: "own", Status: 200},
		{Endpoint: "own", Status: 503},
		{Endpoint: "none", Status: 404, Refusal: "not_found"},
		{Endpoint: "own", Status: 405, Refusal: "method_not_allowed"},
	} {
		status = want.Status
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", "/readyz?verbose", nil)) // no Metadata header
		if w.Code != status || w.Body.String() != "because" {
			t.Errorf("got %d %q, want %d", w.Code, w.Body, status)
		}
		if got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
}

// TestMetadataPathsBypassFallback: no form of a path of the metadata service reaches the
// fallback.
func TestMetadataPathsBypassFallback(t *testing.T) {
	cfg := config(&tokenSource{})
	cfg.Fallback = http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("%s reached the fallback", r.URL.Path)
	})
	h := newHandler(t, cfg)
	for _, path := range []string{"/metadata/identity/oauth2/token", "/METADATA/versions", "//metadata/identity/info", "/metadata/instance"} {
		get(h, path)
	}
}

// TestNoFallback: without a fallback, all other paths are answered with 404.
func TestNoFallback(t *testing.T) {
	cfg := config(&tokenSource{})
	cfg.Fallback = nil
	if w := get(newHandler(t, cfg), "/readyz"); w.Code != http.StatusNotFound {
		t.Errorf("got %d, want 404", w.Code)
	}
}
