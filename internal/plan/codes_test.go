package plan_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"imds-oidc-proxy/internal/plan"
)

// TestDocumented checks that docs/plan.md has a section for each code, with its title, and no other.
func TestDocumented(t *testing.T) {
	page, err := os.ReadFile("../../docs/plan.md")
	if err != nil {
		t.Fatal(err)
	}
	sections := map[string]string{}
	for _, part := range regexp.MustCompile(`(?m)^#### `).Split(string(page), -1)[1:] {
		heading, text, _ := strings.Cut(part, "\n")
		sections[heading] = text
	}
	for _, c := range plan.Codes() {
		text, found := sections[c.Code]
		if !found || !strings.Contains(text, c.Title) || !strings.Contains(text, "*"+string(c.Severity)+"*") {
			t.Errorf("docs/plan.md must have a section `#### %s` with *%s* and %q; found: %t", c.Code, c.Severity, c.Title, found)
		}
		if change := plan.ToolChange(c.Code); !strings.Contains(text, change) {
			t.Errorf("docs/plan.md, %s: must contain %q", c.Code, change)
		}
		delete(sections, c.Code)
	}
	for heading := range sections {
		t.Errorf("docs/plan.md has a section %s, which is no code", heading)
	}
}

// TestCodes checks that no code occurs twice, and that each finding that a plan makes is in the table.
func TestCodes(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range plan.Codes() {
		if seen[c.Code] || !regexp.MustCompile(`^IMDS[123]\d\d$`).MatchString(c.Code) {
			t.Errorf("%s occurs twice or is not valid", c.Code)
		}
		seen[c.Code] = true
	}
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	used := map[string]bool{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if file == "codes.go" || strings.HasSuffix(file, "_test.go") {
			continue
		}
		for _, code := range regexp.MustCompile(`"(IMDS[0-9]{3})"`).FindAllStringSubmatch(string(text), -1) {
			used[code[1]] = true
			if !seen[code[1]] {
				t.Errorf("%s uses %s, which is not in the table", file, code[1])
			}
		}
	}
	for code := range seen {
		if !used[code] && !strings.HasPrefix(code, "IMDS2") {
			t.Errorf("no finding has the code %s", code)
		}
	}
}
