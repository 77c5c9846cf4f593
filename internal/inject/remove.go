package inject

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Remove takes out of a pod what [Pod] puts in: both containers, known by their
// names; the volume, known by its; its mounts; and the variables that came with it.
// What the pod had of its own stays: a variable counts as ours only where it stands
// behind AZURE_FEDERATED_TOKEN_FILE, which points into the volume. Annotations and
// the label that ask for injection stay too.
//
// A volume that the author wrote and Pod only used is the author's, mounts of it too.
func Remove(pod *corev1.Pod) Result {
	p := &plan{pod: pod}
	for _, c := range places(pod) {
		if !c.ours() {
			p.removeIdentity(c)
		}
	}
	p.removeMetricsLabel()
	removeWhere(p, initContainers, pod.Spec.InitContainers, isOurs)
	removeWhere(p, containers, pod.Spec.Containers, isOurs)
	removeWhere(p, volumes, pod.Spec.Volumes, func(v corev1.Volume) bool { return reserved(v.Name) })
	return Result{Patch: p.operations}
}

// reserved reports whether a volume is a webhook's: azure-workload-identity's or ours.
func reserved(volume string) bool { return strings.HasPrefix(volume, volumePrefix) }

func (p *plan) removeIdentity(c place) {
	anchor := slices.IndexFunc(c.Env, func(e corev1.EnvVar) bool { return e.Name == envTokenFile && fromVolume(c.Container, e.Value) })
	var ours []string
	if anchor >= 0 {
		for _, e := range c.Env[anchor:] {
			if e.ValueFrom == nil && slices.Contains(injectedEnv, e.Name) {
				ours = append(ours, e.Name)
			}
		}
	}
	removeWhere(p, c.path()+"/env", c.Env, func(e corev1.EnvVar) bool { return slices.Contains(ours, e.Name) })
	removeWhere(p, c.path()+"/volumeMounts", c.VolumeMounts, func(m corev1.VolumeMount) bool { return reserved(m.Name) })
}

// injectedEnv is what Pod gives a container of the application.
var injectedEnv = []string{
	envTokenFile, envClientID, envTenantID, envAuthorityHost,
	envTokenProxy, envSNIName, envCAFile, envCAData, envIMDSHost,
}

func fromVolume(c *corev1.Container, file string) bool {
	return slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool {
		return reserved(m.Name) && below(file, m.MountPath)
	})
}

func (p *plan) removeMetricsLabel() {
	scraped := slices.ContainsFunc(places(p.pod), func(c place) bool {
		return c.Name == ProxyName && slices.ContainsFunc(c.Ports, func(port corev1.ContainerPort) bool { return port.Name == adminPortName })
	})
	if scraped && p.pod.Labels[metricsLabel] == "true" {
		p.remove("/metadata/labels/" + escape(metricsLabel))
	}
}

// removeWhere removes elements of a list, or the list where nothing is left of it.
func removeWhere[T any](p *plan, list string, elements []T, ours func(T) bool) {
	if !slices.ContainsFunc(elements, ours) {
		return
	}
	if !slices.ContainsFunc(elements, func(e T) bool { return !ours(e) }) {
		p.remove(list)
		return
	}
	for i, e := range slices.Backward(elements) {
		if ours(e) {
			p.remove(at(list, i))
		}
	}
}
