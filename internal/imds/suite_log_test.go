package imds_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/exchange"
	"imds-oidc-proxy/internal/tokens"
)

func observed(level zapcore.Level) (*zap.Logger, *observer.ObservedLogs) {
	core, logs := observer.New(level)
	return zap.New(core), logs
}

func TestSuccessLine(t *testing.T) {
	log, logs := observed(zap.InfoLevel)
	cfg := config(&tokenSource{})
	cfg.Log = log
	now := epoch
	cfg.Now = func() time.Time { now = now.Add(time.Second); return now }
	get(newHandler(t, cfg), "//Metadata/identity/oauth2/token/?"+tokenVersion+"&resource="+vault)

	entries := logs.All()
	if len(entries) != 1 || entries[0].Message != "successfully acquired token" || entries[0].Level != zap.InfoLevel {
		t.Fatalf("got %+v, want one line", entries)
	}
	want := map[string]any{
		"method": "GET", "path": tokenPath, "resource": vault, "client_id": defaultID,
		"status": int64(200), "source": "entra", "duration": time.Second,
	}
	if got := entries[0].ContextMap(); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v\nwant %v", got, want)
	}
}

// TestRefusedIdentity: the line of a request that is refused because of the identity that it names has
// this identity, and nothing of a malformed one.
func TestRefusedIdentity(t *testing.T) {
	const resourceID = "/subscriptions/1/resourceGroups/Shop/providers/Microsoft.ManagedIdentity/userAssignedIdentities/cart"
	for query, want := range map[string]any{
		"client_id=" + otherID: otherID, "object_id=" + otherID: otherID, "mi_res_id=" + resourceID: strings.ToLower(resourceID),
		"client_id=secret": nil, "object_id=secret": nil, "msi_res_id=/secret": nil, "resource=x%20y": nil,
	} {
		log, logs := observed(zap.InfoLevel)
		cfg := config(failing(&exchange.Error{Kind: exchange.UnknownIdentity, Detail: "not known", Cause: tokens.ErrUnknownSelector}))
		cfg.Log, cfg.AllowedClientIDs, cfg.Identities = log, []azure.ClientID{defaultID}, nil
		get(newHandler(t, cfg), tokenPath+"?"+tokenVersion+"&resource="+vault+"&"+query)
		entries := logs.All()
		if len(entries) != 1 || entries[0].ContextMap()["identity"] != want || strings.Contains(fmt.Sprint(entries[0].ContextMap()), "secret") {
			t.Errorf("%s: got %+v, want the identity %v", query, entries, want)
		}
	}
}

// TestOtherLines: each request has one line. Its level is warn or error only if an operator
// may have to act.
func TestOtherLines(t *testing.T) {
	unavailable := &exchange.Error{Kind: exchange.Unavailable, Detail: "connection refused"}
	for _, test := range []struct {
		name    string
		err     error
		target  string
		headers []string
		level   zapcore.Level
		message string
		error   string
	}{
		{"probe", nil, tokenPath, []string{"Metadata: "}, zap.DebugLevel, "refused request", "Required metadata header not specified"},
		{"not found", nil, "/latest/", nil, zap.DebugLevel, "refused request", "This path is not served"},
		{"refused", nil, tokenPath + "?resource=" + vault + "&client_id=x", nil, zap.WarnLevel, "refused request", "Identity not found: client_id is not a GUID"},
		{"failed", unavailable, tokenPath + "?resource=" + vault, nil, zap.ErrorLevel, "request failed", unavailable.Error()},
		{"versions", nil, "/metadata/versions", nil, zap.DebugLevel, "answered request", "<nil>"},
	} {
		t.Run(test.name, func(t *testing.T) {
			source := &tokenSource{}
			if test.err != nil {
				source = failing(test.err)
			}
			log, logs := observed(zap.DebugLevel)
			cfg := config(source)
			cfg.Log = log
			get(newHandler(t, cfg), test.target+versioned(test.target), test.headers...)
			var entries []observer.LoggedEntry
			for _, e := range logs.All() {
				if e.Message != "received token request" {
					entries = append(entries, e)
				}
			}
			if len(entries) != 1 || entries[0].Level != test.level || entries[0].Message != test.message {
				t.Fatalf("got %+v, want one line %q at %v", entries, test.message, test.level)
			}
			if got := fmt.Sprint(entries[0].ContextMap()["error"]); got != test.error {
				t.Errorf("got error %q, want %q", got, test.error)
			}
		})
	}
}

// versioned returns a parameter that prevents the log line about a missing api-version.
func versioned(target string) string {
	if strings.Contains(target, "?") {
		return "&" + tokenVersion
	}
	return ""
}

// TestClientLeftLine: if the client closes the connection, the log line has its own message
// and the error with which the wait ended.
func TestClientLeftLine(t *testing.T) {
	log, logs := observed(zap.InfoLevel)
	cfg := config(&tokenSource{answer: func(ctx context.Context, _ tokens.Request) (tokens.Result, error) {
		<-ctx.Done()
		return tokens.Result{}, context.Cause(ctx)
	}})
	cfg.Log = log
	ctx, leave := context.WithCancel(t.Context())
	leave()
	r := httptest.NewRequest(http.MethodGet, tokenPath+"?"+tokenVersion+"&resource="+vault, nil).WithContext(ctx)
	r.Host = "169.254.169.254"
	r.Header.Set("Metadata", "true")
	newHandler(t, cfg).ServeHTTP(httptest.NewRecorder(), r)
	entries := logs.All()
	if len(entries) != 1 || entries[0].Message != "client left" || !strings.Contains(fmt.Sprint(entries[0].ContextMap()["error"]), "context canceled") {
		t.Errorf("got %+v, want one line", entries)
	}
}

func TestProbesAreLoggedAtDebug(t *testing.T) {
	log, logs := observed(zap.DebugLevel)
	cfg := config(&tokenSource{})
	cfg.Log = log
	h := newHandler(t, cfg)
	get(h, tokenPath+"?resource="+vault)
	entries := logs.FilterMessage("received token request").All()
	if len(entries) != 1 || entries[0].Level != zap.DebugLevel {
		t.Errorf("got %+v, want one line with the level debug", entries)
	}
}

// TestRequestID: the log shows a client's request ID only if it is a GUID, as SDKs send it.
func TestRequestID(t *testing.T) {
	const id = "2f7e81c4-9a3b-4d56-8e1f-b05c6d7a4932"
	for _, test := range []struct {
		values []string
		want   any
	}{
		{[]string{id}, id},
		{[]string{strings.ToUpper(id)}, id},
		{nil, nil},
		{[]string{""}, nil},
		{[]string{"secret"}, nil},
		{[]string{id + "0"}, nil},
		{[]string{id, id}, nil},
		{[]string{"2f7e81c4-9a3b-4d56-8e1f-b05c6d7a493\n"}, nil},
	} {
		log, logs := observed(zap.InfoLevel)
		cfg := config(&tokenSource{})
		cfg.Log = log
		r := httptest.NewRequest(http.MethodGet, tokenPath+"?"+tokenVersion+"&resource="+vault, nil)
		r.Host = "169.254.169.254"
		r.Header.Set("Metadata", "true")
		r.Header["X-Ms-Client-Request-Id"] = test.values
		newHandler(t, cfg).ServeHTTP(httptest.NewRecorder(), r)
		entries := logs.FilterMessage("successfully acquired token").All()
		if len(entries) != 1 || entries[0].ContextMap()["request_id"] != test.want {
			t.Errorf("%q: got %+v, want request_id %v", test.values, entries, test.want)
		}
	}
}

// TestNoEmptyFields: a log line has no empty fields.
func TestNoEmptyFields(t *testing.T) {
	log, logs := observed(zap.DebugLevel)
	cfg := config(&tokenSource{})
	cfg.Log = log
	h := newHandler(t, cfg)
	for _, target := range []string{"/readyz", "/nowhere", "/metadata/versions", tokenPath, tokenPath + "?resource=" + vault} {
		get(h, target)
	}
	if logs.Len() < 5 {
		t.Errorf("got %d lines", logs.Len())
	}
	for _, e := range logs.All() {
		for name, value := range e.ContextMap() {
			if value == "" || value == nil {
				t.Errorf("%s: %s is empty", e.Message, name)
			}
		}
	}
}

func TestMissingVersionIsLoggedOnce(t *testing.T) {
	log, logs := observed(zap.InfoLevel)
	cfg := config(&tokenSource{})
	cfg.Log = log
	h := newHandler(t, cfg)
	for range 3 {
		get(h, tokenPath+"?resource="+vault)
	}
	if got := logs.FilterMessageSnippet("without api-version").Len(); got != 1 {
		t.Errorf("logged %d times, want once", got)
	}
}

// TestNothingSecretIsLogged: at no level does the log have a token, a value of a header, or
// an unbounded value from the request.
func TestNothingSecretIsLogged(t *testing.T) {
	const canary = "canary-7c1f"
	log, logs := observed(zap.DebugLevel)
	source := &tokenSource{answer: func(ctx context.Context, req tokens.Request) (tokens.Result, error) {
		if strings.Contains(string(req.Resource), "fail") {
			return tokens.Result{}, errors.New("failure")
		}
		return tokens.Result{Token: exchange.Token{AccessToken: canary, NotBefore: epoch, ExpiresOn: epoch.Add(time.Hour)}, Source: tokens.SourceCache}, nil
	}}
	machine := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Canary", canary)
		fmt.Fprint(w, canary)
	}))
	defer machine.Close()
	cfg := config(source)
	cfg.Log = log
	cfg.Passthrough = azure.MetadataURL(machine.URL)
	h := newHandler(t, cfg)
	long := "https://" + strings.Repeat("a", 900)
	for _, target := range []string{
		tokenPath + "?resource=" + vault + "&xms_cc=" + canary,
		tokenPath + "?resource=https://fail.example.test&token_sha256_to_refresh=" + canary,
		tokenPath + "?resource=" + long,
		tokenPath + "?resource=" + long + "&client_id=" + canary,
		tokenPath + "?" + canary + "=%zz",
		instance + "&a=" + canary,
		"/" + strings.Repeat("b", 900) + "?" + canary,
	} {
		get(h, target, "Authorization: Bearer "+canary, "User-Agent: "+canary, "X-Ms-Client-Request-Id: "+canary)
		get(h, target, "X-Forwarded-For: "+canary)
		get(h, target, "Metadata: "+canary)
	}
	for _, e := range logs.All() {
		line := fmt.Sprint(e.Message, e.ContextMap())
		if strings.Contains(line, canary) {
			t.Errorf("logged: %s", line)
		}
		if len(line) > 700 {
			t.Errorf("a line of %d bytes: %s", len(line), line)
		}
	}
	if logs.Len() < 21 {
		t.Errorf("got only %d lines", logs.Len())
	}
}
