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

	"imds-oidc-proxy/test/kit/bases"
)

// version is the version of the images.
const version = "v0.0.0-test"

// set is the images of one build.
type set struct{ version, proxy, init, native, hook, cni string }

func newSet(version string) set {
	name := func(suffix string) string { return "localhost/imds-oidc-proxy" + suffix + ":" + version }
	return set{version, name(""), name("-init"), name("-init-native"), name("-webhook"), name("-cni")}
}

var (
	// fromDockerfiles are the images of make images.
	fromDockerfiles = newSet(version)
	// released are the images of make release.
	released = sync.OnceValue(func() set {
		text, err := os.ReadFile(filepath.Join(repository, "VERSION"))
		if err != nil {
			panic(err)
		}
		return newSet(strings.TrimSpace(string(text)))
	})
)

// build builds the images with `make images`, and loads those of the release, once for all tests.
func build(t *testing.T) {
	t.Helper()
	if err := built(); err != nil {
		t.Fatal(err)
	}
}

var built = sync.OnceValue(func() error {
	if err := baseConfig().Make(); err != nil {
		return err
	}
	archives, err := filepath.Glob(filepath.Join(releaseDir(os.Getenv(storageVar)), "*.oci.tar"))
	if err != nil {
		return err
	}
	for _, archive := range archives {
		if out, err := exec.Command("podman", "load", "--quiet", "--input", archive).CombinedOutput(); err != nil {
			return fmt.Errorf("podman load %s: %w: %s", archive, err, out)
		}
	}
	return makeImages()
})

func baseConfig() bases.Config {
	return bases.Config{Dir: os.Getenv(storageVar), Repository: repository}
}

func makeImages() error {
	return baseConfig().Images(version, map[string]string{"proxy": "staticbase", "init": "iptablesbase", "init-native": "iptablesbase", "webhook": "staticbase", "cni": "scratch"})
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

// TestImageConfig checks the configuration of the images, which registries, scanners and the kubelet
// read.
func TestImageConfig(t *testing.T) {
	build(t)
	revision := command(t, nil, "git", "rev-parse", "HEAD")
	for _, c := range []struct{ image, version, title, user, entrypoint string }{
		{fromDockerfiles.proxy, version, "imds-oidc-proxy", "1501:1501", "/proxy"},
		{fromDockerfiles.init, version, "imds-oidc-proxy-init", "0:0", "/proxy-init"},
		{fromDockerfiles.native, version, "imds-oidc-proxy-init-native", "0:0", "/proxy-init"},
		{fromDockerfiles.hook, version, "imds-oidc-proxy-webhook", "65532:65532", "/webhook"},
		{fromDockerfiles.cni, version, "imds-oidc-proxy-cni", "0:0", "/imds-cni"},
		{released().proxy, released().version, "imds-oidc-proxy", "1501:1501", "/proxy"},
		{released().init, released().version, "imds-oidc-proxy-init", "0:0", "/proxy-init"},
		{released().native, released().version, "imds-oidc-proxy-init-native", "0:0", "/proxy-init"},
		{released().hook, released().version, "imds-oidc-proxy-webhook", "65532:65532", "/webhook"},
		{released().cni, released().version, "imds-oidc-proxy-cni", "0:0", "/imds-cni"},
	} {
		got := inspect(t, c.image).OCIv1.Config
		if got.User != c.user {
			t.Errorf("%s: user %q, want %q", c.image, got.User, c.user)
		}
		if len(got.Entrypoint) != 1 || got.Entrypoint[0] != c.entrypoint {
			t.Errorf("%s: entry point %q, want %q", c.image, got.Entrypoint, c.entrypoint)
		}
		for label, want := range map[string]string{"title": c.title, "version": c.version, "revision": revision} {
			if got := strings.TrimSuffix(got.Labels["org.opencontainers.image."+label], "-dirty"); got != want {
				t.Errorf("%s: label %s is %q, want %q", c.image, label, got, want)
			}
		}
		if got.Labels["org.opencontainers.image.description"] == "" {
			t.Errorf("%s: no description", c.image)
		}
	}
}

// TestReproducible checks that a second build creates the same image, and that its program is the same
// as one that is built in another directory.
func TestReproducible(t *testing.T) {
	build(t)
	ids := func() string {
		return command(t, nil, "buildah", "images", "--no-trunc", "--format", "{{.ID}}", fromDockerfiles.proxy) +
			command(t, nil, "buildah", "images", "--no-trunc", "--format", "{{.ID}}", fromDockerfiles.init) +
			command(t, nil, "buildah", "images", "--no-trunc", "--format", "{{.ID}}", fromDockerfiles.native) +
			command(t, nil, "buildah", "images", "--no-trunc", "--format", "{{.ID}}", fromDockerfiles.hook) +
			command(t, nil, "buildah", "images", "--no-trunc", "--format", "{{.ID}}", fromDockerfiles.cni)
	}
	first := ids()
	if err := makeImages(); err != nil {
		t.Fatal(err)
	}
	if second := ids(); second != first {
		t.Errorf("second build:\n%s\nfirst build:\n%s", second, first)
	}
	revision := command(t, nil, "git", "rev-parse", "HEAD")
	for image, binary := range map[string]string{fromDockerfiles.proxy: "proxy", fromDockerfiles.init: "proxy-init", fromDockerfiles.native: "proxy-init", fromDockerfiles.hook: "webhook", fromDockerfiles.cni: "imds-cni"} {
		local := filepath.Join(t.TempDir(), binary)
		command(t, []string{"CGO_ENABLED=0"}, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w -X 'main.version="+version+" "+revision+"'", "-o", local, "../../../cmd/"+binary)
		if got, want := digest(t, filepath.Join(mount(t, image), binary)), digest(t, local); got != want {
			t.Errorf("%s: SHA-256 %s in the image, want %s", binary, got, want)
		}
	}
}

// mount mounts an image and returns the path.
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

// TestImagesHaveOneProgram checks that an attacker finds no other program in the images. The default
// image of the init container also has iptables, and a shell for update-alternatives.
func TestImagesHaveOneProgram(t *testing.T) {
	build(t)
	for _, images := range []set{fromDockerfiles, released()} {
		testHasOnly(t, images.proxy, "/proxy")
		testHasOnly(t, images.hook, "/webhook")
		testHasOnly(t, images.cni, "/imds-cni")
		testHasOnly(t, images.native, "/proxy-init")
	}
}

func testHasOnly(t *testing.T, image, program string) {
	t.Helper()
	var executables []string
	root := mount(t, image)
	err := filepath.Walk(root, func(path string, info os.FileInfo, err error) error {
		if err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			executables = append(executables, strings.TrimPrefix(path, root))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(executables) != 1 || executables[0] != program {
		t.Errorf("%s: executables %q, want only %s", image, executables, program)
	}
}
