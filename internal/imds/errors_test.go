package imds_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"imds-oidc-proxy/internal/exchange"
	"imds-oidc-proxy/internal/tokens"
)

// TestExchangeFailures: the answer depends on the kind of the failure, and never contains its
// text.
func TestExchangeFailures(t *testing.T) {
	const canary = "eyJhbGciOi-canary"
	for _, test := range []struct {
		name       string
		err        error
		status     int
		code       string
		mentions   string
		retryAfter string
	}{
		{"unknown identity", &exchange.Error{Kind: exchange.UnknownIdentity, Code: 700016, Detail: canary}, 400, "invalid_request", "Identity not found (AADSTS700016)", ""},
		{"invalid resource", &exchange.Error{Kind: exchange.InvalidResource, Code: 500011, Detail: canary}, 400, "invalid_resource", "AADSTS500011", ""},
		{"invalid scope", &exchange.Error{Kind: exchange.InvalidScope, Code: 70011, Detail: canary}, 400, "invalid_scope", "AADSTS70011", ""},
		{"unauthorized client", &exchange.Error{Kind: exchange.UnauthorizedClient, Code: 7000112, Detail: canary}, 400, "unauthorized_client", "AADSTS7000112", ""},
		{"invalid tenant", &exchange.Error{Kind: exchange.InvalidTenant, Code: 90002, Detail: canary}, 400, "invalid_request", "AADSTS90002", ""},
		{"federation mismatch", &exchange.Error{Kind: exchange.FederationMismatch, Code: 700213, Detail: canary}, 500, "server_error", "AADSTS700213", ""},
		{"issuer unusable", &exchange.Error{Kind: exchange.IssuerUnusable, Code: 501661, Detail: canary}, 500, "server_error", "issuer cannot be read (AADSTS501661)", ""},
		{"refused", &exchange.Error{Kind: exchange.Refused, Code: 7000999, Detail: canary}, 500, "server_error", "Entra refused the request (AADSTS7000999)", ""},
		{"federated token unusable", &exchange.Error{Kind: exchange.FederatedTokenUnusable, Detail: canary}, 500, "server_error", "service account token", ""},
		{"unavailable", &exchange.Error{Kind: exchange.Unavailable, Detail: canary}, 500, "service_unavailable", "not available", ""},
		{"deadline", &exchange.Error{Kind: exchange.DeadlineExceeded, Detail: canary}, 500, "service_unavailable", "in time", ""},
		{"throttled", &exchange.Error{Kind: exchange.Throttled, RetryAfter: 2500 * time.Millisecond, Detail: canary}, 429, "too_many_requests", "try again", "3"},
		{"throttled for an hour", &exchange.Error{Kind: exchange.Throttled, RetryAfter: time.Hour, Detail: canary}, 429, "too_many_requests", "try again", "10"},
		{"throttled without Retry-After", &exchange.Error{Kind: exchange.Throttled, Detail: canary}, 429, "too_many_requests", "try again", "1"},
		{"unknown kind", &exchange.Error{Kind: 99, Detail: canary}, 500, "server_error", "could not be acquired", ""},
		{"unknown error", errors.New(canary), 500, "server_error", "could not be acquired", ""},
		{"a context's deadline", context.DeadlineExceeded, 500, "service_unavailable", "in time", ""},
		{"cancelled, although the client waits", context.Canceled, 500, "server_error", "could not be acquired", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := get(newHandler(t, config(failing(test.err))), tokenPath+"?resource="+vault)
			body := decodeError(t, w)
			if w.Code != test.status || body.Code != test.code || !strings.Contains(body.Description, test.mentions) {
				t.Errorf("got %d %s, want %d %s with %q", w.Code, w.Body, test.status, test.code, test.mentions)
			}
			if got := w.Header().Get("Retry-After"); got != test.retryAfter {
				t.Errorf("got Retry-After %q, want %q", got, test.retryAfter)
			}
			if strings.Contains(w.Body.String(), canary) {
				t.Errorf("the error's text was sent: %s", w.Body)
			}
		})
	}
}

// TestOverloadClosesTheConnection: if too many callers wait for exchanges, the answer closes
// the connection, so that other clients can connect. Other errors do not close it.
func TestOverloadClosesTheConnection(t *testing.T) {
	for _, test := range []struct {
		cause error
		want  string
	}{{tokens.ErrOverloaded, "close"}, {nil, ""}} {
		err := &exchange.Error{Kind: exchange.Throttled, RetryAfter: time.Second, Cause: test.cause}
		w := get(newHandler(t, config(failing(err))), tokenPath+"?resource="+vault)
		if got := w.Header().Get("Connection"); w.Code != 429 || got != test.want || w.Header().Get("Retry-After") != "1" {
			t.Errorf("caused by %v: got %d with Connection %q and Retry-After %q, want 429, %q and 1",
				test.cause, w.Code, got, w.Header().Get("Retry-After"), test.want)
		}
	}
}

// TestUnusableTokens: a token on which some client would crash is never sent.
func TestUnusableTokens(t *testing.T) {
	good := exchange.Token{AccessToken: "t", NotBefore: epoch, ExpiresOn: epoch.Add(time.Hour)}
	for name, change := range map[string]func(*exchange.Token){
		"empty":                func(t *exchange.Token) { t.AccessToken = "" },
		"expired":              func(t *exchange.Token) { t.ExpiresOn = epoch },
		"no expiry":            func(t *exchange.Token) { t.ExpiresOn = time.Time{} },
		"no not_before":        func(t *exchange.Token) { t.NotBefore = time.Time{} },
		"less than one second": func(t *exchange.Token) { t.ExpiresOn = epoch.Add(time.Second - 1) },
	} {
		t.Run(name, func(t *testing.T) {
			token := good
			change(&token)
			source := &tokenSource{answer: func(context.Context, tokens.Request) (tokens.Result, error) {
				return tokens.Result{Token: token, Source: tokens.SourceCache}, nil
			}}
			w := get(newHandler(t, config(source)), tokenPath+"?resource="+vault)
			if w.Code != http.StatusInternalServerError {
				t.Errorf("got %d %s, want 500", w.Code, w.Body)
			}
			decodeError(t, w)
		})
	}
}
