package inject

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Differences names what of the parts that [Pod] and [Remove] are about is not the same
// in two pods, in words for the author of the first, of each container and of the pod:
// "container app keeps env AZURE_CLIENT_ID". None: they are the same, but for lists that
// are empty in one and not there in the other.
func Differences(before, after *corev1.Pod) []string {
	was, is := parts(before), parts(after)
	var all []string
	for _, owner := range owners(was, is) {
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

// owners are those that are in both. A container that is in one alone is a part of the pod.
func owners(was, is map[string]text) []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(was)), func(name string) bool { return is[name] == nil })
}

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
