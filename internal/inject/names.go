package inject

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"imds-oidc-proxy/internal/flagenv"
)

// AddedAnnotation is where imds-migrate writes which of [UseLabel], [InjectProxyAnnotation] and
// [IdentitiesAnnotation] it has added to a template.
const AddedAnnotation = ownPrefix + "added"

const (
	azwiPrefix = "azure.workload.identity/"

	// maxNames is how many wrong names of one object are reported. It also bounds the work for
	// an object with many of them.
	maxNames = 10
	// maxNameLength is the length of the longest name that is compared with the known ones. All
	// known names are shorter.
	maxNameLength = 80
)

// WrongNames returns a warning for each label and annotation of a pod that has no effect: those with
// a misspelt name, those that are written as the other of the two, and those of service accounts.
func WrongNames(pod *corev1.Pod) []string {
	return wrongNames(onPod, &pod.ObjectMeta)
}

// WrongAccountNames returns the same for a service account.
func WrongAccountNames(account *metav1.ObjectMeta) []string {
	return wrongNames(onAccount, account)
}

func wrongNames(on string, object *metav1.ObjectMeta) []string {
	var all []string
	for _, name := range slices.Sorted(maps.Keys(object.Labels)) {
		if len(all) == maxNames {
			return all
		}
		if reason := wrongLabel(name); reason != "" {
			all = append(all, fmt.Sprintf("label %s has no effect: %s", shorten(name), reason))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(object.Annotations)) {
		if len(all) == maxNames {
			return all
		}
		if reason := wrongAnnotation(name, on); reason != "" {
			all = append(all, fmt.Sprintf("annotation %s has no effect: %s", shorten(name), reason))
		}
	}
	return all
}

func wrongLabel(name string) string {
	switch a := find(name); {
	case name == UseLabel || name == metricsLabel:
		return ""
	case a.Name != "":
		return "it must be an annotation of the " + a.On
	}
	return misspelt(name)
}

func wrongAnnotation(name, on string) string {
	switch a := find(name); {
	case a.Name == UseLabel:
		return "it must be a label of the pod"
	case a.Name != "" && !strings.Contains(a.On, on):
		return "it must be on the " + a.On
	case a.Name != "" || isWritten(name) || strings.HasPrefix(name, TokenEndpointPrefix):
		return ""
	}
	return misspelt(name)
}

func find(name string) Annotation {
	i := slices.IndexFunc(annotations, func(a Annotation) bool { return a.Name == name })
	if i < 0 {
		return Annotation{}
	}
	return annotations[i]
}

// misspelt returns a reason for a name whose prefix is one of the two of this package or similar, and
// "" for all other names.
func misspelt(name string) string {
	prefix, rest, found := strings.Cut(name, "/")
	if !found || len(name) > maxNameLength {
		return ""
	}
	prefix = flagenv.Nearest(strings.ToLower(prefix)+"/", azwiPrefix, ownPrefix)
	if prefix == "" {
		return ""
	}
	var known []string
	for _, a := range annotations {
		known = append(known, a.Name)
	}
	if near := flagenv.Nearest(prefix+strings.ToLower(rest), known...); near != "" {
		return "did you mean " + near + "?"
	}
	return "unknown name"
}
