package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"imds-oidc-proxy/test/kit/entra"
	"imds-oidc-proxy/test/kit/pod"
)

// TestManifest: it can be read, and every version that the system does not install
// is pinned by a lock.
func TestManifest(t *testing.T) {
	m, err := loadManifest()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range m.Families {
		for _, l := range f.Libraries {
			if _, err := os.Stat(filepath.Join("drivers", f.Name, l.Driver)); err != nil {
				t.Error(err)
			}
			for _, v := range l.Versions {
				locks, err := filepath.Glob(filepath.Join("drivers", f.Name, "versions", l.Name+"-"+v.Version+"*"))
				if err != nil || (len(locks) == 0) != (v.System != nil) {
					t.Errorf("%s %s: locks %q, %v", l.Name, v.Version, locks, err)
				}
			}
		}
	}
}

// TestManifestChecks: what nobody could rely on is refused.
func TestManifestChecks(t *testing.T) {
	for name, e := range map[string]expectation{
		"no such scenario": {Scenario: "lunch", Want: absent, Why: "it is late"},
		"no such outcome":  {Scenario: "chain", Want: wrong, Why: "it is"},
		"no reason":        {Scenario: "chain", Want: absent},
		"which error":      {Scenario: "chain", Want: refused, Why: "it is"},
		"no such version":  {Scenario: "chain", Want: absent, Why: "it is", Versions: []string{"9"}},
	} {
		l := library{Versions: []version{{Version: "1"}}, Expect: []expectation{e}}
		if err := l.check(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestVerdict: each thing that may be wrong with a cell is seen.
func TestVerdict(t *testing.T) {
	good := func() observed {
		return observed{resource: "r", requests: 1, exchanges: make([]entra.Exchange, 1),
			answers: []answer{{Token: "t", claims: entra.AccessToken{ClientID: pod.ClientID, Resource: "r"}}}}
	}
	s, _ := scenarioNamed("default")
	want := expectation{Scenario: s.name, Want: gotToken}
	if err := (&bench{}).verdict(s, want, good()); err != nil {
		t.Fatalf("a good cell: %v", err)
	}
	for name, spoil := range map[string]func(*observed){
		"another identity's token": func(o *observed) { o.answers[0].claims.ClientID = otherClientID },
		"another resource's token": func(o *observed) { o.answers[0].claims.Resource = "s" },
		"not Entra's token":        func(o *observed) { o.answers[0].claims = entra.AccessToken{} },
		"an error":                 func(o *observed) { o.answers[0] = answer{Error: "E"} },
		"no answer":                func(o *observed) { o.answers = nil },
		"one answer too many":      func(o *observed) { o.answers = append(o.answers, o.answers[0]) },
		"a second exchange":        func(o *observed) { o.exchanges = append(o.exchanges, entra.Exchange{}) },
		"the node's IMDS asked":    func(o *observed) { o.node = 1 },
		"the driver crashed":       func(o *observed) { o.failure = errors.New("exit status 1") },
	} {
		o := good()
		spoil(&o)
		if err := (&bench{}).verdict(s, want, o); err == nil {
			t.Errorf("%s: not seen", name)
		}
	}
}

// TestVerdictOfRefusal: a refusal is the error that is documented, and no retry.
func TestVerdictOfRefusal(t *testing.T) {
	s, _ := scenarioNamed("unknown")
	want := expectation{Scenario: s.name, Want: refused, Error: "Unavailable"}
	good := observed{requests: 2, answers: []answer{{Error: "CredentialUnavailable"}}}
	if err := (&bench{}).verdict(s, want, good); err != nil {
		t.Fatalf("a good refusal: %v", err)
	}
	for name, o := range map[string]observed{
		"a token":       {requests: 1, answers: []answer{{Token: "t"}}},
		"another error": {requests: 1, answers: []answer{{Error: "TypeError"}}},
		"a retry":       {requests: 3, answers: []answer{{Error: "CredentialUnavailable"}}},
		"two exchanges": {requests: 1, exchanges: make([]entra.Exchange, 2), answers: []answer{{Error: "CredentialUnavailable"}}},
	} {
		if err := (&bench{}).verdict(s, want, o); err == nil {
			t.Errorf("%s: not seen", name)
		}
	}
}

// TestReport: what went wrong, or was not tried, is in the error and on the page.
func TestReport(t *testing.T) {
	m := manifest{Families: []family{{Name: "f", Title: "F", Libraries: []library{{Name: "l", Title: "L",
		Versions: []version{{Version: "1"}, {Version: "2"}}}}}}}
	var cells []cell
	for _, s := range scenarios() {
		cells = append(cells, cell{Scenario: s.name, Got: s.want, Expected: expectation{Want: s.want}})
	}
	complete := result{Family: "f", Library: "l", Version: "1", Cells: cells}
	r := newReport(m, []result{complete}, installed{})
	r.now = time.Unix(0, 0)
	if err := r.err(); err == nil || !strings.Contains(err.Error(), "l 2: it was not tried") || strings.Contains(err.Error(), "l 1:") {
		t.Errorf("got %v; want that l 2 was not tried", err)
	}
	second := complete
	second.Version = "2"
	second.Cells = append([]cell(nil), cells...)
	r = newReport(m, []result{complete, second}, installed{})
	if err := r.err(); err != nil {
		t.Errorf("all good: %v", err)
	}
	second.Cells[0].Got, second.Cells[0].Problem = wrong, "the moon"
	r = newReport(m, []result{complete, second}, installed{})
	if err := r.err(); err == nil || !strings.Contains(err.Error(), "the moon") {
		t.Errorf("got %v; want the problem", err)
	}
	if page := string(r.markdown()); !strings.Contains(page, "**not as expected**: the moon") {
		t.Errorf("the page does not say it:\n%s", page)
	}
}
