package imds_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/tokens"
)

// tokenQueries are the seeds of the tests that send any query.
var tokenQueries = []string{
	"api-version=2018-02-01&resource=https://vault.azure.net",
	"resource=https%3A%2F%2Fvault.azure.net%2F&client_id=" + otherID,
	"resource=https://vault.azure.net&object_id=" + objectID,
	"resource=api://x&msi_res_id=" + resourceID + "&bypass_cache=true",
	"resource=00000002-0000-0000-c000-000000000000/.default&client_id=",
	"resource=a:b&CLIENT_ID=" + otherID,
	"resource=a:b&client%5Fid=" + otherID + "&=&&x;y",
	"resource=a:b&clientid=" + otherID + "&bypass_cache=true&xms_cc=cp1",
	"resource=a:b&principal_id=" + objectID + "&mi-client-id=" + otherID,
	"resource=a:b&resource_id=" + resourceID + "&objectid=" + objectID,
	"resource=a:b&msi-res-id=" + resourceID + "&who=" + resourceID,
	"resource=a:%25b&\u017fcope=\u212a",
}

// FuzzTokenRequest sends any query to the token endpoint. The answer is a token or an error,
// and the token is for the identity that more lenient parsers also find: net/url, and one
// that ignores the case of names.
func FuzzTokenRequest(f *testing.F) {
	for _, query := range tokenQueries {
		f.Add(query)
	}

	source := &tokenSource{}
	h := newHandler(f, config(source))
	f.Fuzz(func(t *testing.T, query string) {
		r := httptest.NewRequest(http.MethodGet, tokenPath, nil)
		r.URL.RawQuery = query
		r.Host = "169.254.169.254"
		r.Header.Set("Metadata", "true")
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		asked := source.seen()
		if w.Code == http.StatusOK {
			checkGranted(t, query, w.Body.Bytes(), asked)
			return
		}
		if w.Code != http.StatusBadRequest || len(asked) != 0 {
			t.Errorf("got %d, asked for %+v", w.Code, asked)
		}
		decodeError(t, w)
	})
}

func checkGranted(t *testing.T, query string, body []byte, asked []tokens.Request) {
	t.Helper()
	var m map[string]string
	if err := json.Unmarshal(body, &m); err != nil || bytes.ContainsAny(body, "\r\n") {
		t.Fatalf("got %q (%v), want one line of JSON, all strings", body, err)
	}
	if len(asked) != 1 || m["client_id"] != string(asked[0].ClientID) || m["resource"] != string(asked[0].Resource) || m["access_token"] != "token-of-"+m["client_id"] {
		t.Fatalf("got %s for %+v", body, asked)
	}
	if strings.ContainsAny(m["resource"], " \t\r\n\x00\"\\<>") || len(m["resource"]) > 1024 {
		t.Errorf("resource %q was accepted", m["resource"])
	}
	values, _ := url.ParseQuery(query) // without the malformed parameters
	selectors := map[string]string{
		"client_id": "", "object_id": mappedID, "msi_res_id": mappedID, "mi_res_id": mappedID,
		"clientid": "", "principal_id": mappedID, "resource_id": mappedID, "msi-res-id": mappedID,
	}
	for name, given := range values {
		want, isSelector := selectors[strings.ToLower(name)]
		if !isSelector && namesIdentity.MatchString(name) {
			t.Errorf("%q was ignored", name)
		}
		if !isSelector || given[0] == "" {
			continue
		}
		if want == "" {
			want = strings.ToLower(given[0])
		}
		if string(asked[0].ClientID) != want {
			t.Errorf("%s=%q got the token of %s", name, given[0], asked[0].ClientID)
		}
	}
}

// namesIdentity matches a parameter's name that a person would take for an identity's.
var namesIdentity = regexp.MustCompile(`(?i)(client|object|principal|resource|res|app|identity|m[s]?i)[-_ .]?id`)

// allowedTarget matches the request targets that IMDS may see, by the allow-list.
var allowedTarget = regexp.MustCompile(`^/metadata/(instance|attested|scheduledevents|loadbalancer)(/[A-Za-z0-9._-]+)*(\?[A-Za-z0-9%&=._~-]*)?$`)

// FuzzRequest sends the handler any request that net/http accepts. The seeds are the hostile
// requests. The handler answers the request itself, or forwards it with a canonical path of
// the allow-list and with the headers that IMDS requires.
func FuzzRequest(f *testing.F) {
	files, err := filepath.Glob("testdata/hostile/*.txt")
	if err != nil || len(files) == 0 {
		f.Fatalf("no seeds: %v", err)
	}
	for _, file := range files {
		for _, c := range readCases(f, file) {
			if len(c.request) < 4096 {
				f.Add(c.request)
			}
		}
	}
	machine := newDecoy(f)
	source := &tokenSource{}
	cfg := config(source)
	cfg.Passthrough = azure.MetadataURL(machine.URL)
	cfg.AppServiceHeader = secret
	h := newHandler(f, cfg)
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(raw)))
		if err != nil {
			return
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		direct := r.Header["X-Forwarded-For"] == nil && r.Method == http.MethodGet
		metadata := r.Header["Metadata"]
		entitled := direct && len(metadata) == 1 && strings.EqualFold(metadata[0], "true")
		secrets := slices.Concat(r.Header["X-Identity-Header"], r.Header["Secret"])
		hasSecret := direct && len(secrets) == 1 && secrets[0] == secret && strings.TrimSuffix(r.URL.Path, "/") == azure.AppServicePath
		for _, header := range machine.seenHeaders() {
			if header.Get("Metadata") != "true" || header["X-Forwarded-For"] != nil || header.Get("Via") == "" {
				t.Errorf("IMDS saw %v", header)
			}
		}
		for _, target := range machine.seen() {
			if !entitled || !allowedTarget.MatchString(target) || strings.Contains(target, "/../") {
				t.Errorf("IMDS saw %s", target)
			}
		}
		if asked := source.seen(); len(asked) != 0 && !entitled && !hasSecret {
			t.Errorf("asked for %+v", asked)
		}
		if w.Code >= 400 {
			decodeError(t, w)
		}
	})
}
