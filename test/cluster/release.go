package cluster

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// Release is a snapshot of a release for this machine's platform, in a directory with the release
// tool and a container registry.
type Release struct{ dir string }

// BuildRelease builds a release into a new directory, in the process outside.
func BuildRelease(dir string) error {
	root, err := repository()
	if err != nil {
		return err
	}
	for out, source := range map[string]string{"release": ".", "registry": "github.com/google/go-containerregistry/cmd/registry"} {
		if err := Build(filepath.Join(dir, out), filepath.Join(root, "tools/release"), source); err != nil {
			return err
		}
	}
	_, err = ReleaseIn(dir).tool("--snapshot", "--toolchain=local", "--platforms=linux/"+runtime.GOARCH, "--repository="+root)
	return err
}

// ReleaseIn returns the release that BuildRelease has built in a directory.
func ReleaseIn(dir string) Release { return Release{dir} }

// File returns the path of a file of the release.
func (r Release) File(name string) string { return filepath.Join(r.dir, "dist", name) }

// Version returns the chart's version.
func (r Release) Version() (string, error) {
	root, err := repository()
	if err != nil {
		return "", err
	}
	version, err := os.ReadFile(filepath.Join(root, "VERSION"))
	return strings.TrimPrefix(strings.TrimSpace(string(version)), "v"), err
}

// Registry returns the command that serves a registry in memory, at a port of 127.0.0.1.
func (r Release) Registry(port string) *exec.Cmd {
	return exec.Command(filepath.Join(r.dir, "registry"), "-port="+port)
}

// Push pushes the images and the chart, and returns the names of what was pushed.
func (r Release) Push(registry string) (string, error) { return r.tool("--push=" + registry) }

func (r Release) tool(args ...string) (string, error) {
	return command(filepath.Join(r.dir, "release"), append(args, "--out="+filepath.Join(r.dir, "dist"))...)
}

// Helm runs Helm as the cluster's administrator.
func (c *Cluster) Helm(args ...string) (string, error) {
	return helm(append(args, "--kubeconfig="+filepath.Join(c.pki.dir, "admin.kubeconfig"),
		"--registry-config="+filepath.Join(c.state, "helm/registry.json"), "--repository-cache="+filepath.Join(c.state, "helm/cache"))...)
}
