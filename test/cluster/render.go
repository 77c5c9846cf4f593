package cluster

import (
	"fmt"
	"path/filepath"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

// Render does what `kubectl apply -k` does with a directory of deploy/ before it
// sends it.
func Render(directory string) ([]*unstructured.Unstructured, error) {
	root, err := repository()
	if err != nil {
		return nil, err
	}
	resources, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), filepath.Join(root, "deploy", directory))
	if err != nil {
		return nil, fmt.Errorf("deploy/%s: %w", directory, err)
	}
	text, err := resources.AsYaml()
	if err != nil {
		return nil, err
	}
	return Objects(text)
}

// WithImages replaces the made-up images of deploy/ by those on the node, in an
// object of any kind. application is what stands for the user's own.
func WithImages(object *unstructured.Unstructured, application string) error {
	text, err := object.MarshalJSON()
	if err != nil {
		return err
	}
	return object.UnmarshalJSON([]byte(strings.NewReplacer(
		"registry.example.test/imds-oidc-proxy:v0.1.0", ProxyImage,
		"registry.example.test/imds-oidc-proxy-init:v0.1.0", ProxyInitImage,
		"registry.example.test/team/app:1.0.0", application,
		"registry.example.test/team/nightly:1.0.0", application,
	).Replace(string(text))))
}
