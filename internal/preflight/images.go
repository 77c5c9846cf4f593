package preflight

import (
	"strings"
)

// images checks the references of the images: those of the flags, or else those of the webhook.
func (r *run) images() {
	images := map[string]string{"proxy": r.Inject.ProxyImage, "proxy-init": r.Inject.ProxyInitImage}
	if images["proxy"] == "" && images["proxy-init"] == "" {
		images = r.webhookImages()
	}
	if len(images) == 0 {
		r.add(Skipped, "set --proxy-image and --proxy-init-image", "", "the images are not known")
		return
	}
	for _, name := range []string{"proxy", "proxy-init"} {
		status, text, hint := reference(images[name])
		r.add(status, hint, "docs/images.md", "image of %s: %s", name, text)
	}
}

// webhookImages returns the images in the arguments of the webhook's Deployment.
func (r *run) webhookImages() map[string]string {
	images := map[string]string{}
	for _, w := range r.survey.AllWorkloads() {
		for _, c := range w.Template.Spec.Containers {
			for _, arg := range c.Args {
				if image, ok := strings.CutPrefix(arg, "--proxy-image="); ok {
					images["proxy"] = image
				}
				if image, ok := strings.CutPrefix(arg, "--proxy-init-image="); ok {
					images["proxy-init"] = image
				}
			}
		}
	}
	if len(images) == 2 {
		r.Inject.ProxyImage, r.Inject.ProxyInitImage = images["proxy"], images["proxy-init"]
	}
	return images
}

// reference judges an image by the form of its reference. Whether a node can pull it shows only there.
func reference(image string) (status Status, text, hint string) {
	name, digest, pinned := strings.Cut(image, "@")
	host, _, qualified := strings.Cut(name, "/")
	tag := ""
	if at := strings.LastIndexByte(name, ':'); at > strings.LastIndexByte(name, '/') {
		tag = name[at+1:]
	}
	switch {
	case image == "":
		return Fault, "none is given", "set --proxy-image and --proxy-init-image"
	case !qualified || !strings.ContainsAny(host, ".:") && host != "localhost":
		return Fault, image + " names no registry: the nodes would pull it from Docker Hub", "write the registry, such as registry.example.test/" + image
	case strings.HasSuffix(host, ".example.test") || host == "registry.example.test":
		return Fault, image + " is an example", "push the images to a registry of your own: README.md"
	case pinned && strings.HasPrefix(digest, "sha256:"):
		return OK, image + " is pinned", ""
	case tag == "" || tag == "latest":
		return Warning, image + " has no fixed tag: pods of one workload may run different versions", "use a version or a digest"
	}
	return OK, image + " has a fixed tag", ""
}
