//go:build images

package images

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// version is what the images are to say of themselves.
const version = "v0.0.0-test"

const (
	proxyImage = "localhost/imds-oidc-proxy:" + version
	initImage  = "localhost/imds-oidc-proxy-init:" + version
)

// base makes an image of a directory alone.
func base(t *testing.T, name, root string, env ...string) {
	t.Helper()
	container := command(t, nil, "buildah", "from", "scratch")
	defer command(t, nil, "buildah", "rm", container)
	command(t, nil, "buildah", "copy", "--quiet", container, root, "/")
	for _, e := range env {
		command(t, nil, "buildah", "config", "--env", e, container)
	}
	command(t, nil, "buildah", "commit", "--quiet", container, name)
}

var buildOnce sync.Once

// build has both images built by `make images`, once for all tests.
func build(t *testing.T) {
	t.Helper()
	buildOnce.Do(func() {
		makeBases(t)
		makeImages(t)
	})
	if t.Failed() {
		t.FailNow()
	}
}

// makeBases lays out stand-ins for the three bases of the Dockerfiles.
func makeBases(t *testing.T) {
	t.Helper()
	dir := os.Getenv(storageVar)
	// What the update-alternatives of an installation would do.
	for _, suffix := range []string{"", "-save", "-restore"} {
		link := filepath.Join(dir, "iptables-root/usr/sbin/iptables"+suffix)
		if err := os.Symlink("iptables-nft"+suffix, link); err != nil {
			t.Fatal(err)
		}
	}
	base(t, "localhost/iptablesbase", filepath.Join(dir, "iptables-root"), "PATH=/usr/sbin:/usr/bin:/sbin:/bin")

	goRoot := filepath.Join(dir, "go-root")
	if err := os.Symlink("dash", filepath.Join(goRoot, "bin/sh")); err != nil && !os.IsExist(err) {
		t.Fatal(err)
	}
	for _, empty := range []string{"tmp", "usr/local/go", "root/go/pkg/mod", "root/.cache/go-build"} {
		if err := os.MkdirAll(filepath.Join(goRoot, empty), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	base(t, "localhost/gobase", goRoot, "PATH=/usr/local/go/bin:/usr/bin:/bin", "HOME=/root",
		"GOPROXY=off", "GOFLAGS=-mod=mod", "GONOSUMDB=*", "GOTOOLCHAIN=local")

	static := filepath.Join(dir, "static-root")
	if err := os.MkdirAll(filepath.Join(static, "etc/ssl/certs"), 0o755); err != nil {
		t.Fatal(err)
	}
	base(t, "localhost/staticbase", static)
}

// makeImages runs `make images` on the stand-ins. The toolchain and its caches are
// the machine's: no registry and no module proxy can be reached from here.
func makeImages(t *testing.T) {
	t.Helper()
	flags := []string{"--quiet", "--pull=never", "--network=host", "--no-cache", "--build-arg=BUILD_IMAGE=localhost/gobase"}
	for name, inside := range map[string]string{"GOROOT": "/usr/local/go", "GOMODCACHE": "/root/go/pkg/mod", "GOCACHE": "/root/.cache/go-build"} {
		flags = append(flags, "--volume="+command(t, nil, "go", "env", name)+":"+inside)
	}
	for name, image := range map[string]string{"proxy": "staticbase", "init": "iptablesbase"} {
		command(t, []string{"IMAGE_BUILDER=buildah", "IMAGE_FLAGS=" + strings.Join(flags, " ") + " --build-arg=BASE_IMAGE=localhost/" + image},
			"make", "-C", "../..", "images", "IMAGES="+name, "VERSION="+version)
	}
}

type imageConfig struct {
	OCIv1 struct {
		Config struct {
			User       string
			Entrypoint []string
			Env        []string
			Labels     map[string]string
		} `json:"config"`
		Created string `json:"created"`
	}
}

func inspect(t *testing.T, image string) imageConfig {
	t.Helper()
	var c imageConfig
	if err := json.Unmarshal([]byte(command(t, nil, "buildah", "inspect", "--type=image", image)), &c); err != nil {
		t.Fatal(err)
	}
	return c
}

// TestImageConfig: what a registry, a scanner and the kubelet read.
func TestImageConfig(t *testing.T) {
	build(t)
	revision := command(t, nil, "git", "rev-parse", "HEAD")
	for _, c := range []struct{ image, title, user, entrypoint string }{
		{proxyImage, "imds-oidc-proxy", "1501:1501", "/proxy"},
		{initImage, "imds-oidc-proxy-init", "0:0", "/proxy-init"},
	} {
		got := inspect(t, c.image).OCIv1.Config
		if got.User != c.user {
			t.Errorf("%s: user %q, want %q", c.image, got.User, c.user)
		}
		if len(got.Entrypoint) != 1 || got.Entrypoint[0] != c.entrypoint {
			t.Errorf("%s: entry point %q, want %q", c.image, got.Entrypoint, c.entrypoint)
		}
		for label, want := range map[string]string{"title": c.title, "version": version, "revision": revision} {
			if got := got.Labels["org.opencontainers.image."+label]; got != want {
				t.Errorf("%s: label %s is %q, want %q", c.image, label, got, want)
			}
		}
		if got.Labels["org.opencontainers.image.description"] == "" {
			t.Errorf("%s: no description", c.image)
		}
	}
}

// TestReproducible: a second build makes the same image, and the program in it is
// the one that `make build` makes in another directory.
func TestReproducible(t *testing.T) {
	build(t)
	ids := func() string {
		return command(t, nil, "buildah", "images", "--no-trunc", "--format", "{{.ID}}", proxyImage) +
			command(t, nil, "buildah", "images", "--no-trunc", "--format", "{{.ID}}", initImage)
	}
	first := ids()
	makeImages(t)
	if second := ids(); second != first {
		t.Errorf("the second build made\n%s\nthe first\n%s", second, first)
	}
	for image, binary := range map[string]string{proxyImage: "proxy", initImage: "proxy-init"} {
		local := filepath.Join(t.TempDir(), binary)
		command(t, []string{"CGO_ENABLED=0"}, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w -X main.version="+version, "-o", local, "../../cmd/"+binary)
		if got, want := digest(t, filepath.Join(mount(t, image), binary)), digest(t, local); got != want {
			t.Errorf("%s: SHA-256 %s in the image, %s built here", binary, got, want)
		}
	}
}

// mount gives a path to the image's files.
func mount(t *testing.T, image string) string {
	t.Helper()
	container := command(t, nil, "buildah", "from", "--pull=never", image)
	t.Cleanup(func() { _ = exec.Command("buildah", "rm", container).Run() })
	return command(t, nil, "buildah", "mount", container)
}

func digest(t *testing.T, file string) string {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", sha256.Sum256(content))
}

// TestProxyImageHoldsOnlyTheProxy: nothing for an attacker to run.
func TestProxyImageHoldsOnlyTheProxy(t *testing.T) {
	build(t)
	var executables []string
	root := mount(t, proxyImage)
	err := filepath.Walk(root, func(path string, info os.FileInfo, err error) error {
		if err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			executables = append(executables, strings.TrimPrefix(path, root))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(executables) != 1 || executables[0] != "/proxy" {
		t.Errorf("executables %q, want /proxy alone", executables)
	}
}
