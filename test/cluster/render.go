package cluster

import (
	"fmt"
	"path/filepath"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

// Render renders a directory of deploy/ as `kubectl apply -k` does.
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

// WithImages replaces the example images of deploy/ with images on the node, in an object
// of any kind. application replaces the images of the user's applications.
func WithImages(object *unstructured.Unstructured, application string) error {
	text, err := object.MarshalJSON()
	if err != nil {
		return err
	}
	return object.UnmarshalJSON([]byte(strings.NewReplacer(
		"registry.example.test/imds-oidc-proxy:v0.2.0", ProxyImage,
		"registry.example.test/imds-oidc-proxy-init:v0.2.0", ProxyInitImage,
		"registry.example.test/team/app:1.0.0", application,
		"registry.example.test/team/nightly:1.0.0", application,
	).Replace(string(text))))
}
