package cluster

import (
	"encoding/json"

	jsonpatch "github.com/evanphx/json-patch/v5"
	corev1 "k8s.io/api/core/v1"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/inject"
)

// Inject returns the pod as injection changes it, without a webhook. It sets the images and the
// fake Entra in the configuration.
func (c *Cluster) Inject(pod *corev1.Pod, account *corev1.ServiceAccount, config inject.Config) (*corev1.Pod, error) {
	config.ProxyImage, config.ProxyInitImage = ProxyImage, ProxyInitImage
	config.TenantID, config.AuthorityHost = azure.Tenant(c.Entra.TenantID()), azure.AuthorityHost(c.Entra.AuthorityHost())
	result, err := inject.Pod(pod, account, config)
	if err != nil {
		return nil, err
	}
	operations, err := json.Marshal(result.Patch)
	if err != nil {
		return nil, err
	}
	patch, err := jsonpatch.DecodePatch(operations)
	if err != nil {
		return nil, err
	}
	before, err := json.Marshal(pod)
	if err != nil {
		return nil, err
	}
	after, err := patch.Apply(before)
	if err != nil {
		return nil, err
	}
	injected := new(corev1.Pod)
	return injected, json.Unmarshal(after, injected)
}
