package cluster

import (
	"path/filepath"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// BuildHelm builds Helm in the process outside, into Go's cache, where the one inside
// finds it.
func BuildHelm() error {
	_, err := helm("version")
	return err
}

// chart renders this project's chart for a namespace, which is the release's name too,
// with values as helm's --set takes them.
func (c *Cluster) chart(namespace string, values []string) ([]*unstructured.Unstructured, error) {
	root, err := repository()
	if err != nil {
		return nil, err
	}
	server, err := c.Client.Discovery().ServerVersion()
	if err != nil {
		return nil, err
	}
	args := []string{"template", namespace, filepath.Join(root, "charts/imds-oidc-proxy"), "--namespace=" + namespace, "--kube-version=" + server.GitVersion}
	for _, value := range values {
		args = append(args, "--set="+value)
	}
	rendered, err := helm(args...)
	if err != nil {
		return nil, err
	}
	return Objects([]byte(rendered))
}

func helm(args ...string) (string, error) {
	root, err := repository()
	if err != nil {
		return "", err
	}
	return command("go", append([]string{"-C", filepath.Join(root, "tools/helm"), "tool", "helm"}, args...)...)
}
