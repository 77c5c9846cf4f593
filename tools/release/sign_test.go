package main

import (
	"io"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"sigs.k8s.io/yaml"
)

// withKey calls cosign with a key, where the workflow has an identity of GitHub, and without the
// public log of signatures.
const withKey = `#!/bin/sh
case $1 in
sign*) exec "$COSIGN" "$@" --key="$KEYS/cosign.key" --tlog-upload=false ;;
verify*) exec "$COSIGN" "$@" --key="${KEY:-$KEYS/cosign.pub}" --insecure-ignore-tlog=true ;;
esac
exec "$COSIGN" "$@"
`

// TestSignatures runs the commands of the workflow that sign, and those of RELEASE.md that verify,
// with a key that is made for this test.
func TestSignatures(t *testing.T) {
	cosign := os.Getenv("COSIGN")
	if cosign == "" {
		t.Skip("COSIGN does not name the program cosign: make test-release builds it")
	}
	bin, keys, dir := t.TempDir(), t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(bin, "cosign"), []byte(withKey), 0o755); err != nil {
		t.Fatal(err)
	}
	// run runs a script as a step of the workflow is run.
	run := func(dir, script string, env ...string) (string, error) {
		cmd := exec.CommandContext(t.Context(), "bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script)
		cmd.Dir = dir
		// The proxy does not exist. It is not used for addresses of this machine: nothing else is to be reached.
		cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"), "HOME="+keys, "KEYS="+keys, "COSIGN_PASSWORD=",
			"HTTPS_PROXY=http://127.0.0.1:1", "HTTP_PROXY=http://127.0.0.1:1", "NO_PROXY=")
		cmd.Env = append(cmd.Env, env...)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	must := func(dir, script string) {
		t.Helper()
		if out, err := run(dir, script); err != nil {
			t.Fatalf("%s: %v\n%s", script, err, out)
		}
	}
	refused := func(what, want, dir, script string, env ...string) {
		t.Helper()
		if out, err := run(dir, script, env...); err == nil || !strings.Contains(out, want) {
			t.Errorf("%s: got %v, want an error with %q\n%s", what, err, want, out)
		}
	}
	must(keys, "cosign generate-key-pair")
	must(bin, "cosign generate-key-pair") // another key

	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	to := strings.TrimPrefix(server.URL, "http://") + "/team"
	release := newRelease(t)
	var pushed strings.Builder
	if err := pushAll(t.Context(), release.out, to, false, &pushed); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "pushed.txt"), []byte(pushed.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	signImages, signBlob := signing(t)
	verifyImage, verifyBlob := verifying(t)
	verify := func(ref string) string { return strings.ReplaceAll(verifyImage, "REFERENCE", ref) }

	refs := regexp.MustCompile(`(?m)^pushed (\S+)@(\S+)$`).FindAllStringSubmatch(pushed.String(), -1)
	if len(refs) != len(images)+1 {
		t.Fatalf("pushed %v, want %d images and the chart", refs, len(images))
	}
	refused("before signing", "no signatures found", dir, verify(refs[0][1]))
	must(dir, signImages)
	for _, ref := range refs {
		must(dir, verify(ref[1]))            // by tag, as RELEASE.md says
		must(dir, verify(ref[1]+"@"+ref[2])) // by digest
	}
	refused("another key", "no matching signatures", dir, verify(refs[0][1]), "KEY="+filepath.Join(bin, "cosign.pub"))

	// The tag now has another digest, at first without a signature, then with a copy of the one before.
	image := refs[len(refs)-1]
	tag, err := name.NewTag(image[1])
	if err != nil {
		t.Fatal(err)
	}
	index, err := remote.Index(tag)
	if err != nil {
		t.Fatal(err)
	}
	other := mutate.Annotations(index, map[string]string{"other": "true"}).(v1.ImageIndex)
	digest, err := other.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.WriteIndex(tag, other); err != nil {
		t.Fatal(err)
	}
	refused("another digest", "no signatures found", dir, verify(image[1]))
	signature := func(digest string) name.Tag { return tag.Tag(strings.Replace(digest, ":", "-", 1) + ".sig") }
	copied, err := remote.Image(signature(image[2]))
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(signature(digest.String()), copied); err != nil {
		t.Fatal(err)
	}
	refused("another digest with a copied signature", "invalid or missing digest in claim", dir, verify(image[1]))
	must(dir, verify(image[1]+"@"+image[2]))

	must(release.out, signBlob)
	must(release.out, verifyBlob)
	sums := filepath.Join(release.out, sumsFile)
	content, err := os.ReadFile(sums)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(sums, append(content, '\n'), 0o644); err != nil {
		t.Fatal(err)
	}
	refused("a changed file", "invalid signature", release.out, verifyBlob)
}

// signing returns the commands of the workflow that sign what was pushed, and SHA256SUMS.
func signing(t *testing.T) (images, sums string) {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(repository, ".github/workflows/release.yml"))
	if err != nil {
		t.Fatal(err)
	}
	var workflow struct {
		Jobs map[string]struct{ Steps []struct{ Run string } }
	}
	if err := yaml.Unmarshal(content, &workflow); err != nil {
		t.Fatal(err)
	}
	for _, step := range workflow.Jobs["release"].Steps {
		for line := range strings.Lines(step.Run) {
			switch {
			case strings.Contains(line, "cosign sign-blob "):
				sums += line
			case strings.Contains(line, "cosign sign "):
				images += line
			}
		}
	}
	if images == "" || sums == "" {
		t.Fatalf("the workflow has no step that signs images or checksums:\n%s", content)
	}
	return images, sums
}

// verifying returns the commands of RELEASE.md that verify an image, with REFERENCE as its name,
// and SHA256SUMS.
func verifying(t *testing.T) (image, sums string) {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(repository, "RELEASE.md"))
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile("(?s)```sh\n(cosign verify .*?\n)(cosign verify-blob .*?\n)```").FindSubmatch(content)
	if found == nil {
		t.Fatal("RELEASE.md has no commands that verify signatures")
	}
	words := strings.NewReplacer("<REGISTRY>/imds-oidc-proxy:<VERSION>", "REFERENCE", "<REPOSITORY>", "example/repository")
	return words.Replace(string(found[1])), words.Replace(string(found[2]))
}
