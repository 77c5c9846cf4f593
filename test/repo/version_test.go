package repo

import (
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// versionPlaces are the places that name this project's version, other than the generated files
// of the chart, which have a test of their own. The version is the second group.
var versionPlaces = []*regexp.Regexp{
	regexp.MustCompile(`(/imds-oidc-proxy(?:-[a-z]+)*:)(v\d[\w.-]*)`), // images
	regexp.MustCompile(`(\n *newTag: )(v\d[\w.-]*)`),                  // kustomize's images
	regexp.MustCompile(`(//deploy[\w/-]*\?ref=)(v\d[\w.-]*)`),         // kustomize's remote resources
	regexp.MustCompile(`(\nappVersion: )(v\d[\w.-]*)`),                // Chart.yaml
}

// chartVersion is the chart's version, which has no v.
var chartVersion = regexp.MustCompile(`(\nversion: )(\d[\w.-]*)`)

// notVersions are files whose versions are input of a test.
var notVersions = regexp.MustCompile(`^(?:internal|cmd|test/(?:kit|deploy|repo))/`)

// TestVersion: every place that names this project's version names the one of VERSION.
// `make version V=v1.2.3` writes them.
func TestVersion(t *testing.T) {
	want := strings.TrimSpace(read(t, "VERSION"))
	if !regexp.MustCompile(`^v\d+\.\d+\.\d+(?:-[a-z0-9.]+)?$`).MatchString(want) {
		t.Fatalf("VERSION is %q: must be like v1.2.3 or v1.2.3-rc.1", want)
	}
	places := 0
	check := func(file, text, want string, place *regexp.Regexp) string {
		return place.ReplaceAllStringFunc(text, func(found string) string {
			places++
			m := place.FindStringSubmatch(found)
			if m[2] != want && !*update {
				t.Errorf("%s has %q, and VERSION is %s: make version V=%s", file, strings.TrimSpace(found), want, want)
			}
			return m[1] + want
		})
	}
	for _, file := range files(t, "*.go", "*.md", "*.yaml") {
		if notVersions.MatchString(file) {
			continue
		}
		text := read(t, file)
		now := text
		for _, place := range versionPlaces {
			now = check(file, now, want, place)
		}
		if path.Base(file) == "Chart.yaml" {
			now = check(file, now, strings.TrimPrefix(want, "v"), chartVersion)
		}
		if now != text && *update {
			if err := os.WriteFile(filepath.Join(repository, file), []byte(now), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	if places < 20 {
		t.Errorf("found %d places, want those of deploy/, the chart, the documentation and the tests", places)
	}
}

// TestVersionHeading: CHANGELOG.md has a heading for VERSION. `make version V=v1.2.3` writes it above
// the entries of Unreleased.
func TestVersionHeading(t *testing.T) {
	text := read(t, "CHANGELOG.md")
	heading := "\n## [" + strings.TrimPrefix(strings.TrimSpace(read(t, "VERSION")), "v") + "] - "
	if strings.Contains(text, heading) {
		return
	}
	above, entries, found := strings.Cut(text, "\n## [Unreleased]\n")
	if !*update || !found {
		t.Fatalf("CHANGELOG.md has no heading %q, or none of Unreleased", strings.TrimSpace(heading))
	}
	text = above + "\n## [Unreleased]\n" + heading + time.Now().UTC().Format(time.DateOnly) + "\n" + entries
	if err := os.WriteFile(filepath.Join(repository, "CHANGELOG.md"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestToolchain: the images are built by the Go version that go.mod names for releases, which
// `make vuln` checks.
func TestToolchain(t *testing.T) {
	toolchain := regexp.MustCompile(`(?m)^toolchain go(\S+)$`).FindStringSubmatch(read(t, "go.mod"))
	if toolchain == nil {
		t.Fatal("go.mod has no toolchain line")
	}
	image := regexp.MustCompile(`(?m)^ARG BUILD_IMAGE=golang:([\d.]+)-`)
	for _, file := range files(t, "Dockerfile.*") {
		if got := image.FindStringSubmatch(read(t, file)); got == nil || got[1] != toolchain[1] {
			t.Errorf("%s is built by %v, want golang:%s, as in go.mod", file, got, toolchain[1])
		}
	}
}
