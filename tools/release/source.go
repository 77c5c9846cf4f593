package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// release is the release of one commit.
type release struct {
	root      string // the repository
	out       string // where the release is written
	version   string // of the file VERSION, such as v1.2.3
	commit    string // with -dirty, if the tree has changes
	time      time.Time
	toolchain string // the Go version of releases, such as go1.26.11
	builtBy   string // the GOTOOLCHAIN of a snapshot, or "" for toolchain
	snapshot  bool
	compiler  string     // the Go version that builds the programs
	registry  string     // the chart's default for images.registry, or ""
	home      string     // the address of the repository
	url       string     // below which the archives will be published
	platforms []platform // those of a snapshot, or nil for all
	debs      []deb      // the packages of iptables, or nil in a snapshot that is without them
	// env is the environment of the builds: nothing in it depends on the machine but the paths
	// of Go's caches, which -trimpath keeps out of the programs.
	env []string
}

var (
	versionForm   = regexp.MustCompile(`^v\d+\.\d+\.\d+(?:-[a-z0-9.]+)?$`)
	toolchainLine = regexp.MustCompile(`(?m)^toolchain (go\S+)$`)
)

// open reads what the repository says of the release.
func open(ctx context.Context, repository string) (*release, error) {
	root, err := filepath.Abs(repository)
	if err != nil {
		return nil, err
	}
	r := &release{root: root}
	version, err := os.ReadFile(filepath.Join(root, "VERSION"))
	if err != nil {
		return nil, err
	}
	if r.version = strings.TrimSpace(string(version)); !versionForm.MatchString(r.version) {
		return nil, fmt.Errorf("VERSION is %q: must be like v1.2.3 or v1.2.3-rc.1", r.version)
	}
	module, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil {
		return nil, err
	}
	line := toolchainLine.FindSubmatch(module)
	if line == nil {
		return nil, errors.New("go.mod has no toolchain line, which names the Go version of releases")
	}
	r.toolchain = string(line[1])
	if r.commit, err = r.git(ctx, "describe", "--always", "--exclude=*", "--abbrev=40", "--dirty"); err != nil {
		return nil, err
	}
	seconds, err := r.git(ctx, "log", "-1", "--format=%ct")
	if err != nil {
		return nil, err
	}
	unix, err := strconv.ParseInt(seconds, 10, 64)
	if err != nil {
		return nil, err
	}
	r.time = time.Unix(unix, 0).UTC()
	return r, nil
}

// setEnvironment sets every variable that changes what the compiler writes, since a user may have
// set it: GOAMD64=v3, for example, gives other programs.
func (r *release) setEnvironment(ctx context.Context) error {
	for _, name := range []string{"PATH", "HOME", "TMPDIR", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "SSL_CERT_FILE"} {
		if value, ok := os.LookupEnv(name); ok {
			r.env = append(r.env, name+"="+value)
		}
	}
	for _, name := range []string{"GOPROXY", "GONOSUMDB", "GONOSUMCHECK", "GOSUMDB", "GOPRIVATE", "GOMODCACHE", "GOCACHE", "GOPATH"} {
		value, err := output(ctx, "", os.Environ(), "go", "env", name)
		if err != nil {
			return err
		}
		if value != "" {
			r.env = append(r.env, name+"="+value)
		}
	}
	r.env = append(r.env, "GOENV=off", "GOFLAGS=-trimpath -buildvcs=false -mod=readonly", "GOWORK=off", "GOTOOLCHAIN="+cmp.Or(r.builtBy, r.toolchain),
		"CGO_ENABLED=0", "GOAMD64=v1", "GOARM64=v8.0", "GOEXPERIMENT=", "GOFIPS140=off", "LC_ALL=C", "TZ=UTC")
	var err error
	r.compiler, err = output(ctx, r.root, r.env, "go", "env", "GOVERSION")
	return err
}

// dirty ends the commit of a tree with changes, as git describe writes it.
const dirty = "-dirty"

// check returns the first reason why the state of the repository is no release. With snapshot it
// prints every reason instead.
func (r *release) check(ctx context.Context, snapshot bool, stdout io.Writer) error {
	for i, check := range []func(context.Context) error{r.checkClean, r.checkTag, r.checkChangelog, r.checkVulnerabilities} {
		err := check(ctx)
		if i == 0 && err != nil && !strings.HasSuffix(r.commit, dirty) {
			r.commit += dirty // git describe looks at tracked files only
		}
		if err != nil && !snapshot {
			return err
		}
		if err != nil {
			fmt.Fprintf(stdout, "%s is a snapshot, not a release: %v\n", r.version, err)
		}
	}
	return nil
}

func (r *release) checkClean(ctx context.Context) error {
	changes, err := r.git(ctx, "status", "--porcelain", "--untracked-files=all")
	if err == nil && changes != "" {
		first, _, _ := strings.Cut(changes, "\n")
		err = fmt.Errorf("the tree has uncommitted changes, such as %q: commit or remove them", strings.TrimSpace(first))
	}
	if err != nil {
		return err
	}
	// Go compiles ignored files too.
	ignored, err := r.git(ctx, "ls-files", "--others", "--ignored", "--exclude-standard", "--", "cmd", "internal", "charts")
	if err == nil && ignored != "" {
		first, _, _ := strings.Cut(ignored, "\n")
		err = fmt.Errorf("git ignores files of the programs or the chart, such as %q: remove them", first)
	}
	return err
}

// files returns the paths of the files below a directory, from the repository on, that are in git
// or that git would add: without those that it ignores.
func (r *release) files(ctx context.Context, dir string) ([]string, error) {
	names, err := r.git(ctx, "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", dir)
	return strings.FieldsFunc(names, func(c rune) bool { return c == 0 }), err
}

func (r *release) checkTag(ctx context.Context) error {
	tags, err := r.git(ctx, "tag", "--points-at=HEAD")
	if err != nil {
		return err
	}
	for tag := range strings.FieldsSeq(tags) {
		if tag == r.version {
			return nil
		}
	}
	if tags == "" {
		return fmt.Errorf("the commit has no tag: git tag %s", r.version)
	}
	return fmt.Errorf("the commit has the tag %s, and VERSION is %s: make version V=<TAG>, or tag the commit of that version", strings.Join(strings.Fields(tags), " and "), r.version)
}

func (r *release) checkChangelog(context.Context) error {
	_, err := r.notes()
	return err
}

// notes returns the part of the changelog that is about this version.
func (r *release) notes() ([]byte, error) {
	text, err := os.ReadFile(filepath.Join(r.root, "CHANGELOG.md"))
	if err != nil {
		return nil, err
	}
	heading := "## [" + strings.TrimPrefix(r.version, "v") + "]"
	_, part, found := bytes.Cut(text, []byte("\n"+heading))
	if !found {
		return nil, fmt.Errorf("CHANGELOG.md has no heading %q: move the entries of Unreleased below it", heading)
	}
	_, part, _ = bytes.Cut(part, []byte("\n")) // the date
	part, _, _ = bytes.Cut(part, []byte("\n## "))
	if part = bytes.TrimSpace(part); len(part) == 0 {
		return nil, fmt.Errorf("CHANGELOG.md has nothing below the heading %q: move the entries of Unreleased there", heading)
	}
	return append(part, '\n'), nil
}

// writeNotes writes the text of the release. A snapshot may have none.
func (r *release) writeNotes(context.Context) error {
	notes, err := r.notes()
	if err != nil && r.snapshot {
		return nil
	}
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(r.out, "NOTES.md"), notes)
}

func (r *release) checkVulnerabilities(ctx context.Context) error {
	if r.builtBy != "" {
		return fmt.Errorf("the programs are built by GOTOOLCHAIN=%s and not by %s; their vulnerabilities are not checked", r.builtBy, r.toolchain)
	}
	cmd := exec.CommandContext(ctx, filepath.Join(r.root, "tools/vuln/run"))
	out, err := cmd.CombinedOutput()
	if err == nil {
		return nil
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return fmt.Errorf("make vuln fails: %s", lines[len(lines)-1])
}

// exampleHome stands for the address of a repository that has none.
const exampleHome = "https://git.example.test/imds-oidc-proxy"

// findHome returns the address of the GitHub repository that is git's origin, or exampleHome. It is
// the same for clones by HTTPS and by SSH, since it is in the files of the release.
func (r *release) findHome(ctx context.Context) string {
	origin, err := r.git(ctx, "remote", "get-url", "origin")
	m := githubOrigin.FindStringSubmatch(origin)
	if err != nil || m == nil {
		return exampleHome
	}
	return "https://github.com/" + m[1]
}

var githubOrigin = regexp.MustCompile(`^(?:https://github\.com/|git@github\.com:|ssh://git@github\.com/)([\w.-]+/[\w.-]+?)(?:\.git)?/?$`)

func (r *release) git(ctx context.Context, args ...string) (string, error) {
	return output(ctx, r.root, os.Environ(), "git", args...)
}

// output runs a program in a directory and returns its standard output without the spaces around
// it. The error has the last line of its standard error.
func output(ctx context.Context, dir string, env []string, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var stderr bytes.Buffer
	cmd.Dir, cmd.Env, cmd.Stderr = dir, env, &stderr
	out, err := cmd.Output()
	if err != nil {
		lines := strings.Split(strings.TrimSpace(stderr.String()), "\n")
		err = fmt.Errorf("%s %s: %w: %s", name, args[0], err, lines[len(lines)-1])
	}
	return strings.TrimSpace(string(out)), err
}
