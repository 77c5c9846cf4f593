package imds_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/exchange"
	"imds-oidc-proxy/internal/imds"
	"imds-oidc-proxy/internal/tokens"
)

const (
	query2019 = "?api-version=2019-08-01&resource=" + vault
	query2017 = "?api-version=2017-09-01&resource=" + vault
)

func appServiceConfig(source imds.TokenSource) imds.Config {
	cfg := config(source)
	cfg.AppServiceHeader = secret
	return cfg
}

// getAppService sends a request to the endpoint of App Service. Headers have the form
// "Name: value".
func getAppService(h http.Handler, query string, headers ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodGet, azure.AppServicePath+query, nil)
	r.Host = "127.0.0.1:8000"
	for _, header := range headers {
		name, value, _ := strings.Cut(header, ": ")
		r.Header.Set(name, value)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// TestAppServiceAnswer: both versions of the protocol get the same answer as at the path of
// IMDS, byte for byte.
func TestAppServiceAnswer(t *testing.T) {
	h := newHandler(t, appServiceConfig(&tokenSource{}))
	want := get(h, tokenPath+"?"+tokenVersion+"&resource="+vault)
	for query, header := range map[string]string{query2019: "X-IDENTITY-HEADER: " + secret, query2017: "secret: " + secret} {
		w := getAppService(h, query, header)
		if w.Code != http.StatusOK || w.Body.String() != want.Body.String() {
			t.Errorf("%s: got %d %s\nwant 200 %s", header, w.Code, w.Body, want.Body)
		}
		for _, name := range []string{"Content-Type", "Content-Length", "Cache-Control", "Server"} {
			if got := w.Header().Get(name); got != want.Header().Get(name) {
				t.Errorf("%s: %s: got %q, want %q", header, name, got, want.Header().Get(name))
			}
		}
	}
}

// TestAppServiceOff: without Config.AppServiceHeader the fallback answers the path, as any
// other that is not served. No value of a header opens it.
func TestAppServiceOff(t *testing.T) {
	source := &tokenSource{}
	var events []imds.Event
	cfg := config(source)
	cfg.Observe = func(_ *http.Request, e imds.Event) { events = append(events, e) }
	h := newHandler(t, cfg)
	for _, header := range []string{"A: b", "X-IDENTITY-HEADER: ", "secret: ", "secret: " + secret} {
		w := getAppService(h, query2019, header)
		if w.Code != http.StatusNotFound || w.Body.String() != `{"error":"not_found","error_description":"This path is not served"}` {
			t.Errorf("%s: got %d %s, want 404", header, w.Code, w.Body)
		}
	}
	if got := source.seen(); len(got) != 0 {
		t.Errorf("asked for %+v", got)
	}
	for _, e := range events {
		if e.Endpoint != imds.EndpointNone || e.Refusal != "not_found" {
			t.Errorf("got %+v", e)
		}
	}
}

// TestDates: only the clients that read no seconds get expires_on as a date. All other members
// stay as they are.
func TestDates(t *testing.T) {
	const seconds, date = `"expires_on":"1605155624"`, `"expires_on":"11/12/2020 04:33:44 +00:00"`
	for _, test := range []struct{ agent, header, want string }{
		{"azsdk-python-identity/1.5.0 Python/3.11.2 (Linux)", "secret", date},
		{"app azsdk-python-identity/1.5.0 Python/3.11.2 (Linux)", "secret", date},
		{"azsdk-python-identity/1.5.0 Python/3.11.2 (Linux)", "X-IDENTITY-HEADER", seconds},
		{"azsdk-python-identity/1.6.0 Python/3.11.2 (Linux)", "secret", seconds},
		{"azsdk-python-identity/1.15.0 Python/3.11.2 (Linux)", "secret", seconds},
		{"core-http/1.2.6 Node/v22.23.3 OS/(x64-Linux-6.18)", "secret", date},
		{"core-http/1.2.6 Node/v22.23.3 OS/(x64-Linux-6.18)", "X-IDENTITY-HEADER", seconds},
		{"azsdk-js-identity/1.5.2 core-http/1.2.6 Node/v22.0.0", "secret", date},
		{"azsdk-js-identity/2.1.0 core-rest-pipeline/1.9.0 Node/22.0.0", "secret", date},
		{"azsdk-js-identity/2.1.0 core-rest-pipeline/1.9.0 Node/22.0.0", "X-IDENTITY-HEADER", date},
		{"azsdk-js-identity/3.0.0 core-rest-pipeline/1.9.0 Node/22.0.0", "X-IDENTITY-HEADER", seconds},
		{"azsdk-js-identity/12.0.0", "X-IDENTITY-HEADER", seconds},
		{"azsdk-go-azidentity/v1.5.2", "X-IDENTITY-HEADER", seconds},
		{"", "secret", seconds},
	} {
		w := getAppService(newHandler(t, appServiceConfig(&tokenSource{})), query2019, test.header+": "+secret, "User-Agent: "+test.agent)
		plain := get(newHandler(t, config(&tokenSource{})), tokenPath+query2019, "User-Agent: "+test.agent).Body.String()
		if want := strings.Replace(plain, seconds, test.want, 1); w.Body.String() != want {
			t.Errorf("%s, %s: got %s\nwant %s", test.agent, test.header, w.Body, want)
		}
	}
}

// TestDatesAreUTC: the date has no offset, whatever the proxy's time zone.
func TestDatesAreUTC(t *testing.T) {
	zone := time.FixedZone("", 5*60*60)
	source := &tokenSource{}
	result, _ := source.Token(t.Context(), tokens.Request{})
	result.Token.ExpiresOn = result.Token.ExpiresOn.In(zone)
	source.answer = fixed(result)
	w := getAppService(newHandler(t, appServiceConfig(source)), query2017, "secret: "+secret, "User-Agent: azsdk-js-identity/1.5.2")
	if !strings.Contains(w.Body.String(), `"11/12/2020 04:33:44 +00:00"`) {
		t.Errorf("got %s", w.Body)
	}
}

// TestAppServiceErrors: an error has the members of App Service and those of IMDS, and the
// status and headers that it has at the path of IMDS.
func TestAppServiceErrors(t *testing.T) {
	for _, test := range []struct {
		name, query, header string
		err                 error
		status              int
		code, retryAfter    string
	}{
		{"missing header", query2019, "A: b", nil, 401, "access_denied", ""},
		{"wrong header", query2019, "secret: x", nil, 401, "access_denied", ""},
		{"unknown identity", query2019 + "&client_id=x", "", nil, 400, "invalid_request", ""},
		{"no resource", "", "", nil, 400, "invalid_request", ""},
		{"unknown to Entra", query2019, "", &exchange.Error{Kind: exchange.UnknownIdentity, Code: 700016}, 400, "invalid_request", ""},
		{"throttled", query2019, "", &exchange.Error{Kind: exchange.Throttled, RetryAfter: 3 * time.Second}, 429, "too_many_requests", "3"},
		{"unavailable", query2019, "", &exchange.Error{Kind: exchange.Unavailable}, 500, "service_unavailable", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			source := &tokenSource{}
			if test.err != nil {
				source = failing(test.err)
			}
			header := test.header
			if header == "" {
				header = "X-IDENTITY-HEADER: " + secret
			}
			w := getAppService(newHandler(t, appServiceConfig(source)), test.query, header)
			e := decodeError(t, w)
			var own struct {
				StatusCode int
				Message    string
			}
			if err := json.Unmarshal(w.Body.Bytes(), &own); err != nil || own.StatusCode != w.Code || own.Message != e.Description {
				t.Errorf("got %s (%v), want statusCode %d and the description as message", w.Body, err, w.Code)
			}
			if w.Code != test.status || e.Code != test.code || w.Header().Get("Retry-After") != test.retryAfter {
				t.Errorf("got %d %s, Retry-After %q, want %d %s, %q", w.Code, w.Body, w.Header().Get("Retry-After"), test.status, test.code, test.retryAfter)
			}
		})
	}
}

// TestAppServiceMethods: other methods are refused in the form of App Service.
func TestAppServiceMethods(t *testing.T) {
	for _, method := range []string{"POST", "PUT", "DELETE", "OPTIONS"} {
		r := httptest.NewRequest(method, azure.AppServicePath+query2019, nil)
		r.Header.Set("X-IDENTITY-HEADER", secret)
		w := httptest.NewRecorder()
		newHandler(t, appServiceConfig(&tokenSource{})).ServeHTTP(w, r)
		if w.Code != 405 || w.Header().Get("Allow") != "GET" || !strings.HasPrefix(w.Body.String(), `{"statusCode":405,"message":"The method must be GET",`) {
			t.Errorf("%s: got %d %q %s", method, w.Code, w.Header(), w.Body)
		}
	}
}

// TestAppServiceEvents: each request causes one event of its own endpoint, with a reason if it
// was refused, and one line in the log without the secret.
func TestAppServiceEvents(t *testing.T) {
	for _, test := range []struct {
		name, query, header string
		want                imds.Event
		line                string
	}{
		{"token", query2019, "X-IDENTITY-HEADER: " + secret, imds.Event{Status: 200, Source: tokens.SourceEntra}, "successfully acquired token"},
		{"missing", query2019, "Metadata: true", imds.Event{Status: 401, Refusal: "no_secret_header"}, "refused request"},
		{"wrong", query2017, "secret: " + secret + "0", imds.Event{Status: 401, Refusal: "wrong_secret_header"}, "refused request"},
		{"unknown identity", query2017 + "&clientid=x", "secret: " + secret, imds.Event{Status: 400, Refusal: "identity_not_found"}, "refused request"},
	} {
		t.Run(test.name, func(t *testing.T) {
			log, logs := observed(zap.InfoLevel)
			cfg := appServiceConfig(&tokenSource{})
			cfg.Log = log
			var got []imds.Event
			cfg.Observe = func(_ *http.Request, e imds.Event) { got = append(got, e) }
			getAppService(newHandler(t, cfg), test.query, test.header)
			test.want.Endpoint = imds.EndpointAppService
			if len(got) != 1 || got[0] != test.want {
				t.Errorf("got %+v, want %+v", got, test.want)
			}
			entries := logs.All()
			if len(entries) != 1 || entries[0].Message != test.line || entries[0].ContextMap()["path"] != azure.AppServicePath {
				t.Fatalf("got %+v, want one line %q", entries, test.line)
			}
			if text, _ := json.Marshal(entries[0].ContextMap()); strings.Contains(string(text), secret) {
				t.Errorf("the log has the secret: %s", text)
			}
		})
	}
}

// FuzzAppService sends any query to both token endpoints: they read it by the same rules.
func FuzzAppService(f *testing.F) {
	for _, query := range tokenQueries {
		f.Add(query, true)
		f.Add(query, false)
	}
	source := &tokenSource{}
	h := newHandler(f, appServiceConfig(source))
	f.Fuzz(func(t *testing.T, query string, older bool) {
		ask := func(path string, headers map[string]string) (*httptest.ResponseRecorder, []tokens.Request) {
			r := httptest.NewRequest(http.MethodGet, path, nil)
			r.URL.RawQuery, r.Host = query, "127.0.0.1:8000"
			for name, value := range headers {
				r.Header.Set(name, value)
			}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			return w, source.seen()
		}
		header := "X-IDENTITY-HEADER"
		if older {
			header = "secret"
		}
		want, wanted := ask(tokenPath, map[string]string{"Metadata": "true"})
		got, asked := ask(azure.AppServicePath, map[string]string{header: secret})
		body := want.Body.String()
		if want.Code != http.StatusOK {
			description, _ := json.Marshal(decodeError(t, want).Description)
			body = `{"statusCode":` + strconv.Itoa(want.Code) + `,"message":` + string(description) + `,` + body[1:]
		}
		if got.Code != want.Code || got.Body.String() != body || len(asked) != len(wanted) || len(asked) == 1 && asked[0] != wanted[0] {
			t.Errorf("got %d %s for %+v\nwant %d %s for %+v", got.Code, got.Body, asked, want.Code, body, wanted)
		}
		forged, asked := ask(azure.AppServicePath, map[string]string{header: secret[1:], "Metadata": "true"})
		if forged.Code != http.StatusUnauthorized || len(asked) != 0 {
			t.Errorf("without the secret: got %d, asked for %+v", forged.Code, asked)
		}
	})
}
