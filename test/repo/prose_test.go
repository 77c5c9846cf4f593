package repo

import (
	"go/scanner"
	"go/token"
	"path"
	"regexp"
	"strings"
	"testing"
)

// banned are words and patterns of a private vocabulary that this repository once had, and
// what to write instead. The list is short on purpose: none of them has a use here that is
// right. A reader who searches for the field's term would not find these.
var banned = []struct {
	pattern *regexp.Regexp
	instead string
}{
	{banWord(`aloft`), "running"},
	{banWord(`rooms`), "packages"},
	{banWord(`twins?`), "environment variable"},
	{banWord(`mend(?:s|ed|ing)?`), "fix"},
	{banWord(`walls?`), "check, limit or protection"}, // a wall clock is allowed by wallClock
	{banWord(`at the most`), "at most"},
	{banWord(`nought|naught|aught`), "nothing, or zero"},
	{banWord(`nil: (?:nobody|no one)`), "what happens if the field is nil"},
	{banWord(`behind (?:\S+ ){1,3}back`), "in the background"},
	{banWord(`(?:for|out of) (?:\S+ )?\S+s['’] sake`), "because of"},
	{banWord(`decided about`), "admitted, or the decision"},
	{banWord(`(?:callers?|clients?|logs?|applications?|users?|nobody|somebody) (?:is|are|was|were) told`), "gets, or logs"},
	{banWord(`speaks? workload identity`), "supports"},
	{banWord(`lines? that (?:are|is) alike`), "equal lines"},
	{banWord(`wakes? (?:nobody|somebody|anybody)`), "raises an alert"},
	// A headless relative or a preposition before the subject.
	{regexp.MustCompile(`(?m)(?:^|[.:;!?] )(?:Of|To|By|For|With|From) (?:which|whom|whose)\b`), "a sentence that begins with its subject"},
	{regexp.MustCompile(`(?m)(?:^|[.:;!?] )Who \w+s (?:nothing|not)\b`), "a sentence that begins with its subject"},
}

func banWord(pattern string) *regexp.Regexp { return regexp.MustCompile(`(?i)\b(?:` + pattern + `)\b`) }

var wallClock = regexp.MustCompile(`(?i)wall[- ]clock`)

// TestProse: comments, documentation, scripts and manifests have none of the banned words
// outside of `code`.
// `go test ./test/repo -run Prose` lists every use.
func TestProse(t *testing.T) {
	checked := 0
	for _, file := range files(t, "*.go", "*.md", "*.yaml", "*.yml", "*.tpl", "*.sh", "Makefile", "Dockerfile.*", "tools/*", ".ci/run") {
		if file == "test/repo/prose_test.go" || path.Base(file) == "go.sum" {
			continue
		}
		checked++
		lines := strings.Split(read(t, file), "\n")
		if path.Ext(file) == ".go" {
			lines = comments(t, file)
		}
		for n, line := range lines {
			line = wallClock.ReplaceAllString(codeSpan.ReplaceAllString(line, ""), "")
			for _, b := range banned {
				if found := b.pattern.FindString(line); found != "" {
					t.Errorf("%s:%d: %q: write %s", file, n+1, strings.TrimSpace(found), b.instead)
				}
			}
		}
	}
	if checked < 300 {
		t.Errorf("checked %d files, want most of the repository", checked)
	}
}

// comments returns the lines of a Go file with nothing but its comments.
func comments(t *testing.T, file string) []string {
	t.Helper()
	text := []byte(read(t, file))
	set := token.NewFileSet()
	var s scanner.Scanner
	s.Init(set.AddFile(file, -1, len(text)), text, nil, scanner.ScanComments)
	lines := make([]string, strings.Count(string(text), "\n")+1)
	for {
		position, kind, literal := s.Scan()
		if kind == token.EOF {
			return lines
		}
		if kind != token.COMMENT {
			continue
		}
		first := set.PositionFor(position, false).Line - 1
		for n, line := range strings.Split(literal, "\n") {
			lines[first+n] = strings.TrimPrefix(strings.TrimPrefix(line, "//"), " ")
		}
	}
}

// TestBanned: the patterns match what they are for, and leave similar words alone.
func TestBanned(t *testing.T) {
	for text, want := range map[string]bool{
		"which command mends it":                true,
		"the three walls":                       true,
		"Who says nothing is not waited for":    true,
		"Of which there are two.":               true,
		"replaced behind the caller's back":     true,
		"for callers' sake":                     true,
		"The caller is told the reason":         true,
		"a recommendation, amended":             false,
		"a bedroom; RLIMIT leaves no room":      false,
		"a file of which the proxy reads lines": false,
		"the firewall":                          false,
		"a request whose token is in the cache": false,
	} {
		got := false
		for _, b := range banned {
			got = got || b.pattern.MatchString(text)
		}
		if got != want {
			t.Errorf("%q: got %t, want %t", text, got, want)
		}
	}
}
