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
		body           string // "": an error in IMDS's form
	}{
		{"GET", "/metadata/identity/info?api-version=2018-02-01", true, 200, `{"tenantId":"` + tenantID + `"}`},
		{"GET", "/metadata/identity/info", false, 400, ""},
		{"GET", "/metadata/versions", false, 400, ""},
		{"GET", "/metadata/identity/getplatformmetadata", false, 404, ""},
		{"POST", "/metadata/identity/issuecredential", false, 404, ""},
		{"GET", "/metadata/identity", false, 404, ""},
		{"GET", "/metadata/identity/oauth2", false, 404, ""},
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
		{"GET", "/metadata/instance", true, 404, ""}, // forwarding is off
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
	// What is said to be known must be taken.
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

// What is the proxy's own is answered by whom it was given, without the Metadata
// header, and leaves its status in the log and with the observer.
func TestOwnEndpoints(t *testing.T) {
	cfg := config(&tokenSource{})
	var status int
	cfg.Own = map[string]http.Handler{"/readyz": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(status)
		io.WriteString(w, "because")
	})}
	var got imds.Event
	cfg.Observe = func(_ *http.Request, e imds.Event) { got = e }
	h := newHandler(t, cfg)
	for _, status = range []int{200, 503} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", "/readyz?verbose", nil)) // no Metadata header
		if w.Code != status || w.Body.String() != "because" {
			t.Errorf("got %d %q, want %d", w.Code, w.Body, status)
		}
		if want := (imds.Event{Endpoint: "own", Status: status}); got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
}

func TestOwnEndpointsStayApart(t *testing.T) {
	for _, path := range []string{"readyz", "", "/metadata/identity/oauth2/token", "/METADATA/x", "/{all}", "/*"} {
		cfg := config(&tokenSource{})
		cfg.Own = map[string]http.Handler{path: http.NotFoundHandler()}
		if _, err := imds.New(cfg); err == nil {
			t.Errorf("%q was taken", path)
		}
	}
}
