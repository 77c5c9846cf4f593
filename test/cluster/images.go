package cluster

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"imds-oidc-proxy/test/kit/bases"
)

// Images of this project, as tests name them.
const (
	ProxyImage     = "localhost/imds-oidc-proxy:" + Version
	ProxyInitImage = "localhost/imds-oidc-proxy-init:" + Version
	WebhookImage   = "localhost/imds-oidc-proxy-webhook:" + Version
)

// imagesDir is what of dir becomes images, each directory one: NAME makes
// localhost/NAME:test, which runs its file /NAME.
const imagesDir = "images"

// BuildImage builds a Go program, in the process outside, for an image of that name
// on the node. More programs make it hold more; the image runs the one of its name.
// dir is what Config.Prepare got, module where the program's go.mod is, and args are
// what go build takes.
func BuildImage(dir, image, program, module string, args ...string) error {
	return Build(filepath.Join(dir, imagesDir, image, program), module, args...)
}

// CopyImage makes an image of a root file system, in the process outside. The tool lays
// it out in kept, both named from the repository's root, where it is not there yet.
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
	_, err = command("cp", "-a", kept, filepath.Join(images, image)) // as it is, with its links
	return err
}

// Build builds a static Go program, in the process outside, as [BuildImage] does.
func Build(out, module string, args ...string) error {
	cmd := exec.Command("go", append([]string{"build", "-trimpath", "-buildvcs=false", "-o", out}, args...)...)
	cmd.Dir, cmd.Env = module, append(os.Environ(), "CGO_ENABLED=0")
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, output)
	}
	return nil
}

// loadImages builds this project's images, on bases that trust the stand-in Entra,
// and gives them to the node.
func (c *Cluster) loadImages() error {
	root, err := repository()
	if err != nil {
		return err
	}
	b := bases.Config{Dir: c.dir, Repository: root, Authorities: c.Entra.CAPEM()}
	if err := b.Make(); err != nil {
		return err
	}
	if err := b.Images(Version, map[string]string{"proxy": "staticbase", "init": "iptablesbase", "webhook": "staticbase"}); err != nil {
		return err
	}
	names := []string{ProxyImage, ProxyInitImage, WebhookImage}
	own, err := os.ReadDir(filepath.Join(c.dir, imagesDir))
	if err != nil {
		return err
	}
	for _, entry := range own {
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

// importImage moves an image from buildah's storage to containerd's.
func (c *Cluster) importImage(name, archive string) error {
	if _, err := command("buildah", "push", "--quiet", name, "oci-archive:"+archive+":"+name); err != nil {
		return err
	}
	defer os.Remove(archive)
	_, err := c.Containerd("images", "import", archive)
	return err
}
