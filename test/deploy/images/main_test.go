//go:build images

package images

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"imds-oidc-proxy/test/kit/bases"
	"imds-oidc-proxy/test/kit/netns"
)

const repository = "../../.."

// storageVar is the environment variable with the directory of the container storage and of the root
// file systems of the base images. The process outside of the namespace sets it.
const storageVar = "IMAGES_TEST_DIR"

func TestMain(m *testing.M) { os.Exit(netns.RunTests("images", m, prepare)) }

// prepare does the work that needs the network.
func prepare(dir string) (env []string, err error) {
	if env, err = (bases.Config{Dir: dir, Repository: repository}).Fetch(); err != nil {
		return nil, err
	}
	release := exec.Command("go", "-C", repository+"/tools/release", "run", ".", "--snapshot", "--toolchain=local", "--platforms=linux/"+runtime.GOARCH, "--out="+releaseDir(dir))
	release.Stdout, release.Stderr = os.Stdout, os.Stderr
	return append(env, storageVar+"="+dir), release.Run()
}

// releaseDir returns the directory of the release, whose images the tests also run.
func releaseDir(dir string) string { return filepath.Join(dir, "dist") }

// command runs a program and returns its standard output.
func command(t *testing.T, env []string, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), env...)
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, stdout.String(), stderr.String())
	}
	return strings.TrimSpace(stdout.String())
}
