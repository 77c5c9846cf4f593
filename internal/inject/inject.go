// Package inject decides what a pod needs so that it gets tokens through the
// proxy: from a pod, its service account and a configuration it makes a JSON patch,
// or says in one line why it will not.
//
//	result, err := inject.Pod(pod, account, config)
//	var refusal *inject.Refusal
//	if refusal, ok := errors.AsType[*inject.Refusal](err); ok { … } // what the pod's author has to change
//	for _, operation := range result.Patch { … }
//
// The admission webhook and the command line differ in how they read and write; what
// they do to a pod is this package alone. It is a pure function: no network, no
// files, no clock, no chance, and the pod that it is given is only read.
//
// The patch names single fields. What this package does not know, such as fields
// newer than the types that it is built with, is never part of it. A second pass,
// over the pod as patched, as the API server's defaults have filled it, or as
// another webhook has changed it, finds nothing to do or mends what was changed.
//
// It knows the words of azure-workload-identity, whose webhook may act on the same
// pod before or after: the label, the annotations and the names of both containers
// are the same, so that each recognises the other's work.
//
// # Security considerations
//
// The pod and its annotations come from whoever may create pods in a namespace. They
// choose among what the configuration offers, their own images included: who may
// create pods can run any image anyway. What goes into a patch are values of those
// annotations in typed fields, never as a shell's words. The init container has
// NET_ADMIN; a pod that could not have it otherwise does not get it here, since
// admission judges the pod after the patch.
package inject

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Pod says what makes a pod one that gets tokens through the proxy. The error is a
// [*Refusal]. A nil service account is one without annotations. The configuration
// has to be valid.
func Pod(pod *corev1.Pod, account *corev1.ServiceAccount, config Config) (Result, error) {
	if warnings, skipped := Skipped(pod); skipped {
		return Result{Warnings: warnings}, nil
	}
	s, err := readSettings(pod, account, config)
	if err != nil {
		return Result{}, err
	}
	if err := s.check(pod, account); err != nil {
		return Result{}, err
	}
	p := &plan{pod: pod, settings: s, account: account}
	p.locateToken()
	if err := p.checkTokenMode(); err != nil {
		return Result{}, err
	}
	if err := p.environments(); err != nil {
		return Result{}, err
	}
	if s.inject {
		p.ownContainers()
		p.metricsLabel()
	}
	p.tokenVolume()
	p.warn()
	return p.Result, nil
}

// Skipped reports whether a pod takes no part, whatever its service account says, and
// what its author should know of that.
func Skipped(pod *corev1.Pod) (warnings []string, skipped bool) {
	if pod.Labels[UseLabel] != "true" {
		return warnUnlabelled(pod), true
	}
	// The kubelet runs what its file says, and the API server takes no service account
	// in the copy: a patch would be refused, or show what is not so.
	if _, mirror := pod.Annotations[corev1.MirrorPodAnnotationKey]; mirror {
		return []string{StaticPod}, true
	}
	return nil, false
}

// StaticPod is why a mirror pod is left alone.
const StaticPod = "a static pod, which its node's kubelet reads from a file: left as it is; change that file"

// plan grows a patch. Its operations are in an order that keeps the indexes of the
// pod as it was: first what goes into containers, then removals from the highest
// index down, then what is put in front.
type plan struct {
	pod      *corev1.Pod
	settings *settings
	account  *corev1.ServiceAccount
	token    token

	Result // as far as it is known
}

func (p *plan) add(path string, value any)     { p.do(Operation{"add", path, value}) }
func (p *plan) replace(path string, value any) { p.do(Operation{"replace", path, value}) }
func (p *plan) remove(path string)             { p.do(Operation{"remove", path, nil}) }

func (p *plan) do(o Operation) { p.Patch = append(p.Patch, o) }

// appendAll adds to a list that holds n elements. One that holds none may not be
// there at all.
func appendAll[T any](p *plan, path string, n int, elements []T) {
	switch {
	case len(elements) == 0:
	case n == 0:
		p.add(path, elements)
	default:
		for _, element := range elements {
			p.add(path+"/-", element)
		}
	}
}

// metricsLabel has the pod found by the PodMonitor of deploy/monitoring.
func (p *plan) metricsLabel() {
	if _, labelled := p.pod.Labels[metricsLabel]; p.settings.adminPort != 0 && !labelled {
		p.add("/metadata/labels/"+escape(metricsLabel), "true")
	}
}

// Result is what is to be done to a pod.
type Result struct {
	// Patch is to be applied in order. Empty: there is nothing to do.
	Patch []Operation

	// Warnings are for the pod's author: one line each, about what will be done and
	// is probably not what was meant.
	Warnings []string
}

// Operation is one step of a JSON patch (RFC 6902): add, replace or remove.
type Operation struct {
	Op string `json:"op"`
	// Path is a JSON pointer into the pod.
	Path string `json:"path"`
	// Value is a container, a volume and so on, in the types of k8s.io/api. Nil: a
	// removal.
	Value any `json:"value,omitempty"`
}

// Refusal says why a pod is not injected, in one line for its author: where the
// fault is, and what to write.
type Refusal struct {
	// Where names the annotation or field, such as spec.hostNetwork.
	Where string
	// Remedy says what is wrong with it and what to write.
	Remedy string
}

func (r *Refusal) Error() string { return r.Where + ": " + r.Remedy }

func refuse(where, format string, args ...any) *Refusal {
	return &Refusal{Where: where, Remedy: fmt.Sprintf(format, args...)}
}

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

// authors lists the containers that are not injected: those of the pod's author.
func authors(pod *corev1.Pod) []place { return slices.DeleteFunc(places(pod), place.ours) }
