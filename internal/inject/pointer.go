package inject

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

const (
	initContainers = "/spec/initContainers"
	containers     = "/spec/containers"
	volumes        = "/spec/volumes"

	metricsLabel = ownPrefix + "metrics"
)

// escape writes a name as one step of a JSON pointer (RFC 6901).
func escape(name string) string {
	return strings.NewReplacer("~", "~0", "/", "~1").Replace(name)
}

func at(list string, index int) string { return fmt.Sprintf("%s/%d", list, index) }

// place is a container and where it stands.
type place struct {
	*corev1.Container
	list  string
	index int
}

func (c place) path() string { return at(c.list, c.index) }

// field is the place as the API server would name it to the pod's author, who knows
// the container by its name.
func (c place) field(of string) string {
	return fmt.Sprintf("%s[%s].%s", strings.ReplaceAll(c.list[1:], "/", "."), shorten(c.Name), of)
}

// ours reports whether this is what is injected.
func (c place) ours() bool { return isOurs(*c.Container) }

// places lists all containers, init containers first.
func places(pod *corev1.Pod) []place {
	var all []place
	for i := range pod.Spec.InitContainers {
		all = append(all, place{&pod.Spec.InitContainers[i], initContainers, i})
	}
	for i := range pod.Spec.Containers {
		all = append(all, place{&pod.Spec.Containers[i], containers, i})
	}
	return all
}
