package inject

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"imds-oidc-proxy/internal/azure"
)

// Remove returns the patch that removes what [Pod] adds: both containers, which it identifies by
// their names and by fields that only injected containers have; the volume, by its name and its
// token; the volume's mounts; and the variables. It does not change the author's own parts: a
// variable counts as injected only if it comes after AZURE_FEDERATED_TOKEN_FILE with a path in
// the volume. The label and the annotations that request injection stay.
//
// An author's volume that Pod used stays, and so do its mounts. Some injected parts cannot be
// distinguished from parts of the author, such as variables after a path that the author set.
// They stay, and [Differences] lists them.
func Remove(pod *corev1.Pod) Result {
	p := &plan{pod: pod}
	ours := injectedIn(pod)
	proxied := slices.ContainsFunc(allContainers(pod), func(c containerRef) bool { return ours(*c.Container) })
	for _, c := range allContainers(pod) {
		if !ours(*c.Container) {
			p.removeIdentity(c)
		}
	}
	p.removeMetricsLabel(ours)
	p.removeWritten()
	removeWhere(p, initContainers, pod.Spec.InitContainers, each(ours))
	removeWhere(p, containers, pod.Spec.Containers, each(ours))
	removeWhere(p, volumes, pod.Spec.Volumes, each(func(v corev1.Volume) bool {
		return isInjectedVolume(v) || proxied && isConfigMapVolume(v) && !p.mounts(v.Name)
	}))
	return p.Result
}

func (p *plan) removeIdentity(c containerRef) {
	removeWhere(p, c.path()+"/env", c.Env, p.injectedBefore(c))
	removeWhere(p, c.path()+"/volumeMounts", c.VolumeMounts, func(_ int, m corev1.VolumeMount) bool { return p.injectedVolumes()[m.Name] })
}

// injectedBefore returns a function that reports whether Pod added a variable of the container.
// This depends on the position: a variable before the path of the token is the author's.
func (p *plan) injectedBefore(c containerRef) func(int, corev1.EnvVar) bool {
	mounts := new(dirs)
	for _, m := range c.VolumeMounts {
		if p.injectedVolumes()[m.Name] {
			mounts.add(m.MountPath)
		}
	}
	anchor := slices.IndexFunc(c.Env, func(e corev1.EnvVar) bool {
		return e.Name == azure.EnvFederatedTokenFile && mounts.contain(e.Value)
	})
	return func(i int, e corev1.EnvVar) bool {
		return anchor >= 0 && i >= anchor && (e.ValueFrom == nil && slices.Contains(injectedEnv, e.Name) || isAppService(e))
	}
}

// injectedEnv is the variables that Pod adds to application containers.
var injectedEnv = []string{
	azure.EnvFederatedTokenFile, azure.EnvClientID, azure.EnvTenantID, azure.EnvAuthorityHost,
	azure.EnvTokenProxy, azure.EnvSNIName, azure.EnvCAFile, azure.EnvCAData, azure.EnvIMDSHost,
}

// injectedVolumes returns the names of the volumes that are injected, and thus removed.
func (p *plan) injectedVolumes() map[string]bool {
	if p.injectedNames == nil {
		p.injectedNames = map[string]bool{}
		for _, v := range p.pod.Spec.Volumes {
			if isInjectedVolume(v) {
				p.injectedNames[v.Name] = true
			}
		}
	}
	return p.injectedNames
}

func (p *plan) removeMetricsLabel(ours func(corev1.Container) bool) {
	scraped := slices.ContainsFunc(allContainers(p.pod), func(c containerRef) bool {
		return c.Name == ProxyName && ours(*c.Container) &&
			slices.ContainsFunc(c.Ports, func(port corev1.ContainerPort) bool { return port.Name == adminPortName })
	})
	if scraped && p.pod.Labels[metricsLabel] == "true" {
		p.remove("/metadata/labels/" + escape(metricsLabel))
	}
}

// each returns a function for removeWhere that ignores the index.
func each[T any](ours func(T) bool) func(int, T) bool {
	return func(_ int, e T) bool { return ours(e) }
}

// removeWhere removes elements of a list, or the whole list if no element would remain.
func removeWhere[T any](p *plan, list string, elements []T, ours func(int, T) bool) {
	var removed []int
	for i, e := range elements {
		if ours(i, e) {
			removed = append(removed, i)
		}
	}
	if len(removed) > 0 && len(removed) == len(elements) {
		p.remove(list)
		return
	}
	for _, i := range slices.Backward(removed) {
		p.remove(at(list, i))
	}
}

// Differences returns the differences between two pods in the parts that [Pod] and [Remove]
// change, in texts for the author of the first pod, such as "container app keeps env
// AZURE_CLIENT_ID". It ignores the difference between an empty list and a missing one.
func Differences(before, after *corev1.Pod) []string {
	was, is := parts(before), parts(after)
	var all []string
	for _, owner := range slices.Sorted(maps.Keys(was)) {
		if is[owner] == nil {
			continue // a container that is only in one pod is listed as a part of the pod
		}
		for _, change := range []struct {
			verb  string
			names []string
		}{
			{"keeps", missing(is[owner], was[owner])},
			{"loses", missing(was[owner], is[owner])},
			{"has another", changed(was[owner], is[owner])},
		} {
			if len(change.names) > 0 {
				all = append(all, owner+" "+change.verb+" "+strings.Join(change.names, ", "))
			}
		}
	}
	return all
}

// text is the content of parts, by their names.
type text map[string]string

func missing(have, from text) []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(have)), func(name string) bool {
		_, exists := from[name]
		return exists
	})
}

func changed(was, is text) []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(was)), func(name string) bool {
		now, exists := is[name]
		return !exists || now == was[name]
	})
}

// parts returns the parts of a pod and of each of its containers.
func parts(pod *corev1.Pod) map[string]text {
	own := contents{}
	all := map[string]text{}
	for name, value := range pod.Labels {
		own.add("label "+name, value)
	}
	for _, v := range pod.Spec.Volumes {
		own.add("volume "+shorten(v.Name), encoded(v))
	}
	for _, c := range allContainers(pod) {
		rest := *c.Container
		rest.Env, rest.VolumeMounts = nil, nil
		own.add("container "+shorten(c.Name), c.list+encoded(rest))
		all["container "+shorten(c.Name)] = containerParts(c.Container)
	}
	all["the pod"] = own.text()
	return all
}

func containerParts(c *corev1.Container) text {
	t := contents{}
	for _, e := range c.Env {
		t.add("env "+shorten(e.Name), encoded(e))
	}
	for _, m := range c.VolumeMounts {
		t.add("mount "+shorten(m.Name), encoded(m))
	}
	return t.text()
}

// contents collects the contents of parts. Several parts may have the same name.
type contents map[string][]string

func (c contents) add(name, content string) { c[name] = append(c[name], content) }

func (c contents) text() text {
	t := make(text, len(c))
	for name, list := range c {
		t[name] = strings.Join(list, "")
	}
	return t
}

// encoded returns a value as JSON, for comparisons. Encoding these types cannot fail.
func encoded(v any) string {
	text, _ := json.Marshal(v)
	return string(text)
}
