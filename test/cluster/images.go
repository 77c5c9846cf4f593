package cluster

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"imds-oidc-proxy/test/kit/bases"
)

// Names of this project's images on the node.
const (
	ProxyImage     = "localhost/imds-oidc-proxy:" + Version
	ProxyInitImage = "localhost/imds-oidc-proxy-init:" + Version
	WebhookImage   = "localhost/imds-oidc-proxy-webhook:" + Version
	CNIImage       = "localhost/imds-oidc-proxy-cni:" + Version
)

// imagesDir is the directory, below the suite's, that contains a directory for each image.
// The directory NAME becomes the image localhost/NAME:test with the entry point /NAME.
const imagesDir = "images"

// BuildImage builds a Go program into an image on the node, in the process outside. Several
// calls add several programs to an image; its entry point is the program with the image's
// name. dir is the argument of Config.Prepare, module the directory with the program's
// go.mod, and args are arguments of go build.
func BuildImage(dir, image, program, module string, args ...string) error {
	return Build(filepath.Join(dir, imagesDir, image, program), module, args...)
}

// CopyImage makes an image of a root file system, in the process outside. It runs tool with
// kept as argument, which creates the file system there unless it exists. Both paths are
// relative to the repository's root.
func CopyImage(dir, image, tool, kept string) error {
	root, err := repository()
	if err != nil {
		return err
	}
	kept = filepath.Join(root, kept)
	if _, err := command(filepath.Join(root, tool), kept); err != nil {
		return err
	}
	images := filepath.Join(dir, imagesDir)
	if err := os.MkdirAll(images, 0o755); err != nil {
		return err
	}
	_, err = command("cp", "-a", kept, filepath.Join(images, image)) // -a keeps symbolic links and modes
	return err
}

// Build builds a static Go program to the file out, in the process outside. module and args
// are as for [BuildImage].
func Build(out, module string, args ...string) error {
	cmd := exec.Command("go", append([]string{"build", "-trimpath", "-buildvcs=false", "-o", out}, args...)...)
	cmd.Dir, cmd.Env = module, append(os.Environ(), "CGO_ENABLED=0")
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, output)
	}
	return nil
}

// loadImages builds this project's images, with base images that trust the fake Entra's
// certificate authority, and imports all images into the node's containerd.
func (c *Cluster) loadImages() error {
	root, err := repository()
	if err != nil {
		return err
	}
	b := bases.Config{Dir: c.dir, Repository: root, Authorities: c.Entra.CAPEM()}
	if err := b.Make(); err != nil {
		return err
	}
	if err := b.Images(Version, map[string]string{"proxy": "staticbase", "init": "iptablesbase", "webhook": "staticbase", "cni": "scratch"}); err != nil {
		return err
	}
	names := []string{ProxyImage, ProxyInitImage, WebhookImage, CNIImage}
	directories, err := os.ReadDir(filepath.Join(c.dir, imagesDir))
	if err != nil {
		return err
	}
	for _, entry := range directories {
		name := fmt.Sprintf("localhost/%s:test", entry.Name())
		root := filepath.Join(c.dir, imagesDir, entry.Name())
		if err := bases.FromDirectory(name, root, fmt.Sprintf("--entrypoint=[%q]", "/"+entry.Name())); err != nil {
			return err
		}
		names = append(names, name)
	}
	for i, name := range names {
		if err := c.importImage(name, filepath.Join(c.state, fmt.Sprintf("image-%d.tar", i))); err != nil {
			return err
		}
	}
	return nil
}

// importImage copies an image from buildah's storage to containerd's.
func (c *Cluster) importImage(name, archive string) error {
	if _, err := command("buildah", "push", "--quiet", name, "oci-archive:"+archive+":"+name); err != nil {
		return err
	}
	defer os.Remove(archive)
	_, err := c.Containerd("images", "import", archive)
	return err
}
