package repo

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// TestArchitecture: the tables of docs/architecture.md list every package of the import map,
// and files that exist. A cached token passes through at most 11 files.
func TestArchitecture(t *testing.T) {
	page := read(t, "docs/architecture.md")
	packages := firstColumn(section(t, page, "## Packages"), `(?:cmd|internal)/[a-z-]+`)
	slices.Sort(packages)
	if want := slices.Sorted(maps.Keys(allowed)); !slices.Equal(packages, want) {
		t.Errorf("the packages of docs/architecture.md are %q, want those of the import map: %q", packages, want)
	}

	passed := firstColumn(section(t, page, "## The files that a token request passes through"), `internal/\S+\.go`)
	if len(passed) == 0 || len(passed) > 11 {
		t.Errorf("a token request passes through %d files, want 1 to 11", len(passed))
	}
	for _, file := range passed {
		if _, err := os.Stat(filepath.Join(repository, file)); err != nil {
			t.Errorf("docs/architecture.md: %v", err)
		}
	}
}

// section returns the text from a heading to the next one of the same level or above.
func section(t *testing.T, page, heading string) string {
	t.Helper()
	_, text, found := strings.Cut(page, "\n"+heading+"\n")
	if !found {
		t.Fatalf("no heading %q", heading)
	}
	level := strings.Count(strings.Fields(heading)[0], "#")
	end := regexp.MustCompile(`(?m)^#{1,` + strconv.Itoa(level) + `} `).FindStringIndex(text)
	if end != nil {
		text = text[:end[0]]
	}
	return text
}

// firstColumn returns the cells of the first columns of tables that match a pattern.
func firstColumn(text, pattern string) []string {
	var cells []string
	for _, row := range regexp.MustCompile(`(?m)^\| `+"`?("+pattern+")`?"+` \|`).FindAllStringSubmatch(text, -1) {
		cells = append(cells, row[1])
	}
	return cells
}
