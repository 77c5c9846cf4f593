package main

import (
	"fmt"
	"path/filepath"
	"slices"

	"imds-oidc-proxy/internal/manifest"
)

// patches has the paths of the files that a kustomization in the same run lists as patches.
type patches map[string]bool

// isKustomization reports whether a file has a name that kustomize reads.
func isKustomization(f *file) bool {
	return slices.Contains([]string{"kustomization.yaml", "kustomization.yml", "Kustomization"}, filepath.Base(f.path))
}

// collect adds the patches of a kustomization.
func (p patches) collect(d document) {
	if !isKustomization(d.file) {
		return
	}
	paths := d.Root().Get("patchesStrategicMerge").Items()
	for _, patch := range d.Root().Get("patches").Items() {
		paths = append(paths, patch.Get("path"))
	}
	for _, node := range paths {
		if path, isString := node.Scalar(); isString {
			p[filepath.Join(filepath.Dir(d.file.path), path)] = true
		}
	}
}

const renderFirst = "render it first: kubectl kustomize DIRECTORY | imds-migrate inject -"

// patch returns an error for a pod template that is a kustomize patch. What a patch leaves out is in
// another file: its service account, its containers and whether it wants the proxy. Injected
// containers in a patch would also be merged into all pods that it is for.
func (p patches) patch(f *file, o object, template *manifest.Node) error {
	reason := ""
	switch spec := template.Get("spec"); {
	case p[filepath.Clean(f.path)]:
		reason = "a kustomization lists this file under patches"
	case o.node.Get("$patch") != nil || spec.Get("$patch") != nil:
		reason = "it contains $patch"
	case len(spec.Get("containers").Items()) == 0:
		reason = "the pod template has no containers"
	case !o.setsImages():
		reason = withoutImage(spec)
	}
	if reason == "" {
		return nil
	}
	return &manifest.Error{Line: template.Line(), Reason: fmt.Sprintf("a kustomize patch, not a manifest (%s): %s", reason, renderFirst)}
}

// withoutImage returns a reason that names the first container without an image, or "".
func withoutImage(spec *manifest.Node) string {
	for _, list := range []string{"initContainers", "containers"} {
		for _, container := range spec.Get(list).Items() {
			if container.Get("image") == nil {
				name, _ := container.Get("name").Scalar()
				return fmt.Sprintf("container %q has no image", name)
			}
		}
	}
	return ""
}

// setsImages reports whether OpenShift sets the images of a workload, so that its manifest need not
// have them.
func (o object) setsImages() bool {
	return o.kind == "DeploymentConfig" || o.node.Get("metadata", "annotations", "image.openshift.io/triggers") != nil
}
