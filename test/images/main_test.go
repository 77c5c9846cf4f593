//go:build images

package images

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"imds-oidc-proxy/test/netns"
)

// storageVar tells the process inside the namespace where the one outside has put
// the containers' storage and the root file systems of the bases.
const storageVar = "IMAGES_TEST_DIR"

// iptablesPackages are what Debian's iptables of both backends needs to run.
var iptablesPackages = []string{"iptables", "libxtables12", "libnftnl11", "libmnl0", "libip4tc2", "libip6tc2",
	"libnetfilter-conntrack3", "libnfnetlink0", "libc6"}

// goPackages carry a Go toolchain: the shell that RUN asks for, mkdir and touch.
var goPackages = []string{"dash", "coreutils", "libc6", "libacl1", "libattr1", "libselinux1", "libpcre2-8-0", "libgmp10"}

func TestMain(m *testing.M) { os.Exit(netns.RunTests("images", m, prepare)) }

// prepare does what needs the world outside.
func prepare(dir string) (env []string, err error) {
	for name, packages := range map[string][]string{"iptables-root": iptablesPackages, "go-root": goPackages} {
		args := append([]string{filepath.Join(dir, name)}, packages...)
		if err := outside("../../tools/debs", args...); err != nil {
			return nil, err
		}
	}
	if err := outside("go", "-C", "../..", "mod", "download"); err != nil {
		return nil, err
	}
	if err := configureStorage(dir); err != nil {
		return nil, err
	}
	return []string{storageVar + "=" + dir, "CONTAINERS_STORAGE_CONF=" + filepath.Join(dir, "storage.conf"), "BUILDAH_ISOLATION=chroot"}, nil
}

func outside(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, out)
	}
	return nil
}

// configureStorage keeps images and containers apart from the machine's own. The
// vfs driver is slow with large images, and works on any file system.
func configureStorage(dir string) error {
	text := fmt.Sprintf("[storage]\ndriver = \"vfs\"\ngraphroot = %q\nrunroot = %q\n",
		filepath.Join(dir, "graph"), filepath.Join(dir, "run"))
	return os.WriteFile(filepath.Join(dir, "storage.conf"), []byte(text), 0o644)
}

// command runs a program to its end and returns what it prints.
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
