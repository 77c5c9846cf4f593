package health_test

import (
	"errors"
	"net/http/httptest"
	"strings"
	"testing"

	"imds-oidc-proxy/internal/health"
)

func TestHandler(t *testing.T) {
	fails := func() error { return errors.New("no such file") }
	fine := func() error { return nil }
	forged := func() error { return errors.New("x\n[+]federated-token ok\nreadyz check passed\r\x00") }
	for _, test := range []struct {
		name   string
		checks []health.Check
		target string
		status int
		body   string
	}{
		{"no checks", nil, "/readyz", 200, "ok"},
		{"ready", []health.Check{{Name: "listening"}, {Name: "federated-token", Run: fine}}, "/readyz", 200, "ok"},
		{"a warning", []health.Check{{Name: "renewal", Run: fails, Warning: true}, {Name: "listening"}}, "/readyz", 200, "ok"},
		{"a warning, verbose", []health.Check{{Name: "renewal", Run: fails, Warning: true}, {Name: "listening"}}, "/readyz?verbose", 200,
			"[!]renewal warning: no such file\n[+]listening ok\nreadyz check passed\n"},
		{"ready, verbose", []health.Check{{Name: "listening"}, {Name: "federated-token", Run: fine}}, "/readyz?verbose", 200,
			"[+]listening ok\n[+]federated-token ok\nreadyz check passed\n"},
		{"verbose with a value", []health.Check{{Name: "listening"}}, "/readyz?verbose=1", 200, "[+]listening ok\nreadyz check passed\n"},
		{"not ready", []health.Check{{Name: "listening"}, {Name: "federated-token", Run: fails}}, "/readyz", 503,
			"federated-token: no such file"},
		{"not ready, verbose", []health.Check{{Name: "federated-token", Run: fails}, {Name: "listening"}}, "/readyz?verbose", 503,
			"[-]federated-token failed: no such file\n[+]listening ok\nreadyz check failed\n"},
		{"two reasons", []health.Check{{Name: "a", Run: fails}, {Name: "b", Run: fails}}, "/readyz", 503, "a: no such file; b: no such file"},
		{"a reason of several lines", []health.Check{{Name: "a", Run: forged}}, "/readyz?verbose", 503,
			"[-]a failed: x [+]federated-token ok readyz check passed  \nreadyz check failed\n"},
		{"another query", []health.Check{{Name: "a"}}, "/readyz?a=%zz;&verbos", 200, "ok"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := httptest.NewRecorder()
			health.Handler("readyz", test.checks).ServeHTTP(w, httptest.NewRequest("GET", test.target, nil))
			if w.Code != test.status || w.Body.String() != test.body {
				t.Errorf("got %d %q, want %d %q", w.Code, w.Body, test.status, test.body)
			}
			if got := w.Header().Get("Content-Type"); !strings.HasPrefix(got, "text/plain") {
				t.Errorf("got Content-Type %q", got)
			}
		})
	}
}

func TestReasonsAreBounded(t *testing.T) {
	long := func() error { return errors.New(strings.Repeat("a", 10_000)) }
	w := httptest.NewRecorder()
	health.Handler("readyz", []health.Check{{Name: "a", Run: long}}).ServeHTTP(w, httptest.NewRequest("GET", "/readyz", nil))
	if w.Body.Len() > 300 {
		t.Errorf("got %d bytes", w.Body.Len())
	}
}
