package repo

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// files lists the files of the repository that match git's patterns, as paths from its root. It
// omits files whose deletion is not yet committed.
func files(t *testing.T, patterns ...string) []string {
	t.Helper()
	cmd := exec.Command("git", append([]string{"ls-files", "--cached", "--others", "--exclude-standard", "--"}, patterns...)...)
	cmd.Dir = repository
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(strings.Fields(string(out)), func(file string) bool {
		_, err := os.Stat(filepath.Join(repository, file))
		return errors.Is(err, fs.ErrNotExist)
	})
}

// TestLinks: every relative link points to a file of the repository, and its anchor to a heading.
func TestLinks(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#\s]*)(?:#([^)\s]*))?\)`)
	checked := 0
	for _, file := range files(t, "*.md") {
		for _, m := range link.FindAllStringSubmatch(prose(read(t, file)), -1) {
			target, anchor := m[1], m[2]
			if strings.Contains(target, "://") || strings.HasPrefix(target, "mailto:") {
				continue
			}
			checked++
			to := file
			if target != "" {
				to = filepath.Join(filepath.Dir(file), target)
			}
			if _, err := os.Stat(filepath.Join(repository, to)); err != nil {
				t.Errorf("%s links to %s, which does not exist", file, target)
				continue
			}
			if anchor != "" && !slices.Contains(anchors(read(t, to)), anchor) {
				t.Errorf("%s links to #%s of %s, which has no such heading", file, anchor, to)
			}
		}
	}
	if checked < 50 {
		t.Errorf("found %d relative links, want at least 50: the pattern does not match", checked)
	}
}

func read(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(repository, file))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

var (
	fence    = regexp.MustCompile("(?ms)^ *```.*?^ *```")
	codeSpan = regexp.MustCompile("`[^`\n]*`")
)

// prose returns Markdown without code, because brackets in code are not links.
func prose(markdown string) string {
	return codeSpan.ReplaceAllString(fence.ReplaceAllString(markdown, ""), "")
}

// anchors returns the anchors of a page's headings as GitHub makes them: lower case, without
// punctuation, with hyphens for spaces. A repeated heading gets a number.
func anchors(markdown string) []string {
	heading := regexp.MustCompile(`(?m)^#+ +(.*?) *$`)
	label := regexp.MustCompile(`\[([^\]]*)\]\([^)]*\)`)
	dropped := regexp.MustCompile(`[^\p{L}\p{N}\p{M}_ -]`)
	seen := map[string]int{}
	var all []string
	for _, m := range heading.FindAllStringSubmatch(fence.ReplaceAllString(markdown, ""), -1) {
		text := dropped.ReplaceAllString(strings.ToLower(label.ReplaceAllString(m[1], "$1")), "")
		anchor := strings.ReplaceAll(text, " ", "-")
		if n := seen[anchor]; n > 0 {
			all = append(all, fmt.Sprintf("%s-%d", anchor, n))
		} else {
			all = append(all, anchor)
		}
		seen[anchor]++
	}
	return all
}

// TestAnchors: anchors ignores code blocks and numbers repeated headings.
func TestAnchors(t *testing.T) {
	page := "# `proxy check`: 2 ways\n\n```\n# no heading\n```\n## [What's new](x.md)\n## A, b\n## A, b\n"
	want := []string{"proxy-check-2-ways", "whats-new", "a-b", "a-b-1"}
	if got := anchors(page); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestMakeTargets: every `make x` in a document is a target of the Makefile.
func TestMakeTargets(t *testing.T) {
	makefile := read(t, "Makefile")
	command := regexp.MustCompile("(?m)(?:^|`)make ([a-z][a-z-]+)")
	for _, file := range files(t, "*.md") {
		for _, m := range command.FindAllStringSubmatch(read(t, file), -1) {
			if !strings.Contains(makefile, "\n"+m[1]+":") {
				t.Errorf("%s contains make %s, but the Makefile has no such target", file, m[1])
			}
		}
	}
}
