package main

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

const repository = "../.."

// newRepository returns a repository with a commit that is the release v1.2.3, and what changes it.
func newRepository(t *testing.T) (dir string, change func(file, content string), git func(args ...string)) {
	t.Helper()
	dir = t.TempDir()
	change = func(file, content string) {
		t.Helper()
		if err := writeFile(filepath.Join(dir, file), []byte(content)); err != nil {
			t.Fatal(err)
		}
	}
	git = func(args ...string) {
		t.Helper()
		cmd := exec.Command("git", append([]string{"-C", dir, "-c", "user.name=a", "-c", "user.email=a@example.test"}, args...)...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
	}
	change("VERSION", "v1.2.3\n")
	change("go.mod", "module example.test/a\n\ngo 1.26.0\n\ntoolchain go1.26.11\n")
	change(".gitignore", "*.o\n")
	change("CHANGELOG.md", "# Changelog\n\n## [1.2.3] - 2026-11-30\n\n- a\n\n## [1.2.2] - 2026-11-29\n\n- b\n")
	change("tools/vuln/run", "#!/bin/sh\ntrue\n")
	if err := os.Chmod(filepath.Join(dir, "tools/vuln/run"), 0o755); err != nil {
		t.Fatal(err)
	}
	git("init", "-q")
	git("add", "-A")
	git("commit", "-q", "-m", "a")
	git("tag", "v1.2.3")
	return dir, change, git
}

// TestNoRelease checks that each state that is no release is refused with one line that names
// what to change, and that a snapshot only reports it.
func TestNoRelease(t *testing.T) {
	for what, tt := range map[string]struct {
		spoil func(change func(file, content string), git func(args ...string))
		want  string
	}{
		"release":         {func(func(string, string), func(...string)) {}, ""},
		"untracked file":  {func(change func(string, string), _ func(...string)) { change("a", "") }, `the tree has uncommitted changes, such as "?? a": commit or remove them`},
		"ignored file":    {func(change func(string, string), _ func(...string)) { change("cmd/a/a.o", "") }, `git ignores files of the programs or the chart, such as "cmd/a/a.o": remove them`},
		"no tag":          {func(_ func(string, string), git func(...string)) { git("tag", "-d", "v1.2.3") }, "the commit has no tag: git tag v1.2.3"},
		"another tag":     {func(_ func(string, string), git func(...string)) { git("tag", "-d", "v1.2.3"); git("tag", "v1.2.4") }, "the commit has the tag v1.2.4, and VERSION is v1.2.3"},
		"no heading":      {spoilFile("CHANGELOG.md", "# Changelog\n"), `CHANGELOG.md has no heading "## [1.2.3]"`},
		"no entry":        {spoilFile("CHANGELOG.md", "# Changelog\n\n## [1.2.3] - 2026-11-30\n\n## [1.2.2] - 2026-11-29\n\n- b\n"), `CHANGELOG.md has nothing below the heading "## [1.2.3]"`},
		"vulnerabilities": {spoilFile("tools/vuln/run", "#!/bin/sh\necho GO-2026-0001 is called >&2\nexit 3\n"), "make vuln fails: GO-2026-0001 is called"},
	} {
		t.Run(what, func(t *testing.T) {
			dir, change, git := newRepository(t)
			tt.spoil(change, git)
			r, err := open(t.Context(), dir)
			if err != nil {
				t.Fatal(err)
			}
			err = r.check(t.Context(), false, io.Discard)
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.HasPrefix(err.Error(), tt.want) || strings.Contains(err.Error(), "\n")) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			var out strings.Builder
			if err := r.check(t.Context(), true, &out); err != nil || !strings.Contains(out.String(), tt.want) {
				t.Errorf("snapshot: %v, %q, want %q", err, out.String(), tt.want)
			}
			if changed := strings.HasSuffix(what, " file"); strings.HasSuffix(r.commit, "-dirty") != changed {
				t.Errorf("the commit is %s, want -dirty: %t", r.commit, changed)
			}
		})
	}
}

// spoilFile commits other content of a file, with the tag.
func spoilFile(file, content string) func(func(string, string), func(...string)) {
	return func(change func(string, string), git func(...string)) {
		change(file, content)
		git("commit", "-q", "-a", "-m", "b")
		git("tag", "-f", "v1.2.3")
	}
}

func TestInvalidVersion(t *testing.T) {
	for file, tt := range map[string]struct{ content, want string }{
		"VERSION": {"1.2.3\n", `VERSION is "1.2.3": must be like v1.2.3 or v1.2.3-rc.1`},
		"go.mod":  {"module example.test/a\n", "go.mod has no toolchain line, which names the Go version of releases"},
	} {
		dir, change, _ := newRepository(t)
		change(file, tt.content)
		if _, err := open(t.Context(), dir); err == nil || err.Error() != tt.want {
			t.Errorf("%s: got %v, want %q", file, err, tt.want)
		}
	}
}

// TestReplaceable checks that a directory with other files is not removed.
func TestReplaceable(t *testing.T) {
	dir := t.TempDir()
	if err := replaceable(dir); err != nil {
		t.Errorf("empty: %v", err)
	}
	mine := filepath.Join(dir, "thesis.txt")
	if err := writeFile(mine, nil); err != nil {
		t.Fatal(err)
	}
	if err := replaceable(dir); err == nil {
		t.Error("a directory with other files was accepted")
	}
	if _, err := os.Stat(mine); err != nil {
		t.Error(err)
	}
	if err := writeFile(filepath.Join(dir, marker), nil); err != nil {
		t.Fatal(err)
	}
	if err := replaceable(dir); err != nil {
		t.Errorf("an earlier release: %v", err)
	}
	if _, err := os.Stat(mine); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file of the earlier release is left: %v", err)
	}
}

// TestTree checks that an archive has sorted entries of root with one time and no directory twice.
func TestTree(t *testing.T) {
	at := time.Unix(1_700_000_000, 0)
	content, err := tree{"b/c/d": {content: []byte("1"), executable: true}, "b/a": {}, "a": {}}.tar(at)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for r := tar.NewReader(bytes.NewReader(content)); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, h.Name)
		if h.Uid != 0 || h.Gid != 0 || !h.ModTime.Equal(at) || (h.Name == "b/c/d") != (h.Typeflag == tar.TypeReg && h.Mode == 0o755) {
			t.Errorf("%+v", h)
		}
	}
	if want := "a b/ b/a b/c/ b/c/d"; strings.Join(got, " ") != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestRootCertificates checks that the authorities of Entra's certificates are in the images.
func TestRootCertificates(t *testing.T) {
	found := map[string]bool{}
	for rest := rootCertificates(); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		found[certificate.Subject.CommonName] = true
	}
	for _, want := range []string{"DigiCert Global Root G2", "DigiCert Global Root G3", "Microsoft RSA Root Certificate Authority 2017", "Microsoft ECC Root Certificate Authority 2017"} {
		if !found[want] {
			t.Errorf("there is no %s", want)
		}
	}
	if len(found) < 100 {
		t.Errorf("%d authorities, want more than 100", len(found))
	}
}

// TestDockerfiles checks that the images are those of the Dockerfiles but for their base.
func TestDockerfiles(t *testing.T) {
	for _, i := range images {
		suffix := strings.TrimPrefix(strings.TrimPrefix(i.program, "proxy-"), "imds-")
		text, err := os.ReadFile(filepath.Join(repository, "Dockerfile."+suffix))
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{`title="` + i.name + `"`, `description="` + i.description + `"`, "\nUSER " + i.user + "\n", `ENTRYPOINT ["/` + i.program + `"]`} {
			if !bytes.Contains(text, []byte(want)) {
				t.Errorf("Dockerfile.%s does not have %q", suffix, want)
			}
		}
	}
}

// TestUnknownLicense checks that a module without a known license ends the release.
func TestUnknownLicense(t *testing.T) {
	const mit = "Permission is hereby granted, free\nof charge, to any person obtaining a copy"
	for what, tt := range map[string]struct {
		files map[string]string
		want  string
	}{
		"unknown":                 {map[string]string{"LICENSE": "You may not use this.", "NOTICE": "a"}, "example.test/a v1.0.0: LICENSE is not one of the licenses that tools/release/licenses.go allows"},
		"only of copied code":     {map[string]string{"b/c/LICENSE": mit}, "example.test/a v1.0.0 has no license file"},
		"unknown, of copied code": {map[string]string{"LICENSE": mit, "b/LICENSE": "You may not use this.", "b/c/c.go": ""}, "example.test/a v1.0.0: b/LICENSE is not one of the licenses that tools/release/licenses.go allows"},
		"not linked":              {map[string]string{"LICENSE": mit, "b/c/license.go": "package c", "d/LICENSE": "You may not use this."}, ""},
		"none":                    {map[string]string{"README": "MIT"}, "example.test/a v1.0.0 has no license file"},
		"known":                   {map[string]string{"LICENSE.txt": mit, "NOTICE": "a", "b/c/c.go": ""}, ""},
	} {
		dir := t.TempDir()
		if err := os.MkdirAll(filepath.Join(dir, "b/c"), 0o755); err != nil {
			t.Fatal(err)
		}
		for file, content := range tt.files {
			if err := writeFile(filepath.Join(dir, file), []byte(content)); err != nil {
				t.Fatal(err)
			}
		}
		var out bytes.Buffer
		err := (&module{path: "example.test/a", version: "v1.0.0", dir: dir, packages: []string{filepath.Join(dir, "b/c")}}).writeLicense(&out)
		if tt.want == "" && (err != nil || !strings.Contains(out.String(), "example.test/a v1.0.0: MIT\n")) || tt.want != "" && (err == nil || err.Error() != tt.want) {
			t.Errorf("%s: got %v, %q, want %q", what, err, out.String(), tt.want)
		}
	}
}

// TestLicenses checks the licenses of the proxy's real modules: all are allowed, Go's own is there,
// and so is the address of the source that the MPL asks for.
func TestLicenses(t *testing.T) {
	r, err := open(t.Context(), repository)
	if err != nil {
		t.Fatal(err)
	}
	r.builtBy = "local"
	if err := r.setEnvironment(t.Context()); err != nil {
		t.Fatal(err)
	}
	all, err := r.programs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range all {
		text, err := r.licensesOf(t.Context(), p)
		if err != nil {
			t.Errorf("%s: %v", p.name, err)
		}
		for _, want := range []string{"\nGo's standard library go1.", "\nPATENTS:\n"} {
			if !bytes.Contains(text, []byte(want)) {
				t.Errorf("%s: there is no %q", p.name, want)
			}
		}
		for _, want := range map[string][]string{
			"proxy":   {`\ngithub.com/hashicorp/golang-lru/v2 v\S+: BSD, MPL-2.0\nIts unchanged source: go mod download github.com/hashicorp/golang-lru/v2@v`, `\nsimplelru/LICENSE_list:\n`},
			"webhook": {`\nthird_party/forked/golang/btree/LICENSE:\n`, `\npkg/validation/spec/LICENSE:\n`},
		}[p.name] {
			if !regexp.MustCompile(want).Match(text) {
				t.Errorf("%s: there is no %s", p.name, want)
			}
		}
	}
}

// newRelease returns a release whose programs are text files, to its images and chart. Its version
// is v1.2.3 unless there is another one.
func newRelease(t *testing.T, version ...string) *release {
	t.Helper()
	root, err := filepath.Abs(repository)
	if err != nil {
		t.Fatal(err)
	}
	r := &release{root: root, out: filepath.Join(t.TempDir(), "dist"), version: append(version, "v1.2.3")[0], commit: strings.Repeat("a", 40), home: exampleHome, time: time.Unix(1_700_000_000, 0).UTC()}
	if err := r.fetchDebian(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, i := range images {
		for _, on := range nodes {
			if err := writeFile(r.binary(i.program, on), []byte(i.program+on.arch)); err != nil {
				t.Fatal(err)
			}
		}
		if err := writeFile(r.licenses(i.program), []byte("licenses")); err != nil {
			t.Fatal(err)
		}
	}
	for _, step := range []func(context.Context) error{r.writeImages, r.writeChart, r.writeSums} {
		if err := step(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

// TestPush checks that a registry has what was built, under the names that the chart asks for.
func TestPush(t *testing.T) {
	r := newRelease(t)
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	to := strings.TrimPrefix(server.URL, "http://") + "/team"
	var out strings.Builder
	if err := pushAll(t.Context(), r.out, to, false, &out); err != nil {
		t.Fatal(err)
	}
	values, err := os.ReadFile(filepath.Join(r.out, "values.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range images {
		ref, err := name.ParseReference(to + "/" + i.name + ":v1.2.3")
		if err != nil {
			t.Fatal(err)
		}
		pushed, err := remote.Index(ref)
		if err != nil {
			t.Fatal(err)
		}
		digest, err := pushed.Digest()
		if err != nil || !bytes.Contains(values, []byte(digest.String())) || !strings.Contains(out.String(), digest.String()) {
			t.Errorf("%s: the registry has %s, %v, and values.yaml and the output are\n%s\n%s", i.name, digest, err, values, out.String())
		}
		manifest, err := pushed.IndexManifest()
		if err != nil || len(manifest.Manifests) != len(nodes) {
			t.Errorf("%s: %v, %v, want an image for each of %v", i.name, manifest, err, nodes)
		}
	}
	chart, err := name.ParseReference(to + "/charts/imds-oidc-proxy:1.2.3")
	if err != nil {
		t.Fatal(err)
	}
	image, err := remote.Image(chart)
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := image.Manifest()
	if err != nil || manifest.Config.MediaType != chartConfigType || manifest.Layers[0].MediaType != chartLayerType {
		t.Errorf("chart: %+v, %v", manifest, err)
	}
}

// TestPushKeepsTags checks that a push replaces a tag with another digest only by force, and pushes
// nothing before it has looked at all tags.
func TestPushKeepsTags(t *testing.T) {
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	to := strings.TrimPrefix(server.URL, "http://") + "/team"
	first, second := newRelease(t), newRelease(t)
	second.commit = strings.Repeat("b", 40) // in the labels of the images
	if err := os.RemoveAll(filepath.Join(second.out, "oci")); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(second.writeImages(t.Context()), second.writeChart(t.Context())); err != nil {
		t.Fatal(err)
	}
	chart, err := name.ParseReference(to + "/charts/imds-oidc-proxy:1.2.3")
	if err != nil {
		t.Fatal(err)
	}
	digest := func() string {
		t.Helper()
		found, err := remote.Head(chart)
		if err != nil {
			t.Fatal(err)
		}
		return found.Digest.String()
	}
	for range 2 { // again: the same digests
		if err := pushAll(t.Context(), first.out, to, false, io.Discard); err != nil {
			t.Fatal(err)
		}
	}
	before := digest()
	err = pushAll(t.Context(), second.out, to, false, io.Discard)
	if err == nil || !regexp.MustCompile(`^pushing to \S+: \S+:1.2.3 is sha256:\w+ there, and a push would replace it by sha256:\w+: to do so, make push FORCE=1$`).MatchString(err.Error()) {
		t.Errorf("other digests: got %v", err)
	}
	// The chart is the first of the layouts. Without it, an image of the registry is in the way.
	if err := os.Rename(filepath.Join(second.out, "oci", "chart"), filepath.Join(second.out, "oci", "z-chart")); err != nil {
		t.Fatal(err)
	}
	if err := pushAll(t.Context(), second.out, to, false, io.Discard); err == nil || digest() != before {
		t.Errorf("got %v, and the chart is %s, want it to stay %s", err, digest(), before)
	}
	if err := pushAll(t.Context(), second.out, to, true, io.Discard); err != nil || digest() == before {
		t.Errorf("by force: got %v, and the chart is still %s", err, before)
	}
}

// TestHelm checks that Helm reads the chart from a registry, and that every image in what it renders
// is there.
func TestHelm(t *testing.T) {
	version, err := os.ReadFile(filepath.Join(repository, "VERSION"))
	if err != nil {
		t.Fatal(err)
	}
	r := newRelease(t, strings.TrimSpace(string(version)))
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	to := strings.TrimPrefix(server.URL, "http://") + "/team"
	if err := pushAll(t.Context(), r.out, to, false, io.Discard); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("go", "tool", "helm", "template", "a", "oci://"+to+"/charts/"+chartName, "--version="+strings.TrimPrefix(r.version, "v"), "--plain-http",
		"--kube-version=v1.36.3", "--set=images.registry="+to, "--set=cni.enabled=true", "--set=cni.exemptUIDs=none")
	cmd.Dir = filepath.Join(repository, "tools/helm")
	cmd.Env = append(os.Environ(), "GOTOOLCHAIN=local", "HELM_CACHE_HOME="+t.TempDir(), "HELM_CONFIG_HOME="+t.TempDir())
	rendered, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, err.(*exec.ExitError).Stderr)
	}
	found := map[string]bool{}
	for _, image := range regexp.MustCompile(regexp.QuoteMeta(to)+`/[a-z-]+@sha256:[0-9a-f]{64}`).FindAllString(string(rendered), -1) {
		found[image] = true
		ref, err := name.ParseReference(image)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := remote.Index(ref); err != nil {
			t.Error(err)
		}
	}
	if len(found) != 4 {
		t.Errorf("the chart names %v, want the webhook, the proxy, proxy-init and the CNI plugin, by digest, in\n%s", found, rendered)
	}
}

// TestPushErrors checks that each failure is one line.
func TestPushErrors(t *testing.T) {
	r := newRelease(t)
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	server.Close()
	for out, tt := range map[string]struct{ registry, want string }{
		r.out:       {strings.TrimPrefix(server.URL, "http://"), `^pushing to .*connection refused$`},
		t.TempDir(): {"registry.example.test", `has no complete release: make release$`},
	} {
		err := pushAll(t.Context(), out, tt.registry, false, io.Discard)
		if err == nil || !regexp.MustCompile(tt.want).MatchString(err.Error()) {
			t.Errorf("got %v, want %q", err, tt.want)
		}
	}
}

// TestReproducible checks that the same release is written twice with the same checksums, and
// that each layout has one entry.
func TestReproducible(t *testing.T) {
	a, b := newRelease(t), newRelease(t)
	first, err := os.ReadFile(filepath.Join(a.out, sumsFile))
	if err != nil {
		t.Fatal(err)
	}
	second, err := os.ReadFile(filepath.Join(b.out, sumsFile))
	if err != nil || !bytes.Equal(first, second) {
		t.Errorf("%v\n%s\n%s", err, first, second)
	}
	for _, file := range []string{"imds-oidc-proxy_v1.2.3.oci.tar", "imds-oidc-proxy-1.2.3.tgz", provenanceFile, "values.yaml"} {
		if !bytes.Contains(first, []byte("  "+file+"\n")) {
			t.Errorf("%s has no checksum of %s:\n%s", sumsFile, file, first)
		}
	}
	for _, dir := range []string{"imds-oidc-proxy", "chart"} {
		index, err := layout.ImageIndexFromPath(filepath.Join(a.out, "oci", dir))
		if err != nil {
			t.Fatal(err)
		}
		if manifest, err := index.IndexManifest(); err != nil || len(manifest.Manifests) != 1 {
			t.Errorf("%s: %v, %v, want one entry", dir, manifest, err)
		}
	}
}

func TestArguments(t *testing.T) {
	dir, _, _ := newRepository(t)
	for args, tt := range map[string]struct {
		want string
		code int
	}{
		"--nonsense":                           {"flag provided but not defined: -nonsense", 2},
		"now":                                  {`release: unexpected argument "now"`, 2},
		"--platforms=linux/amd64":              {"release: --platforms and --toolchain are only for --snapshot: ", 1},
		"--toolchain=local":                    {"release: --platforms and --toolchain are only for --snapshot: ", 1},
		"--snapshot --platforms=linux":         {`release: --platforms: "linux": must be one of [linux/amd64 `, 1},
		"--snapshot --platforms=darwin/arm64":  {"release: --platforms: must have one of [linux/amd64 linux/arm64], for the images", 1},
		"--push=registry.example.test/":        {`release: --push: "registry.example.test/": must be a registry and a path`, 1},
		"--snapshot --registry=https://a.test": {`release: --registry: "https://a.test": must be a registry and a path, such as registry.example.test/team`, 1},
	} {
		var stderr strings.Builder
		if code := run(t.Context(), append(strings.Fields(args), "--repository="+dir), io.Discard, &stderr); code != tt.code || !strings.HasPrefix(stderr.String(), tt.want) {
			t.Errorf("%s: exit code %d, %q, want %d, %q", args, code, stderr.String(), tt.code, tt.want)
		}
	}
}

// TestPlatforms checks that a snapshot of some platforms has only these, and a release has all.
func TestPlatforms(t *testing.T) {
	r := &release{root: repository}
	for list, want := range map[string]string{
		"":                         "imds-cni [linux/amd64 linux/arm64]; imds-migrate [linux/amd64 linux/arm64 darwin/amd64 darwin/arm64 windows/amd64 windows/arm64]; ",
		"linux/amd64,darwin/arm64": "imds-cni [linux/amd64]; imds-migrate [linux/amd64 darwin/arm64]; ",
	} {
		var err error
		if r.platforms, err = parsePlatforms(list); err != nil {
			t.Fatal(err)
		}
		all, err := r.programs(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var got strings.Builder
		for _, p := range all {
			fmt.Fprintf(&got, "%s %v; ", p.name, p.platforms)
		}
		if !strings.HasPrefix(got.String(), want) || len(all) != 5 {
			t.Errorf("%q: got %s, want %s and three more", list, &got, want)
		}
	}
}

// TestIgnoredFiles checks that files that git ignores are neither programs nor parts of the chart, and
// that files that git would add are.
func TestIgnoredFiles(t *testing.T) {
	dir, change, _ := newRepository(t)
	r := &release{root: dir}
	change("cmd/a/main.go", "")
	change("cmd/.DS_Store", "")
	change("cmd/b/b.o", "")
	all, err := r.programs(t.Context())
	if err != nil || len(all) != 1 || all[0].name != "a" {
		t.Errorf("got the programs %v, %v, want a", all, err)
	}
	change("charts/a/values.yaml", "")
	change("charts/a/a.o", "")
	if files, err := r.files(t.Context(), "charts/a"); err != nil || strings.Join(files, " ") != "charts/a/values.yaml" {
		t.Errorf("got the files %v, %v, want values.yaml", files, err)
	}
}

// TestWithoutGenerator checks that the generator's hashes are removed and nothing else.
func TestWithoutGenerator(t *testing.T) {
	file := filepath.Join(t.TempDir(), "a.json")
	for content, want := range map[string]string{
		`{"metadata":{"tools":[{"name":"a","hashes":[{"alg":"MD5"}]}],"component":{"hashes":[1]}},"version":1}`: `{"metadata":{"component":{"hashes":[1]},"tools":[{"name":"a"}]},"version":1}`,
		`{"metadata":{"tools":{"components":[{"hashes":[1]}]}}}`:                                                "",
	} {
		if err := writeFile(file, []byte(content)); err != nil {
			t.Fatal(err)
		}
		if err := withoutGenerator(file); (err == nil) != (want != "") {
			t.Errorf("%s: got %v", content, err)
		}
		got, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if want != "" && strings.Join(strings.Fields(string(got)), "") != want {
			t.Errorf("%s: got %s, want %s", content, got, want)
		}
	}
}

// TestNotes checks that the notes have the entries of the version and no others.
func TestNotes(t *testing.T) {
	dir, _, _ := newRepository(t)
	r := &release{root: dir, version: "v1.2.3"}
	if notes, err := r.notes(); err != nil || string(notes) != "- a\n" {
		t.Errorf("got %q, %v", notes, err)
	}
}

// TestHome checks that clones of one repository by HTTPS and by SSH give the same release.
func TestHome(t *testing.T) {
	dir, _, git := newRepository(t)
	r := &release{root: dir}
	if got := r.findHome(t.Context()); got != exampleHome {
		t.Errorf("without origin: %s", got)
	}
	git("remote", "add", "origin", "a")
	for origin, want := range map[string]string{
		"https://github.com/a/b.git": "https://github.com/a/b", "git@github.com:a/b.git": "https://github.com/a/b", "https://github.com/a/b": "https://github.com/a/b",
		"https://user:secret@github.com/a/b": exampleHome, "/srv/a": exampleHome,
	} {
		git("remote", "set-url", "origin", origin)
		if got := r.findHome(t.Context()); got != want {
			t.Errorf("%s: %s, want %s", origin, got, want)
		}
	}
}

// TestChartMetadata checks what a release adds to Chart.yaml.
func TestChartMetadata(t *testing.T) {
	r := newRelease(t)
	r.registry, r.home = "registry.example.test/team", "https://git.example.test/a"
	got, err := r.chartMetadata([]byte("name: a\nannotations: {artifacthub.io/license: Apache-2.0}\n"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"home: https://git.example.test/a\n", "artifacthub.io/prerelease: \"false\"", "artifacthub.io/license: Apache-2.0",
		"image: registry.example.test/team/imds-oidc-proxy@sha256:", "- linux/arm64\n"} {
		if !bytes.Contains(got, []byte(want)) {
			t.Errorf("there is no %q in\n%s", want, got)
		}
	}
}

// TestChartRegistry checks that the chart of a release with a registry names it, and that of
// another does not.
func TestChartRegistry(t *testing.T) {
	r := newRelease(t)
	text, err := os.ReadFile(filepath.Join(repository, "charts", chartName, "values.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for registry, want := range map[string]string{"": "\n  registry: \"\"\n", "registry.example.test/team": "\n  registry: registry.example.test/team\n"} {
		r.registry = registry
		if values, err := r.withDigests(text); err != nil || !bytes.Contains(values, []byte(want)) || bytes.Contains(values, []byte("digest: \"\"")) {
			t.Errorf("%v, want %q and digests in\n%s", err, want, values)
		}
	}
}
