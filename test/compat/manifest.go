package main

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

//go:embed manifest.json
var manifestJSON []byte

// manifest names every client that is tried, and what each is known not to do.
type manifest struct {
	Families []family `json:"families"`

	// NotHere are clients that this matrix ought to have and does not.
	NotHere []gap `json:"not_here"`
}

type family struct {
	// Name is for ONLY=, and where the drivers are: drivers/NAME.
	Name  string `json:"name"`
	Title string `json:"title"`
	// Needs are commands of the system, for tools/need.
	Needs []string `json:"needs"`
	// Runtime is a command that prints what the drivers run under. Empty: what is
	// worth knowing is the libraries' own version.
	Runtime   []string  `json:"runtime,omitempty"`
	Libraries []library `json:"libraries"`
}

type library struct {
	// Name and a version make the name of the lock: versions/NAME-VERSION.
	Name  string `json:"name"`
	Title string `json:"title"`
	// Driver is the program of the family's directory that calls the library.
	Driver   string    `json:"driver"`
	Versions []version `json:"versions"`
	// Expect lists where the library does something else than the scenario's
	// ordinary outcome.
	Expect []expectation `json:"expect"`
}

type version struct {
	Version string `json:"version"`
	// Tags are build tags of a Go driver.
	Tags string `json:"tags,omitempty"`
	// System is a command that prints the version of what a package of the system
	// installed, which has no lock. Empty: there is one.
	System []string `json:"system,omitempty"`
}

// expectation is what a client is known to do in a scenario.
type expectation struct {
	Scenario string `json:"scenario"`
	// Versions it holds for. Empty: all.
	Versions []string `json:"versions,omitempty"`
	Want     outcome  `json:"want"`
	// Error has to be part of the client's error, with refused and varies.
	Error string `json:"error,omitempty"`
	// Why is for the reader of the matrix. It may be empty where Want is the
	// ordinary outcome.
	Why string `json:"why,omitempty"`
}

type gap struct {
	Client string `json:"client"`
	Why    string `json:"why"`
}

// outcome is what became of a client in a scenario.
type outcome string

const (
	// gotToken: all tokens were right, at the right cost.
	gotToken outcome = "token"
	// refused: the client raised its own error, soon.
	refused outcome = "refused"
	// ignored: the client asked the metadata address, whatever the environment says.
	ignored outcome = "ignored"
	// varies: the client got the right token or gave up, as the moment had it.
	varies outcome = "varies"
	// absent: the library has no way to ask for this, so it was not tried.
	absent outcome = "absent"
	// wrong: none of these. No expectation can name it.
	wrong outcome = "wrong"
)

// loadManifest reads the manifest and checks that it can be relied on.
func loadManifest() (manifest, error) {
	var m manifest
	decoder := json.NewDecoder(bytes.NewReader(manifestJSON))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&m); err != nil {
		return m, fmt.Errorf("manifest.json: %w", err)
	}
	for _, f := range m.Families {
		for _, l := range f.Libraries {
			if err := l.check(); err != nil {
				return m, fmt.Errorf("manifest.json: %s: %w", l.Name, err)
			}
		}
	}
	return m, nil
}

func (l library) check() error {
	for _, e := range l.Expect {
		s, ok := scenarioNamed(e.Scenario)
		switch {
		case !ok:
			return fmt.Errorf("no scenario is called %q", e.Scenario)
		case !slices.Contains([]outcome{gotToken, refused, ignored, varies, absent}, e.Want):
			return fmt.Errorf("%s: %q cannot be wanted", e.Scenario, e.Want)
		case (e.Want == refused || e.Want == varies) && e.Error == "":
			return fmt.Errorf("%s: which error?", e.Scenario)
		case e.Want != s.want && e.Why == "":
			return fmt.Errorf("%s: %s takes a reason", e.Scenario, e.Want)
		}
		for _, v := range e.Versions {
			if !slices.ContainsFunc(l.Versions, func(known version) bool { return known.Version == v }) {
				return fmt.Errorf("%s: there is no version %s", e.Scenario, v)
			}
		}
	}
	return nil
}

// expected is what a version of the library is to do in a scenario. The first
// entry that fits decides.
func (l library) expected(s scenario, v string) expectation {
	for _, e := range l.Expect {
		if e.Scenario == s.name && (len(e.Versions) == 0 || slices.Contains(e.Versions, v)) {
			return e
		}
	}
	return expectation{Scenario: s.name, Want: s.want}
}

// family returns the family of that name.
func (m manifest) family(name string) (family, error) {
	var known []string
	for _, f := range m.Families {
		if f.Name == name {
			return f, nil
		}
		known = append(known, f.Name)
	}
	return family{}, fmt.Errorf("no family is called %q; there are %s", name, strings.Join(known, ", "))
}

func (m manifest) library(familyName, name string) (library, error) {
	f, err := m.family(familyName)
	if err != nil {
		return library{}, err
	}
	for _, l := range f.Libraries {
		if l.Name == name {
			return l, nil
		}
	}
	return library{}, fmt.Errorf("the family %s has no library %q", familyName, name)
}
