// Package bases builds the container images with `make images`, on base images that it creates from
// Debian packages. It is for tests on machines that cannot reach a container registry.
//
// Only [Config.Fetch] needs a network. The images are stored in a directory of the test,
// not in the machine's image storage.
package bases

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Config configures the builds.
type Config struct {
	// Dir is an existing directory for root file systems and the storage of images.
	Dir string

	// Repository is the root of this project's source.
	Repository string

	// Authorities are the certificate authorities that the static base trusts, in
	// PEM. It may be nil.
	Authorities []byte
}

// iptablesPackages are the Debian packages that iptables with both backends needs.
var iptablesPackages = []string{"iptables", "libxtables12", "libnftnl11", "libmnl0", "libip4tc2", "libip6tc2",
	"libnetfilter-conntrack3", "libnfnetlink0", "libc6"}

// goPackages are the Debian packages that the build stage needs besides the Go toolchain: a
// shell for RUN, mkdir and touch.
var goPackages = []string{"dash", "coreutils", "libc6", "libacl1", "libattr1", "libselinux1", "libpcre2-8-0", "libgmp10"}

// Fetch downloads the packages and modules. It returns the environment variables that
// [Config.Make], [Config.Images] and buildah need.
func (c Config) Fetch() (env []string, err error) {
	for name, packages := range map[string][]string{"iptables-root": iptablesPackages, "go-root": goPackages} {
		args := append([]string{filepath.Join(c.Dir, name)}, packages...)
		if _, err := run(nil, filepath.Join(c.Repository, "tools/debs"), args...); err != nil {
			return nil, err
		}
	}
	if _, err := run(nil, "go", "-C", c.Repository, "mod", "download"); err != nil {
		return nil, err
	}
	storage := filepath.Join(c.Dir, "storage.conf")
	// The vfs driver is slow with large images, but works on any file system.
	text := fmt.Sprintf("[storage]\ndriver = \"vfs\"\ngraphroot = %q\nrunroot = %q\n",
		filepath.Join(c.Dir, "graph"), filepath.Join(c.Dir, "run"))
	if err := os.WriteFile(storage, []byte(text), 0o644); err != nil {
		return nil, err
	}
	return []string{"CONTAINERS_STORAGE_CONF=" + storage, "BUILDAH_ISOLATION=chroot"}, nil
}

// Make makes the base images that stand in for those of the Dockerfiles: localhost/gobase,
// localhost/staticbase and localhost/iptablesbase.
func (c Config) Make() error {
	// When the package is installed, update-alternatives creates these links.
	iptables := filepath.Join(c.Dir, "iptables-root")
	for _, suffix := range []string{"", "-save", "-restore"} {
		if err := link("iptables-nft"+suffix, filepath.Join(iptables, "usr/sbin/iptables"+suffix)); err != nil {
			return err
		}
	}
	if err := FromDirectory("localhost/iptablesbase", iptables, "--env=PATH=/usr/sbin:/usr/bin:/sbin:/bin"); err != nil {
		return err
	}
	if err := c.makeGoBase(); err != nil {
		return err
	}
	static := filepath.Join(c.Dir, "static-root")
	if err := os.MkdirAll(filepath.Join(static, "etc/ssl/certs"), 0o755); err != nil {
		return err
	}
	if c.Authorities != nil {
		// The first file in which Go looks for certificate authorities on Linux.
		if err := os.WriteFile(filepath.Join(static, "etc/ssl/certs/ca-certificates.crt"), c.Authorities, 0o644); err != nil {
			return err
		}
	}
	return FromDirectory("localhost/staticbase", static)
}

func (c Config) makeGoBase() error {
	root := filepath.Join(c.Dir, "go-root")
	if err := link("dash", filepath.Join(root, "bin/sh")); err != nil {
		return err
	}
	for _, empty := range []string{"tmp", "usr/local/go", "root/go/pkg/mod", "root/.cache/go-build"} {
		if err := os.MkdirAll(filepath.Join(root, empty), 0o755); err != nil {
			return err
		}
	}
	return FromDirectory("localhost/gobase", root, "--env=PATH=/usr/local/go/bin:/usr/bin:/bin", "--env=HOME=/root",
		"--env=GOPROXY=off", "--env=GOFLAGS=-mod=mod", "--env=GONOSUMDB=*", "--env=GOTOOLCHAIN=local")
}

// link makes a symbolic link. It keeps an existing one.
func link(target, path string) error {
	if err := os.Symlink(target, path); err != nil && !os.IsExist(err) {
		return err
	}
	return nil
}

// FromDirectory makes an image with the content of a directory. The settings are flags of
// buildah config, such as --env=NAME=VALUE.
func FromDirectory(name, root string, settings ...string) error {
	container, err := run(nil, "buildah", "from", "scratch")
	if err != nil {
		return err
	}
	defer run(nil, "buildah", "rm", container)
	if _, err := run(nil, "buildah", "copy", "--quiet", container, root, "/"); err != nil {
		return err
	}
	if len(settings) > 0 {
		if _, err := run(nil, "buildah", append(append([]string{"config"}, settings...), container)...); err != nil {
			return err
		}
	}
	_, err = run(nil, "buildah", "commit", "--quiet", container, name)
	return err
}

// scratch is the empty base image, which no registry has.
const scratch = "scratch"

// Images runs `make images` for each image in baseOf, on the base image that baseOf gives.
// It names the images localhost/imds-oidc-proxy… and tags them with the version. The builds
// use the machine's Go toolchain, its module cache and its build cache, because neither a
// registry nor a module proxy can be reached.
func (c Config) Images(version string, baseOf map[string]string) error {
	flags := []string{"--quiet", "--pull=never", "--network=host", "--no-cache", "--build-arg=BUILD_IMAGE=localhost/gobase"}
	for name, inside := range map[string]string{"GOROOT": "/usr/local/go", "GOMODCACHE": "/root/go/pkg/mod", "GOCACHE": "/root/.cache/go-build"} {
		path, err := run(nil, "go", "env", name)
		if err != nil {
			return err
		}
		flags = append(flags, "--volume="+path+":"+inside)
	}
	for name, base := range baseOf {
		image := "localhost/" + base
		if base == scratch {
			image = scratch
		}
		env := []string{"IMAGE_BUILDER=buildah", "IMAGE_FLAGS=" + strings.Join(flags, " ") + " --build-arg=BASE_IMAGE=" + image}
		if _, err := run(env, "make", "-C", c.Repository, "images", "IMAGES="+name, "VERSION="+version); err != nil {
			return err
		}
	}
	return nil
}

// run runs a program and returns its standard output.
func run(env []string, name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), env...)
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s%s", name, strings.Join(args, " "), err, stdout.String(), stderr.String())
	}
	return strings.TrimSpace(stdout.String()), nil
}
