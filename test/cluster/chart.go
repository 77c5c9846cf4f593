package cluster

import (
	"path/filepath"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// BuildHelm builds Helm into Go's build cache. Call it in the process outside: the process
// inside has no network to download modules.
func BuildHelm() error {
	_, err := helm("version")
	return err
}

// chart renders this project's chart. The release has the name of the namespace, and
// values have the syntax of helm's --set.
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
