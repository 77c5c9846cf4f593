package imds_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"imds-oidc-proxy/internal/tokens"
)

func TestSuccessBody(t *testing.T) {
	source := &tokenSource{}
	w := get(newHandler(t, config(source)), tokenPath+"?api-version=2018-02-01&resource=https://vault.azure.net/a?b=c%26d")

	const want = `{"access_token":"token-of-22222222-2222-2222-2222-222222222222",` +
		`"client_id":"22222222-2222-2222-2222-222222222222",` +
		`"expires_in":"3600","expires_on":"1605155624","ext_expires_in":"3600","not_before":"1605152024",` +
		`"resource":"https://vault.azure.net/a?b=c&d","token_type":"Bearer"}`
	if w.Code != http.StatusOK || w.Body.String() != want {
		t.Errorf("got %d %s\nwant 200 %s", w.Code, w.Body, want)
	}
	for name, value := range map[string]string{
		"Content-Type":   "application/json; charset=utf-8",
		"Content-Length": strconv.Itoa(len(want)),
		"Server":         "imds-oidc-proxy/test",
		"Cache-Control":  "no-store",
	} {
		if got := w.Header().Get(name); got != value {
			t.Errorf("%s: got %q, want %q", name, got, value)
		}
	}
	wantRequest := tokens.Request{ClientID: defaultID, Resource: "https://vault.azure.net/a?b=c&d"}
	if got := source.seen(); len(got) != 1 || got[0] != wantRequest {
		t.Errorf("asked for %+v, want %+v", got, wantRequest)
	}
}

// TestExpiresInOfCachedToken: expires_in counts from the time of the answer, also for a token
// from the cache.
func TestExpiresInOfCachedToken(t *testing.T) {
	now := epoch
	cfg := config(&tokenSource{})
	cfg.Now = func() time.Time { return now }
	h := newHandler(t, cfg)
	for _, want := range []string{"3600", "3590"} {
		var body map[string]string
		if err := json.Unmarshal(get(h, tokenPath+"?resource="+vault).Body.Bytes(), &body); err != nil {
			t.Fatal(err)
		}
		if body["expires_in"] != want || body["ext_expires_in"] != want || body["expires_on"] != "1605155624" {
			t.Errorf("got %v, want expires_in %s", body, want)
		}
		now = now.Add(10 * time.Second)
	}
}

// TestRefusals: if several parts of a request are wrong, the error is the one that IMDS
// returns.
func TestRefusals(t *testing.T) {
	const malformed = "The query is malformed"
	const unknownSelector = "A query variable seems to name an identity, and is not known; use 'client_id', 'object_id', 'msi_res_id' or 'mi_res_id'"
	for _, test := range []struct {
		name        string
		query       string
		headers     []string
		description string
	}{
		{"no header before errors of the query", "api-version=1&client_id=zz&client_id=zz", []string{"Metadata: "}, "Required metadata header not specified"},
		{"header false", "resource=" + vault, []string{"Metadata: false"}, "Required metadata header not specified"},
		{"header true,false", "resource=" + vault, []string{"Metadata: true,false"}, "Required metadata header not specified"},
		{"forwarded before duplicate", "a=1&a=2", []string{"X-Forwarded-For: 192.0.2.1"}, "Requests with an X-Forwarded-For header are not served"},
		{"forwarded, empty", "resource=" + vault, []string{"X-Forwarded-For: "}, "Requests with an X-Forwarded-For header are not served"},
		{"duplicate before version", "api-version=1&api-version=1", nil, "A query variable is given more than once"},
		{"duplicate of an unknown name", "resource=" + vault + "&x=1&x=2", nil, "A query variable is given more than once"},
		{"duplicate in another case", "resource=" + vault + "&Resource=" + vault, nil, "A query variable is given more than once"},
		{"duplicate, escaped", "resource=" + vault + "&%72esource=" + vault, nil, "A query variable is given more than once"},
		{"version before resource", "api-version=2016-01-01", nil, "The value of 'api-version' is not a known version"},
		{"version empty", "api-version=&resource=" + vault, nil, "The value of 'api-version' is not a known version"},
		{"resource missing", tokenVersion, nil, "Required query variable 'resource' is missing"},
		{"resource empty", tokenVersion + "&resource=", nil, "Required query variable 'resource' is missing"},
		{"resource missing before selectors", "client_id=zz&object_id=zz", nil, "Required query variable 'resource' is missing"},
		{"resource name in upper case", "RESOURCE=" + vault, nil, "Query variable names are lower case"},
		{"selector name in upper case", "resource=" + vault + "&CLIENT_ID=" + otherID, nil, "Query variable names are lower case"},
		{"resource of two scopes", "resource=" + vault + "%20openid", nil, "The value of 'resource' must be a URI or a GUID"},
		{"resource with a line break", "resource=" + vault + "%0d%0aX:1", nil, "The value of 'resource' must be a URI or a GUID"},
		{"resource with NUL", "resource=" + vault + "%00", nil, "The value of 'resource' must be a URI or a GUID"},
		{"resource with a quote", "resource=" + vault + "%22", nil, "The value of 'resource' must be a URI or a GUID"},
		{"resource not ASCII", "resource=https://v%C3%A4ult.example.test", nil, "The value of 'resource' must be a URI or a GUID"},
		{"resource with an escape cut off", "resource=https://v%252", nil, "The value of 'resource' must be a URI or a GUID"},
		{"resource with a bad escape", "resource=https://v%252g", nil, "The value of 'resource' must be a URI or a GUID"},
		{"resource only a scheme", "resource=https:", nil, "The value of 'resource' must be a URI or a GUID"},
		{"resource without a scheme", "resource=vault.azure.net", nil, "The value of 'resource' must be a URI or a GUID"},
		{"resource too long", "resource=https://" + strings.Repeat("a", 1024), nil, "The value of 'resource' must be a URI or a GUID"},
		{"two selectors", "resource=" + vault + "&client_id=" + otherID + "&object_id=" + objectID, nil, "At most one of 'client_id', 'object_id', 'msi_res_id' and 'mi_res_id' may be given"},
		{"two names of one selector", "resource=" + vault + "&msi_res_id=" + resourceID + "&mi_res_id=" + resourceID, nil, "At most one of 'client_id', 'object_id', 'msi_res_id' and 'mi_res_id' may be given"},
		{"two names of the client ID", "resource=" + vault + "&client_id=" + otherID + "&clientid=" + otherID, nil, "At most one of 'client_id', 'object_id', 'msi_res_id' and 'mi_res_id' may be given"},
		{"two names of the object ID", "resource=" + vault + "&principal_id=" + objectID + "&object_id=" + objectID, nil, "At most one of 'client_id', 'object_id', 'msi_res_id' and 'mi_res_id' may be given"},
		{"two names of the resource ID", "resource=" + vault + "&resource_id=" + resourceID + "&msi-res-id=" + resourceID, nil, "At most one of 'client_id', 'object_id', 'msi_res_id' and 'mi_res_id' may be given"},
		{"clientid in another case", "resource=" + vault + "&clientId=" + otherID, nil, "Query variable names are lower case"},
		{"principal_id unknown", "resource=" + vault + "&principal_id=" + otherID, nil, "Identity not found"},
		{"resource_id unknown", "resource=" + vault + "&resource_id=" + resourceID + "0", nil, "Identity not found"},
		{"unknown selector", "resource=" + vault + "&mi_client_id=" + otherID, nil, unknownSelector},
		{"unknown selector beside a known one", "resource=" + vault + "&client_id=" + otherID + "&user_assigned_identity=" + otherID, nil, unknownSelector},
		{"unknown selector before two known ones", "resource=" + vault + "&oid=x&client_id=" + otherID + "&object_id=" + objectID, nil, unknownSelector},
		{"resource missing before an unknown selector", "oid=x", nil, "Required query variable 'resource' is missing"},
		{"an identity's resource ID under an unknown name", "resource=" + vault + "&who=" + resourceID, nil, unknownSelector},
		{"client_id no GUID", "resource=" + vault + "&client_id=app", nil, "Identity not found"},
		{"a tenant in client_id", "resource=" + vault + "&client_id=" + otherID + "%2f..%2f" + tenantID, nil, "Identity not found"},
		{"object_id unknown", "resource=" + vault + "&object_id=" + otherID, nil, "Identity not found"},
		{"resource ID unknown", "resource=" + vault + "&mi_res_id=" + resourceID + "0", nil, "Identity not found"},
		{"resource ID with KELVIN SIGN", "resource=" + vault + "&mi_res_id=/subscriptions/%E2%84%AA", nil, "Identity not found"},
		{"semicolon", "resource=" + vault + ";client_id=" + otherID, nil, malformed},
		{"bad escape", "resource=%zz", nil, malformed},
		{"too many parameters", "resource=" + vault + strings.Join(numbered("&p", 32), ""), nil, malformed},
		{"foreign host", "resource=" + vault, []string{"Host: rebound.example.test"}, "The Host header must be an IP address or localhost"},
	} {
		t.Run(test.name, func(t *testing.T) {
			source := &tokenSource{}
			h := newHandler(t, config(source))
			r := httptest.NewRequest(http.MethodGet, tokenPath+"?"+test.query, nil)
			r.Host = "169.254.169.254"
			r.Header.Set("Metadata", "true")
			for _, header := range test.headers {
				name, value, _ := strings.Cut(header, ": ")
				if name == "Host" {
					r.Host = value
				}
				r.Header.Set(name, value)
			}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			body := decodeError(t, w)
			if w.Code != http.StatusBadRequest || body.Description != test.description {
				t.Errorf("got %d %q, want 400 %q", w.Code, body.Description, test.description)
			}
			if got := source.seen(); len(got) != 0 {
				t.Errorf("a refused request asked for %+v", got)
			}
		})
	}
}

func numbered(prefix string, n int) []string {
	s := make([]string, n)
	for i := range s {
		s[i] = prefix + strconv.Itoa(i)
	}
	return s
}

type errorBody struct {
	Code        string `json:"error"`
	Description string `json:"error_description"`
}

// decodeError fails the test unless an answer is an error in IMDS's format.
func decodeError(t *testing.T, w *httptest.ResponseRecorder) errorBody {
	t.Helper()
	var body errorBody
	if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil || body.Code == "" || body.Description == "" {
		t.Errorf("got body %q (%v), want error and error_description", w.Body, err)
	}
	if got := w.Header().Get("Content-Type"); got != "application/json; charset=utf-8" {
		t.Errorf("got Content-Type %q", got)
	}
	if got := w.Header().Get("Content-Length"); got != strconv.Itoa(w.Body.Len()) {
		t.Errorf("got Content-Length %q, want %d", got, w.Body.Len())
	}
	return body
}

func TestAccepted(t *testing.T) {
	for _, test := range []struct {
		name, target string
		want         tokens.Request
	}{
		{"no api-version", tokenPath + "?resource=" + vault, tokens.Request{ClientID: defaultID, Resource: vault}},
		{"fluent-bit", tokenPath + "?api-version=2021-02-01&resource=" + vault, tokens.Request{ClientID: defaultID, Resource: vault}},
		{"today's samples", tokenPath + "?api-version=2025-04-07&resource=" + vault, tokens.Request{ClientID: defaultID, Resource: vault}},
		{"old scripts", tokenPath + "?api-version=2017-09-01&resource=" + vault, tokens.Request{ClientID: defaultID, Resource: vault}},
		{"trailing slash", tokenPath + "/?resource=" + vault, tokens.Request{ClientID: defaultID, Resource: vault}},
		{"doubled slash", "/" + tokenPath + "?resource=" + vault, tokens.Request{ClientID: defaultID, Resource: vault}},
		{"metadata in any case", "/MetaData/identity/oauth2/token?resource=" + vault, tokens.Request{ClientID: defaultID, Resource: vault}},
		{"trailing slash of the resource is kept", tokenPath + "?resource=" + vault + "/", tokens.Request{ClientID: defaultID, Resource: vault + "/"}},
		{"resource with .default", tokenPath + "?resource=" + vault + "/.default", tokens.Request{ClientID: defaultID, Resource: vault + "/.default"}},
		{"resource a GUID", tokenPath + "?resource=00000002-0000-0000-C000-000000000000", tokens.Request{ClientID: defaultID, Resource: "00000002-0000-0000-C000-000000000000"}},
		{"resource a GUID with .default", tokenPath + "?resource=00000002-0000-0000-c000-000000000000/.default", tokens.Request{ClientID: defaultID, Resource: "00000002-0000-0000-c000-000000000000/.default"}},
		{"resource of another scheme", tokenPath + "?resource=api://" + otherID, tokens.Request{ClientID: defaultID, Resource: "api://" + otherID}},
		{"client_id in upper case", tokenPath + "?resource=" + vault + "&client_id=ABCDEF00-5555-5555-5555-555555555555", tokens.Request{ClientID: "abcdef00-5555-5555-5555-555555555555", Resource: vault}},
		{"client_id empty", tokenPath + "?resource=" + vault + "&client_id=", tokens.Request{ClientID: defaultID, Resource: vault}},
		{"object_id", tokenPath + "?resource=" + vault + "&object_id=" + objectID, tokens.Request{ClientID: mappedID, Resource: vault}},
		{"mi_res_id", tokenPath + "?resource=" + vault + "&mi_res_id=" + resourceID, tokens.Request{ClientID: mappedID, Resource: vault}},
		{"msi_res_id in another case", tokenPath + "?resource=" + vault + "&msi_res_id=" + strings.ToUpper(resourceID), tokens.Request{ClientID: mappedID, Resource: vault}},
		{"clientid", tokenPath + "?api-version=2017-09-01&resource=" + vault + "&clientid=" + otherID, tokens.Request{ClientID: otherID, Resource: vault}},
		{"clientid empty", tokenPath + "?resource=" + vault + "&clientid=", tokens.Request{ClientID: defaultID, Resource: vault}},
		{"principal_id", tokenPath + "?resource=" + vault + "&principal_id=" + objectID, tokens.Request{ClientID: mappedID, Resource: vault}},
		{"resource_id", tokenPath + "?resource=" + vault + "&resource_id=" + resourceID, tokens.Request{ClientID: mappedID, Resource: vault}},
		{"msi-res-id", tokenPath + "?resource=" + vault + "&msi-res-id=" + resourceID, tokens.Request{ClientID: mappedID, Resource: vault}},
		{"bypass_cache", tokenPath + "?resource=" + vault + "&bypass_cache=true", tokens.Request{ClientID: defaultID, Resource: vault, Fresh: true}},
		{"bypass_cache=false", tokenPath + "?resource=" + vault + "&bypass_cache=false", tokens.Request{ClientID: defaultID, Resource: vault}},
		{"token_sha256_to_refresh", tokenPath + "?resource=" + vault + "&token_sha256_to_refresh=ab12", tokens.Request{ClientID: defaultID, Resource: vault, Fresh: true}},
		{"unknown parameters", tokenPath + "?resource=" + vault + "&xms_cc=cp1&foo=bar&empty", tokens.Request{ClientID: defaultID, Resource: vault}},
	} {
		t.Run(test.name, func(t *testing.T) {
			source := &tokenSource{}
			w := get(newHandler(t, config(source)), test.target)
			if w.Code != http.StatusOK {
				t.Fatalf("got %d %s, want 200", w.Code, w.Body)
			}
			if got := source.seen(); len(got) != 1 || got[0] != test.want {
				t.Errorf("asked for %+v, want %+v", got, test.want)
			}
			var body struct{ Resource string }
			if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil || body.Resource != string(test.want.Resource) {
				t.Errorf("got resource %q (%v), want %q", body.Resource, err, test.want.Resource)
			}
		})
	}
}

func TestStrictAPIVersion(t *testing.T) {
	cfg := config(&tokenSource{})
	cfg.StrictAPIVersion = true
	h := newHandler(t, cfg)
	if w := get(h, tokenPath+"?resource="+vault); w.Code != http.StatusBadRequest {
		t.Errorf("without api-version: got %d, want 400", w.Code)
	}
	if w := get(h, tokenPath+"?"+tokenVersion+"&resource="+vault); w.Code != http.StatusOK {
		t.Errorf("with api-version: got %d, want 200", w.Code)
	}
}
