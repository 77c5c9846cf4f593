package cluster

import (
	"path/filepath"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// BuildHelm builds Helm in the process outside, into Go's cache, where [Chart] finds it.
func BuildHelm() error {
	_, err := helm("version")
	return err
}

// Chart renders this project's chart for a namespace, which is the release's name too,
// with values as helm's --set takes them.
func Chart(namespace string, values ...string) ([]*unstructured.Unstructured, error) {
	root, err := repository()
	if err != nil {
		return nil, err
	}
	args := []string{"template", namespace, filepath.Join(root, "charts/imds-oidc-proxy"), "--namespace=" + namespace, "--kube-version=" + kubernetesVersion}
	for _, value := range values {
		args = append(args, "--set="+value)
	}
	rendered, err := helm(args...)
	if err != nil {
		return nil, err
	}
	return Objects([]byte(rendered))
}

// kubernetesVersion is what the chart is told, whose rendering asks no server.
const kubernetesVersion = "1.34.4"

func helm(args ...string) (string, error) {
	root, err := repository()
	if err != nil {
		return "", err
	}
	return command("go", append([]string{"-C", filepath.Join(root, "tools/helm"), "tool", "helm"}, args...)...)
}
