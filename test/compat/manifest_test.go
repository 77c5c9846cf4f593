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

// TestManifest: the manifest is valid, and every version has a lock unless a package of the
// system installs it.
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

// TestOnly: a family, one of its libraries, and names that do not exist.
func TestOnly(t *testing.T) {
	m, err := loadManifest()
	if err != nil {
		t.Fatal(err)
	}
	if family, err := m.only("go"); err != nil || len(family.Families) != 1 || len(family.Families[0].Libraries) < 2 {
		t.Errorf("go: got %+v, %v; want all libraries of one family", family.Families, err)
	}
	if one, err := m.only("go/msal"); err != nil || len(one.Families) != 1 || len(one.Families[0].Libraries) != 1 || one.Families[0].Libraries[0].Name != "msal" {
		t.Errorf("go/msal: got %+v, %v; want one library", one.Families, err)
	}
	for _, name := range []string{"cobol", "go/none", "go/", "/msal"} {
		if _, err := m.only(name); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// TestManifestChecks: invalid expectations are errors.
func TestManifestChecks(t *testing.T) {
	for name, e := range map[string]expectation{
		"unknown scenario": {Scenario: "no such scenario", Want: absent, Why: "reason"},
		"invalid outcome":  {Scenario: "chain", Want: wrong, Why: "reason"},
		"no reason":        {Scenario: "chain", Want: absent},
		"no error":         {Scenario: "chain", Want: refused, Why: "reason"},
		"unknown version":  {Scenario: "chain", Want: absent, Why: "reason", Versions: []string{"9"}},
	} {
		l := library{Versions: []version{{Version: "1"}}, Expect: []expectation{e}}
		if err := l.check(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestVerdict: each deviation from the expected outcome is an error.
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
	for name, change := range map[string]func(*observed){
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
		change(&o)
		if err := (&bench{}).verdict(s, want, o); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// TestVerdictOfRefusal: the outcome refused requires the documented error, without retries.
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
			t.Errorf("%s: no error", name)
		}
	}
}

// TestReport: the error and the page have the clients that failed or were not tried.
func TestReport(t *testing.T) {
	m := manifest{Families: []family{{Name: "f", Title: "F", Libraries: []library{{Name: "l", Title: "L",
		Versions: []version{{Version: "1"}, {Version: "2"}}}}}}}
	var cells []cell
	for _, s := range scenarios() {
		cells = append(cells, cell{Scenario: s.name, Got: s.want, Expected: expectation{Want: s.want}})
	}
	complete := result{Family: "f", Library: "l", Version: "1", Cells: cells}
	r := newReport(m, []result{complete}, installed{}, []place{redirected, direct})
	r.now = time.Unix(0, 0)
	if err := r.err(); err == nil || !strings.Contains(err.Error(), "l 2: it was not tried") || strings.Contains(err.Error(), "l 1:") {
		t.Errorf("got %v; want that l 2 was not tried", err)
	}
	second := complete
	second.Version = "2"
	second.Cells = append([]cell(nil), cells...)
	r = newReport(m, []result{complete, second}, installed{}, []place{redirected, direct})
	if err := r.err(); err != nil {
		t.Errorf("all good: %v", err)
	}
	second.Cells[0].Got, second.Cells[0].Problem = wrong, "a problem"
	r = newReport(m, []result{complete, second}, installed{}, []place{redirected, direct})
	if err := r.err(); err == nil || !strings.Contains(err.Error(), "a problem") {
		t.Errorf("got %v; want the problem", err)
	}
	if page := string(r.markdown()); !strings.Contains(page, "**not as expected**: a problem") {
		t.Errorf("the problem is not on the page:\n%s", page)
	}
}
