package inject

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"imds-oidc-proxy/internal/azure"
)

// Remove takes out of a pod what [Pod] puts in: both containers, known by their names
// and by what no others have; the volume, known by its name and its token; its mounts;
// and the variables that came with it. What the pod had of its own stays: a variable
// counts as ours only where it stands behind AZURE_FEDERATED_TOKEN_FILE, which points
// into the volume. Annotations and the label that ask for injection stay too.
//
// A volume that the author wrote and Pod only used is the author's, mounts of it too.
// Some of what Pod does cannot be told from what an author may have written, such as
// variables behind a path that is the author's: these stay, and [Differences] names
// them.
func Remove(pod *corev1.Pod) Result {
	p := &plan{pod: pod}
	ours := madeIn(pod)
	for _, c := range places(pod) {
		if !ours(*c.Container) {
			p.removeIdentity(c)
		}
	}
	p.removeMetricsLabel(ours)
	removeWhere(p, initContainers, pod.Spec.InitContainers, each(ours))
	removeWhere(p, containers, pod.Spec.Containers, each(ours))
	removeWhere(p, volumes, pod.Spec.Volumes, each(madeVolume))
	return p.Result
}

func (p *plan) removeIdentity(c place) {
	removeWhere(p, c.path()+"/env", c.Env, p.injectedBefore(c))
	removeWhere(p, c.path()+"/volumeMounts", c.VolumeMounts, func(_ int, m corev1.VolumeMount) bool { return p.isMade(m.Name) })
}

// injectedBefore tells which of a container's variables Pod gave it. By position: in
// front of the path to the token the same name is the author's.
func (p *plan) injectedBefore(c place) func(int, corev1.EnvVar) bool {
	anchor := slices.IndexFunc(c.Env, func(e corev1.EnvVar) bool { return e.Name == azure.EnvFederatedTokenFile && p.inMadeVolume(c, e.Value) })
	return func(i int, e corev1.EnvVar) bool {
		return anchor >= 0 && i >= anchor && e.ValueFrom == nil && slices.Contains(injectedEnv, e.Name)
	}
}

// injectedEnv is what Pod gives a container of the application.
var injectedEnv = []string{
	azure.EnvFederatedTokenFile, azure.EnvClientID, azure.EnvTenantID, azure.EnvAuthorityHost,
	azure.EnvTokenProxy, azure.EnvSNIName, azure.EnvCAFile, azure.EnvCAData, azure.EnvIMDSHost,
}

func (p *plan) inMadeVolume(c place, file string) bool {
	return slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool {
		return p.isMade(m.Name) && below(file, m.MountPath)
	})
}

// isMade reports whether the volume of this name is one that goes.
func (p *plan) isMade(volume string) bool {
	return slices.ContainsFunc(p.pod.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == volume && madeVolume(v) })
}

func (p *plan) removeMetricsLabel(ours func(corev1.Container) bool) {
	scraped := slices.ContainsFunc(places(p.pod), func(c place) bool {
		return c.Name == ProxyName && ours(*c.Container) &&
			slices.ContainsFunc(c.Ports, func(port corev1.ContainerPort) bool { return port.Name == adminPortName })
	})
	if scraped && p.pod.Labels[metricsLabel] == "true" {
		p.remove("/metadata/labels/" + escape(metricsLabel))
	}
}

// each is a rule that asks nothing about the position.
func each[T any](ours func(T) bool) func(int, T) bool {
	return func(_ int, e T) bool { return ours(e) }
}

// removeWhere removes elements of a list, or the list where nothing is left of it.
func removeWhere[T any](p *plan, list string, elements []T, ours func(int, T) bool) {
	var going []int
	for i, e := range elements {
		if ours(i, e) {
			going = append(going, i)
		}
	}
	if len(going) > 0 && len(going) == len(elements) {
		p.remove(list)
		return
	}
	for _, i := range slices.Backward(going) {
		p.remove(at(list, i))
	}
}

// Differences names what of the parts that [Pod] and [Remove] are about is not the same
// in two pods, in words for the author of the first, of each container and of the pod:
// "container app keeps env AZURE_CLIENT_ID". None: they are the same, but for lists that
// are empty in one and not there in the other.
func Differences(before, after *corev1.Pod) []string {
	was, is := parts(before), parts(after)
	var all []string
	for _, owner := range slices.Sorted(maps.Keys(was)) {
		if is[owner] == nil {
			continue // a container that is in one pod alone is a part of the pod
		}
		for _, fate := range []struct {
			verb  string
			names []string
		}{
			{"keeps", missing(is[owner], was[owner])},
			{"loses", missing(was[owner], is[owner])},
			{"has another", changed(was[owner], is[owner])},
		} {
			if len(fate.names) > 0 {
				all = append(all, owner+" "+fate.verb+" "+strings.Join(fate.names, ", "))
			}
		}
	}
	return all
}

// text is what a part says, by its name.
type text map[string]string

func missing(have, from text) []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(have)), func(name string) bool {
		_, there := from[name]
		return there
	})
}

func changed(was, is text) []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(was)), func(name string) bool {
		said, there := is[name]
		return !there || said == was[name]
	})
}

// parts takes a pod apart, by who has a part: the pod or one of its containers.
func parts(pod *corev1.Pod) map[string]text {
	own := text{}
	all := map[string]text{"the pod": own}
	for name, value := range pod.Labels {
		own["label "+name] = value
	}
	for _, v := range pod.Spec.Volumes {
		own["volume "+shorten(v.Name)] += encoded(v)
	}
	for _, c := range places(pod) {
		rest := *c.Container
		rest.Env, rest.VolumeMounts = nil, nil
		own["container "+shorten(c.Name)] += c.list + encoded(rest)
		all["container "+shorten(c.Name)] = containerParts(c.Container)
	}
	return all
}

func containerParts(c *corev1.Container) text {
	t := text{}
	for _, e := range c.Env {
		t["env "+shorten(e.Name)] += encoded(e)
	}
	for _, m := range c.VolumeMounts {
		t["mount "+shorten(m.Name)] += encoded(m)
	}
	return t
}

// encoded is a value as it can be compared: JSON, which these types always have.
func encoded(v any) string {
	text, _ := json.Marshal(v)
	return string(text)
}
