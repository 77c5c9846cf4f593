package imds_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/exchange"
	"imds-oidc-proxy/internal/imds"
	"imds-oidc-proxy/internal/tokens"
)

// TestEvents: each request causes one event with the result, and with a reason if the request
// was invalid.
func TestEvents(t *testing.T) {
	const ask = tokenPath + "?" + tokenVersion + "&resource=" + vault
	machine := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/metadata/instance" {
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	defer machine.Close()
	for _, test := range []struct {
		name, target string
		header       string
		err          error // returned by the token source
		want         imds.Event
	}{
		{"token", ask, "", nil, imds.Event{Endpoint: "token", Status: 200, Source: tokens.SourceEntra}},
		{"no header", ask, "Metadata: ", nil, imds.Event{Endpoint: "token", Status: 400, Refusal: "no_metadata_header"}},
		{"forwarded for", ask, "X-Forwarded-For: 10.0.0.1", nil, imds.Event{Endpoint: "token", Status: 400, Refusal: "forwarded_for"}},
		{"no identity", ask + "&client_id=x", "", nil, imds.Event{Endpoint: "token", Status: 400, Refusal: "identity_not_found"}},
		// The request is valid, but Entra refuses it.
		{"invalid resource", ask, "", &exchange.Error{Kind: exchange.InvalidResource}, imds.Event{Endpoint: "token", Status: 400}},
		{"throttled", ask, "", &exchange.Error{Kind: exchange.Throttled}, imds.Event{Endpoint: "token", Status: 429}},
		{"failed", ask, "", errors.New("failure"), imds.Event{Endpoint: "token", Status: 500}},
		{"info", "/metadata/identity/info", "", nil, imds.Event{Endpoint: "info", Status: 200}},
		{"versions", "/metadata/versions", "", nil, imds.Event{Endpoint: "versions", Status: 200}},
		{"forwarded", "/metadata/instance?" + tokenVersion, "", nil, imds.Event{Endpoint: "forward", Status: 200}},
		{"forwarded, not found", "/metadata/instance/x?" + tokenVersion, "", nil, imds.Event{Endpoint: "forward", Status: 404}},
		{"loop", "/metadata/instance", "Via: 1.1 imds-oidc-proxy", nil, imds.Event{Endpoint: "forward", Status: 403}},
		{"own", "/readyz", "", nil, imds.Event{Endpoint: "own", Status: 200}},
		{"probe for a newer protocol", "/metadata/identity/getplatformmetadata", "", nil, imds.Event{Endpoint: "none", Status: 403, Refusal: "identity_path"}},
		{"path not served", "/latest/", "", nil, imds.Event{Endpoint: "none", Status: 404, Refusal: "not_found"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			source := &tokenSource{}
			if test.err != nil {
				source = failing(test.err)
			}
			cfg := config(source)
			cfg.Passthrough = azure.MetadataURL(machine.URL)
			now := epoch
			cfg.Now = func() time.Time { now = now.Add(time.Second); return now }
			var got []imds.Event
			cfg.Observe = func(_ *http.Request, e imds.Event) { got = append(got, e) }
			var headers []string
			if test.header != "" {
				headers = append(headers, test.header)
			}
			get(newHandler(t, cfg), test.target, headers...)
			test.want.Duration = time.Second
			if len(got) != 1 || got[0] != test.want {
				t.Errorf("got %+v, want one %+v", got, test.want)
			}
		})
	}
}

func TestEventOfClientThatLeft(t *testing.T) {
	cfg := config(&tokenSource{answer: func(ctx context.Context, _ tokens.Request) (tokens.Result, error) {
		return tokens.Result{}, context.Cause(ctx)
	}})
	var got imds.Event
	cfg.Observe = func(_ *http.Request, e imds.Event) { got = e }
	ctx, leave := context.WithCancel(t.Context())
	leave()
	r := httptest.NewRequest(http.MethodGet, tokenPath+"?"+tokenVersion+"&resource="+vault, nil).WithContext(ctx)
	r.Host = "169.254.169.254"
	r.Header.Set("Metadata", "true")
	newHandler(t, cfg).ServeHTTP(httptest.NewRecorder(), r)
	if !got.ClientLeft() || got.Refusal != "" {
		t.Errorf("got %+v, want a client that left", got)
	}
}
