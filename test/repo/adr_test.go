package repo

import (
	"path"
	"regexp"
	"strings"
	"testing"
)

// TestDecisionRecords: every record has the form that docs/adr/README.md requires, and a row with
// its status in the index there.
func TestDecisionRecords(t *testing.T) {
	index := read(t, "docs/adr/README.md")
	records := files(t, "docs/adr/[0-9]*.md")
	if len(records) == 0 {
		t.Fatal("found no records")
	}
	status := regexp.MustCompile(`(?m)^Status: (accepted|superseded by \[\d{4}\]\(\S+\))`)
	for _, file := range records {
		text, name := read(t, file), path.Base(file)
		number := name[:4]
		form := regexp.MustCompile(`(?s)\A# ` + number + `\. [^\n]+\n\nDate: \d{4}-\d\d-\d\d\n\nStatus: .*\n## Context\n.*\n## Decision\n.*\n## Consequences\n`)
		if !form.MatchString(text) {
			t.Errorf("%s: must have the title %q, then Date, Status, Context, Decision and Consequences", file, "# "+number+". …")
		}
		state := status.FindStringSubmatch(text)
		if state == nil {
			t.Errorf("%s: the status must be accepted or superseded by [NNNN](…)", file)
			continue
		}
		_, row, found := strings.Cut(index, "\n| ["+number+"]("+name+") | ")
		if row, _, _ = strings.Cut(row, "\n"); !found || !strings.Contains(row, " | "+state[1]+" | ") {
			t.Errorf("docs/adr/README.md has no row for %s with the status %q", name, state[1])
		}
	}
}

// TestDecisionNumbers: every record that code or documentation refers to by number exists.
func TestDecisionNumbers(t *testing.T) {
	number := regexp.MustCompile(`(?:ADR |docs/adr/)(\d{4})`)
	checked := 0
	for _, file := range files(t, "*.go", "*.md", "*.yaml", "Makefile", "Dockerfile.*") {
		if file == "test/repo/adr_test.go" || file == "docs/adr/README.md" {
			continue
		}
		for _, m := range number.FindAllStringSubmatch(read(t, file), -1) {
			checked++
			if len(files(t, "docs/adr/"+m[1]+"-*.md")) != 1 {
				t.Errorf("%s names ADR %s, which does not exist", file, m[1])
			}
		}
	}
	if checked == 0 {
		t.Error("found no references to records: the pattern does not match")
	}
}
