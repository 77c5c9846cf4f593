package exchange

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	msal "github.com/AzureAD/microsoft-authentication-library-for-go/apps/errors"
)

// The parsers of untrusted bytes have internal tests, since not all of their results are visible
// outside of the package.

func TestRetryAfter(t *testing.T) {
	now := time.Date(2031, 5, 6, 7, 8, 9, 0, time.UTC)
	in := func(d time.Duration) string { return now.Add(d).Format(http.TimeFormat) }
	for _, c := range []struct {
		value, date string
		want        time.Duration
	}{
		{"", "", 0},
		{"0", "", 0},
		{"7", "", 7 * time.Second},
		{" 7 ", "", 7 * time.Second},
		{"-7", "", 0},
		{"7.5", "", 0},
		{"soon", "", 0},
		{"600", "", maxRetryAfter},
		{"601", "", maxRetryAfter},
		{"2147483647", "", maxRetryAfter},
		{"2147483648", "", maxRetryAfter},
		{"99999999999999999999", "", maxRetryAfter},
		{"-99999999999999999999", "", 0},
		{in(30 * time.Second), "", 30 * time.Second},
		{in(-30 * time.Second), "", 0},
		{in(time.Hour), "", maxRetryAfter},
		{in(30 * time.Second), in(10 * time.Second), 20 * time.Second}, // a clock that is ahead
		{in(30 * time.Second), "nonsense", 30 * time.Second},
	} {
		h := http.Header{"Retry-After": {c.value}, "Date": {c.date}}
		if got := retryAfter(h, now); got != c.want {
			t.Errorf("Retry-After %q, Date %q: got %s, want %s", c.value, c.date, got, c.want)
		}
	}
}

func TestGUID(t *testing.T) {
	const good = "12345678-abcd-EF01-2345-67890abcdef0"
	for s, want := range map[string]string{
		good:                               good,
		"":                                 "",
		good[1:]:                           "",
		good + "0":                         "",
		"g" + good[1:]:                     "",
		strings.Replace(good, "-", "0", 1): "",
		good[:35] + "\n":                   "",
		good[:34] + "é":                    "",
		strings.Repeat("-", len(good)):     "",
	} {
		if got := guid(s); got != want {
			t.Errorf("guid(%q) = %q, want %q", s, got, want)
		}
	}
}

// Each AADSTS code is in the table once, with a detail and a hint that has a text.
func TestRulings(t *testing.T) {
	seen := make(map[int]bool)
	for _, r := range rulings {
		if seen[r.code] {
			t.Errorf("%d is in the table twice", r.code)
		}
		seen[r.code] = true
		if r.detail == "" || r.detail != strings.ToLower(r.detail[:1])+r.detail[1:] {
			t.Errorf("%d: detail %q", r.code, r.detail)
		}
		if r.kind.Permanent() && (r.retry != RetryNever || r.hint == hintNone) {
			t.Errorf("%d is permanent: it must have RetryNever and a hint", r.code)
		}
		if r.hint != hintNone && r.hint.advise(r.code, "id", "resource", FederatedToken{}) == "" {
			t.Errorf("%d: the hint has no text", r.code)
		}
	}
	if r, ok := rulingOn([]int{1, 2, 700016}); !ok || r.kind != UnknownIdentity {
		t.Errorf("a known code after unknown ones: got %v, %t", r, ok)
	}
}

// TestVariantsOfCodes: a code with one more digit is a variant of a listed code in some families,
// and unknown in the others.
func TestVariantsOfCodes(t *testing.T) {
	for _, code := range families {
		if _, ok := rulingFor(code); !ok {
			t.Errorf("%d is not in the table", code)
		}
	}
	for code, want := range map[int]Kind{
		7002139: FederationMismatch, 7002110: FederationMismatch, 501669: IssuerUnusable, 900613: IssuerUnusable,
		7000222: 0, 7000161: 0, 70021380: 0, 5016: 0, 0: 0, -7: 0,
	} {
		r, ok := rulingOn([]int{code})
		if r.kind != want || ok != (want != 0) || ok && r.code != code {
			t.Errorf("%d: got kind %s for %d, known %t, want %s", code, r.kind, r.code, ok, want)
		}
	}
	if r, _ := rulingOn([]int{7002139, 700016}); r.code != 700016 {
		t.Errorf("a variant before a listed code: got %d, want the listed one", r.code)
	}
}

func TestBoundedBody(t *testing.T) {
	for length, want := range map[int]error{9: nil, 10: nil, 11: errBodyTooLarge, 1000: errBodyTooLarge} {
		for _, size := range []int{1, 3, 4096} {
			b := &boundedBody{ReadCloser: io.NopCloser(strings.NewReader(strings.Repeat("x", length))), left: 10}
			_, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{b}, make([]byte, size))
			if !errors.Is(err, want) {
				t.Errorf("%d bytes in reads of %d: got %v, want %v", length, size, err, want)
			}
		}
	}
}

func FuzzRefusal(f *testing.F) {
	f.Add(400, `{"error":"invalid_client","error_codes":[700213],"trace_id":"x","correlation_id":"y"}`, "7", false)
	f.Add(429, "", "Wed, 21 Oct 2015 07:28:00 GMT", true)
	f.Add(503, "<html>", "-1", false)
	f.Add(403, `{"kind":"Status","message":"cannot use-managed-identity"}`, "", true)
	f.Fuzz(func(t *testing.T, status int, body, after string, binding bool) {
		e := refusal(msal.CallErr{Resp: &http.Response{
			StatusCode: status,
			Header:     http.Header{"Retry-After": {after}},
			Body:       io.NopCloser(strings.NewReader(body)),
		}}, peer{"the token proxy", binding})
		if e.Kind == 0 || e.Detail == "" || strings.HasPrefix(e.Kind.String(), "kind(") {
			t.Errorf("kind %s, detail %q", e.Kind, e.Detail)
		}
		if e.RetryAfter < 0 || e.RetryAfter > maxRetryAfter {
			t.Errorf("RetryAfter %s", e.RetryAfter)
		}
		if e.Kind.Permanent() && (status >= 500 || status == 429 || e.RetryAfter != 0) {
			t.Errorf("status %d is permanent", status)
		}
		for _, id := range []string{e.TraceID, e.CorrelationID} {
			if id != "" && guid(id) == "" {
				t.Errorf("identifier %q", id)
			}
		}
		if strings.ContainsAny(e.Error(), "\n\r\x1b") || len(e.Error()) > maxQuoted {
			t.Errorf("text %q", e.Error())
		}
	})
}

func FuzzFederatedToken(f *testing.F) {
	f.Add("a.eyJpc3MiOiJ4IiwiZXhwIjoxZTl9.c")
	f.Add("a.eyJhdWQiOlsieCJdLCJleHAiOjF9.c")
	f.Add("..")
	f.Fuzz(func(t *testing.T, raw string) {
		token, err := parseFederatedToken(raw)
		if err != nil {
			return
		}
		if got := token.String(); len(got) > 16*maxQuoted || strings.ContainsFunc(got, func(r rune) bool { return r < ' ' || r > '~' }) {
			t.Errorf("described as %q", got)
		}
		if token.raw == nil || *token.raw != raw {
			t.Error("raw is not the token that was parsed")
		}
		advice := hintCredential.advise(0, token.Subject, token.Issuer, token)
		if strings.Count(advice, "'") != 10 || strings.ContainsAny(advice, "\n`$\\") {
			t.Errorf("advice %q", advice)
		}
	})
}
