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

const (
	proxyImage  = "localhost/imds-oidc-proxy:" + version
	initImage   = "localhost/imds-oidc-proxy-init:" + version
	nativeImage = "localhost/imds-oidc-proxy-init-native:" + version
	hookImage   = "localhost/imds-oidc-proxy-webhook:" + version
	cniImage    = "localhost/imds-oidc-proxy-cni:" + version
)

// build builds the images with `make images`, once for all tests.
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
	for _, c := range []struct{ image, title, user, entrypoint string }{
		{proxyImage, "imds-oidc-proxy", "1501:1501", "/proxy"},
		{initImage, "imds-oidc-proxy-init", "0:0", "/proxy-init"},
		{nativeImage, "imds-oidc-proxy-init-native", "0:0", "/proxy-init"},
		{hookImage, "imds-oidc-proxy-webhook", "65532:65532", "/webhook"},
		{cniImage, "imds-oidc-proxy-cni", "0:0", "/imds-cni"},
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

// TestReproducible checks that a second build creates the same image, and that its program is the same
// as one that is built in another directory.
func TestReproducible(t *testing.T) {
	build(t)
	ids := func() string {
		return command(t, nil, "buildah", "images", "--no-trunc", "--format", "{{.ID}}", proxyImage) +
			command(t, nil, "buildah", "images", "--no-trunc", "--format", "{{.ID}}", initImage) +
			command(t, nil, "buildah", "images", "--no-trunc", "--format", "{{.ID}}", nativeImage) +
			command(t, nil, "buildah", "images", "--no-trunc", "--format", "{{.ID}}", hookImage) +
			command(t, nil, "buildah", "images", "--no-trunc", "--format", "{{.ID}}", cniImage)
	}
	first := ids()
	if err := makeImages(); err != nil {
		t.Fatal(err)
	}
	if second := ids(); second != first {
		t.Errorf("second build:\n%s\nfirst build:\n%s", second, first)
	}
	revision := command(t, nil, "git", "rev-parse", "HEAD")
	for image, binary := range map[string]string{proxyImage: "proxy", initImage: "proxy-init", nativeImage: "proxy-init", hookImage: "webhook", cniImage: "imds-cni"} {
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
	testHasOnly(t, proxyImage, "/proxy")
	testHasOnly(t, hookImage, "/webhook")
	testHasOnly(t, cniImage, "/imds-cni")
	testHasOnly(t, nativeImage, "/proxy-init")
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
