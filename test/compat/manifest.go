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

// manifest lists all clients and their known limits.
type manifest struct {
	Families []family `json:"families"`

	// NotHere are clients that should be tested but are not.
	NotHere []gap `json:"not_here"`
}

type family struct {
	// Name is the value of ONLY=, and the directory of the drivers: drivers/NAME.
	Name  string `json:"name"`
	Title string `json:"title"`
	// Needs are commands of the system, for tools/need.
	Needs []string `json:"needs"`
	// Runtime is a command that prints the version of the drivers' runtime. Empty: the
	// drivers have none.
	Runtime   []string  `json:"runtime,omitempty"`
	Libraries []library `json:"libraries"`
}

type library struct {
	// Name and a version are the name of the lock: versions/NAME-VERSION.
	Name  string `json:"name"`
	Title string `json:"title"`
	// Driver is the program in the family's directory that calls the library.
	Driver string `json:"driver"`
	// Resource is the only resource for which the client asks. Empty: the driver selects it.
	Resource string `json:"resource,omitempty"`
	// HidesExpiry is true if the client does not say when a token expires.
	HidesExpiry bool      `json:"hides_expiry,omitempty"`
	Versions    []version `json:"versions"`
	// Expect lists the scenarios in which the library differs from the ordinary outcome.
	Expect []expectation `json:"expect"`
}

type version struct {
	Version string `json:"version"`
	// Tags are build tags of a Go driver.
	Tags string `json:"tags,omitempty"`
	// System is a command that prints the version of a library that a package of the
	// system installed and that has no lock. Empty: the library has a lock.
	System []string `json:"system,omitempty"`
}

// expectation is the known outcome of a client in a scenario.
type expectation struct {
	// Scenario is the name of a scenario. With * at its end, it is the start of several names.
	Scenario string `json:"scenario"`
	// Versions are the versions with this outcome. Empty: all versions.
	Versions []string `json:"versions,omitempty"`
	Want     outcome  `json:"want"`
	// Error must be part of the client's error, if Want is refused or varies.
	Error string `json:"error,omitempty"`
	// Why is the reason, for readers of the matrix. It may be empty if Want is the
	// ordinary outcome.
	Why string `json:"why,omitempty"`
}

type gap struct {
	Client string `json:"client"`
	Why    string `json:"why"`
}

// outcome is the result of a client in a scenario.
type outcome string

const (
	// gotToken: all tokens were correct, with the expected number of exchanges.
	gotToken outcome = "token"
	// refused: the client soon raised its own error.
	refused outcome = "refused"
	// ignored: the client ignored the environment variable and used the metadata address.
	ignored outcome = "ignored"
	// varies: the client got the correct token or gave up, depending on its timing.
	varies outcome = "varies"
	// absent: the scenario was not run, because the library has no such feature.
	absent outcome = "absent"
	// wrong: anything else. An expectation cannot have this value.
	wrong outcome = "wrong"
)

// loadManifest reads and validates the manifest.
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
		all := slices.DeleteFunc(scenarios(), func(s scenario) bool { return !e.about(s.name) })
		switch {
		case len(all) == 0:
			return fmt.Errorf("unknown scenario %q", e.Scenario)
		case !slices.Contains([]outcome{gotToken, refused, ignored, varies, absent}, e.Want):
			return fmt.Errorf("%s: want %q: must be token, refused, ignored, varies or absent", e.Scenario, e.Want)
		case (e.Want == refused || e.Want == varies) && e.Error == "":
			return fmt.Errorf("%s: error is required", e.Scenario)
		case e.Why == "" && slices.ContainsFunc(all, func(s scenario) bool { return e.Want != s.want }):
			return fmt.Errorf("%s: why is required for %s", e.Scenario, e.Want)
		}
		for _, v := range e.Versions {
			if !slices.ContainsFunc(l.Versions, func(known version) bool { return known.Version == v }) {
				return fmt.Errorf("%s: unknown version %s", e.Scenario, v)
			}
		}
	}
	return nil
}

// about reports whether an expectation is about a scenario.
func (e expectation) about(scenario string) bool {
	start, several := strings.CutSuffix(e.Scenario, "*")
	return e.Scenario == scenario || several && strings.HasPrefix(scenario, start)
}

// expected returns the expectation for a version in a scenario. A feature that the version does
// not have takes precedence over an expectation for several scenarios, and this one over those of
// similar scenarios.
func (l library) expected(s scenario, v string) expectation {
	find := func(matches func(expectation) bool) (expectation, bool) {
		i := slices.IndexFunc(l.Expect, func(e expectation) bool {
			return (len(e.Versions) == 0 || slices.Contains(e.Versions, v)) && matches(e)
		})
		if i < 0 {
			return expectation{}, false
		}
		return l.Expect[i], true
	}
	similar := func(e expectation) bool { return slices.ContainsFunc(s.like, e.about) }
	for _, matches := range []func(expectation) bool{
		func(e expectation) bool { return e.Scenario == s.name },
		func(e expectation) bool { return e.Want == absent && similar(e) },
		func(e expectation) bool { return e.about(s.name) },
		similar,
	} {
		if e, found := find(matches); found {
			return e
		}
	}
	return expectation{Scenario: s.name, Want: s.want}
}

// only returns the manifest with one family, or with one of its libraries.
func (m manifest) only(name string) (manifest, error) {
	familyName, libraryName, one := strings.Cut(name, "/")
	f, err := m.family(familyName)
	if err == nil && one {
		var l library
		l, err = m.library(familyName, libraryName)
		f.Libraries = []library{l}
	}
	m.Families = []family{f}
	return m, err
}

// family returns the family with this name.
func (m manifest) family(name string) (family, error) {
	var known []string
	for _, f := range m.Families {
		if f.Name == name {
			return f, nil
		}
		known = append(known, f.Name)
	}
	return family{}, fmt.Errorf("unknown family %q: must be one of %s", name, strings.Join(known, ", "))
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
