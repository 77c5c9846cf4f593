package inject

import (
	corev1 "k8s.io/api/core/v1"
)

// instanceKey is the default key of the ConfigMap with instance metadata, and the name of its file
// in the proxy.
const instanceKey = "instance.json"

// The variables of the proxy for instance metadata. The first two have values of the downward API,
// which Kubernetes expands in the value of the fourth.
const (
	nodeNameEnv       = "IMDS_NODE_NAME"
	regionEnv         = "IMDS_REGION"
	instanceEnv       = "PROXY_INSTANCE_METADATA"
	instanceFieldsEnv = "PROXY_INSTANCE_METADATA_FIELDS"
)

// instanceFields are the values of instance metadata that the downward API has. The name of a
// node in AKS is the computer name of its virtual machine. From Kubernetes 1.35 on, a pod has the
// region of its node as a label; before, the value is empty, and the proxy ignores it.
const instanceFields = "compute/name=$(" + nodeNameEnv + "),compute/osProfile/computerName=$(" + nodeNameEnv + "),compute/location=$(" + regionEnv + ")"

// instanceEnvs returns the variables for instance metadata, if the pod has a ConfigMap with it.
func (s *settings) instanceEnvs() []corev1.EnvVar {
	if s.instanceConfigMap.Name == "" {
		return nil
	}
	field := func(path string) *corev1.EnvVarSource {
		return &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: path}}
	}
	return []corev1.EnvVar{
		{Name: nodeNameEnv, ValueFrom: field("spec.nodeName")},
		{Name: regionEnv, ValueFrom: field("metadata.labels['" + corev1.LabelTopologyRegion + "']")},
		{Name: instanceEnv, Value: volumeNamed(instanceVolume).path()},
		{Name: instanceFieldsEnv, Value: instanceFields},
	}
}

// warnInstance warns about instance metadata that applications do not get.
func (p *plan) warnInstance() {
	if p.settings.instanceConfigMap.Name != "" && p.settings.redirect == redirectNone {
		p.warnf("annotation %s has no effect with %s: %s: applications request instance metadata from the node", InstanceMetadataAnnotation, RedirectAnnotation, redirectNone)
	}
}
