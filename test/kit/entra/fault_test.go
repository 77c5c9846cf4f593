package entra_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"imds-oidc-proxy/test/kit/entra"
)

// observed is the result of a request.
type observed struct {
	status  int
	header  http.Header
	body    string
	err     error // of the request
	bodyErr error // of reading the body
}

// observe posts the form, or gets the URL if form is nil.
func observe(ctx context.Context, client *http.Client, url string, form url.Values) observed {
	method := http.MethodPost
	if form == nil {
		method = http.MethodGet
	}
	request, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(form.Encode()))
	if err != nil {
		return observed{err: err}
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	request.Header.Set("client-request-id", testCorrelationID)
	response, err := client.Do(request)
	if err != nil {
		return observed{err: err}
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return observed{status: response.StatusCode, header: response.Header, body: string(body), bodyErr: err}
}

// bothWays runs a test with connections by TLS, and without connections.
func bothWays(t *testing.T, test func(*testing.T, *entra.Server)) {
	t.Run("listener", func(t *testing.T) {
		idp := start(t, entra.Config{})
		idp.AddApplication(testApplication())
		test(t, idp)
	})
	t.Run("transport", func(t *testing.T) {
		idp := withoutListener(t, entra.Config{})
		idp.AddApplication(testApplication())
		test(t, idp)
	})
}

func TestFaults(t *testing.T) {
	until := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	tests := []struct {
		name  string
		fault entra.Fault
		want  func(observed) bool
	}{
		{"AADSTS", entra.FaultAADSTS(700213), func(o observed) bool {
			return o.status == 401 && strings.Contains(o.body, "AADSTS700213: No matching") && strings.Contains(o.body, `"error_codes":[700213]`)
		}},
		{"transient AADSTS code", entra.FaultAADSTS(90033), func(o observed) bool {
			return o.status == 503 && strings.Contains(o.body, `"error":"temporarily_unavailable"`)
		}},
		{"unknown AADSTS code", entra.FaultAADSTS(123), func(o observed) bool {
			return o.status == 400 && strings.Contains(o.body, "AADSTS123:")
		}},
		{"AADSTS code with status and text", entra.FaultAADSTSAs(403, "interaction_required", 53003, "Access has been blocked."), func(o observed) bool {
			return o.status == 403 && strings.Contains(o.body, "AADSTS53003: Access has been blocked.")
		}},
		{"429", entra.FaultThrottle(17 * time.Second), func(o observed) bool {
			return o.status == 429 && o.header.Get("Retry-After") == "17" && o.body == "Too Many Requests"
		}},
		{"429 without Retry-After", entra.FaultThrottle(0), func(o observed) bool {
			return o.status == 429 && len(o.header["Retry-After"]) == 0
		}},
		{"429 until", entra.FaultThrottleUntil(until), func(o observed) bool {
			return o.status == 429 && o.header.Get("Retry-After") == "Sun, 01 Mar 2026 12:00:00 GMT"
		}},
		{"500 without body", entra.FaultStatus(500, ""), func(o observed) bool {
			return o.status == 500 && o.body == ""
		}},
		{"503 with body", entra.FaultStatus(503, "The service is unavailable."), func(o observed) bool {
			return o.status == 503 && o.body == "The service is unavailable."
		}},
		{"JSON", entra.FaultJSON(401, `{"error":"invalid_client"}`), func(o observed) bool {
			return o.status == 401 && o.body == `{"error":"invalid_client"}` && strings.HasPrefix(o.header.Get("Content-Type"), "application/json")
		}},
		{"HTML with 200", entra.FaultHTML(200), func(o observed) bool {
			return o.status == 200 && strings.HasPrefix(o.body, "<!DOCTYPE html>")
		}},
		{"HTML with 503", entra.FaultHTML(503), func(o observed) bool {
			return o.status == 503 && strings.HasPrefix(o.header.Get("Content-Type"), "text/html")
		}},
		{"malformed JSON", entra.FaultMalformedJSON("canary"), func(o observed) bool {
			return o.status == 200 && strings.Contains(o.body, `"access_token":"canary"`) && !strings.HasSuffix(o.body, "}")
		}},
		{"redirect", entra.FaultRedirect(307, "https://elsewhere.example.test/"), func(o observed) bool {
			return o.status == 307 && o.header.Get("Location") == "https://elsewhere.example.test/"
		}},
		{"reset", entra.FaultReset(), func(o observed) bool { return errors.Is(o.err, syscall.ECONNRESET) }},
		{"truncated", entra.FaultTruncated(), func(o observed) bool {
			return o.status == 200 && errors.Is(o.bodyErr, io.ErrUnexpectedEOF) && strings.Contains(o.body, `"access_token"`)
		}},
		{"slow", entra.FaultSlow(time.Millisecond), func(o observed) bool {
			return o.status == 200 && strings.Contains(o.body, `"access_token"`)
		}},
		{"without access_token", entra.FaultWithout("access_token"), func(o observed) bool {
			return o.status == 200 && !strings.Contains(o.body, `"access_token"`) && strings.Contains(o.body, `"expires_in"`)
		}},
		{"edited", entra.FaultEdit("", func(a map[string]any) { a["expires_in"] = "soon" }), func(o observed) bool {
			return o.status == 200 && strings.Contains(o.body, `"expires_in":"soon"`)
		}},
	}
	bothWays(t, func(t *testing.T, idp *entra.Server) {
		for _, test := range tests {
			idp.Reset()
			idp.FailNext(1, test.fault)
			if got := observe(t.Context(), idp.Client(), idp.TokenURL(), goodForm(idp)); !test.want(got) {
				t.Errorf("%s: observed %+v", test.name, got)
			}
			if seen := idp.Exchanges(); len(seen) != 1 || seen[0].Fault != test.fault.Name || seen[0].Outcome == entra.OutcomePending {
				t.Errorf("%s: exchanges %+v", test.name, seen)
			}
			if got := observe(t.Context(), idp.Client(), idp.TokenURL(), goodForm(idp)); got.status != 200 || got.bodyErr != nil {
				t.Errorf("%s: the next request: %+v", test.name, got)
			}
		}
	})
}

func TestFaultsAtDiscovery(t *testing.T) {
	bothWays(t, func(t *testing.T, idp *entra.Server) {
		idp.FailNext(1, entra.FaultStatus(502, "").On(entra.TenantDiscovery))
		if got := observe(t.Context(), idp.Client(), idp.TokenURL(), goodForm(idp)); got.status != 200 {
			t.Fatalf("a fault of discovery was applied to a token request: %+v", got)
		}
		if _, err := acquire(t.Context(), idp, idp.Client()); err == nil {
			t.Error("MSAL got a token although discovery fails")
		}
		if _, err := acquire(t.Context(), idp, idp.Client()); err != nil {
			t.Errorf("after the fault: %v", err)
		}
		idp.FailNext(1, entra.FaultWithout("token_endpoint").On(entra.TenantDiscovery))
		if _, err := acquire(t.Context(), idp, idp.Client()); err == nil {
			t.Error("MSAL got a token without a token endpoint")
		}
	})
}

func TestOrderOfFaults(t *testing.T) {
	idp := withoutListener(t, entra.Config{})
	idp.AddApplication(testApplication())
	idp.FailNext(2, entra.FaultStatus(500, ""))
	idp.FailNext(1, entra.FaultStatus(501, ""))
	idp.FailAlways(entra.FaultStatus(503, ""))
	idp.FailAlways(entra.FaultStatus(504, "")) // replaces 503
	idp.FailWhen(func(x entra.Exchange) *entra.Fault {
		if x.Resource != "https://graph.microsoft.com" {
			return nil
		}
		return new(entra.FaultStatus(502, ""))
	})
	ask := func(resource string) int {
		form := goodForm(idp)
		form.Set("scope", resource+"/.default")
		return observe(t.Context(), idp.Client(), idp.TokenURL(), form).status
	}
	for i, want := range []int{500, 500, 501, 504, 504} {
		if got := ask(testResource); got != want {
			t.Errorf("request %d: got %d, want %d", i, got, want)
		}
	}
	if got := ask("https://graph.microsoft.com"); got != 502 {
		t.Errorf("the request of the rule: got %d, want 502", got)
	}
	idp.Heal()
	if got := ask("https://graph.microsoft.com"); got != 200 {
		t.Errorf("after Heal: got %d, want 200", got)
	}
}

// hanging starts a request and waits until it hangs in the server.
func hanging(ctx context.Context, t *testing.T, idp *entra.Server) <-chan observed {
	t.Helper()
	idp.FailAlways(entra.FaultHang())
	done := make(chan observed, 1)
	form := goodForm(idp)
	go func() { done <- observe(ctx, idp.Client(), idp.TokenURL(), form) }()
	waitFor(t, "the request to arrive", func() bool { return idp.InFlight() == 1 })
	return done
}

// waitFor polls, because the condition becomes true at the other end of a connection.
func waitFor(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-deadline:
			t.Fatalf("timeout: waiting for %s", what)
		case <-tick.C:
		}
	}
}

func TestHangEndsByHeal(t *testing.T) {
	bothWays(t, func(t *testing.T, idp *entra.Server) {
		done := hanging(t.Context(), t, idp)
		if got := idp.Exchanges()[0].Outcome; got != entra.OutcomePending {
			t.Errorf("outcome while it hangs: %s", got)
		}
		idp.Heal()
		if got := <-done; got.status != 200 || got.bodyErr != nil {
			t.Errorf("after Heal: %+v", got)
		}
		waitFor(t, "the request to end", func() bool { return idp.InFlight() == 0 })
	})
}

func TestHangEndsByClose(t *testing.T) {
	bothWays(t, func(t *testing.T, idp *entra.Server) {
		done := hanging(t.Context(), t, idp)
		if err := idp.Close(); err != nil {
			t.Fatal(err)
		}
		if got := <-done; got.err == nil {
			t.Errorf("after Close: %+v", got)
		}
	})
}

func TestHangEndsWhenTheClientLeaves(t *testing.T) {
	bothWays(t, func(t *testing.T, idp *entra.Server) {
		ctx, leave := context.WithCancel(t.Context())
		done := hanging(ctx, t, idp)
		leave()
		if got := <-done; !errors.Is(got.err, context.Canceled) {
			t.Errorf("got %+v, want a canceled request", got)
		}
		waitFor(t, "the server to notice", func() bool { return idp.InFlight() == 0 })
		if got := idp.Exchanges()[0].Outcome; got != entra.OutcomeAborted {
			t.Errorf("outcome: got %s, want %s", got, entra.OutcomeAborted)
		}
	})
}

func TestSlowAnswerEndsWhenTheClientLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		idp := withoutListener(t, entra.Config{})
		idp.AddApplication(testApplication())
		idp.FailNext(1, entra.FaultSlow(time.Hour))
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		begin := time.Now()
		got := observe(ctx, idp.Client(), idp.TokenURL(), goodForm(idp))
		if !errors.Is(got.err, context.DeadlineExceeded) || time.Since(begin) != time.Minute {
			t.Errorf("after %s: %+v", time.Since(begin), got)
		}
	})
}
