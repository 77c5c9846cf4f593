// Package inject computes the changes with which a pod gets tokens through the proxy. From a
// pod, its service account and a configuration it computes a JSON patch, or returns an error of
// one line that says why the pod is refused.
//
//	result, err := inject.Pod(pod, account, config)
//	if refusal, ok := errors.AsType[*inject.Refusal](err); ok { … } // what the pod's author has to change
//	for _, operation := range result.Patch { … }
//
// The admission webhook and imds-migrate both use this package, so they change a pod in the same
// way. [Pod] is a pure function: it uses no network, files, clock or random numbers, and does not
// change its arguments. Its time and memory are linear in the size of the pod, which the pod's
// author chooses.
//
// The patch changes single fields. It never contains fields that this package does not know,
// such as fields that are newer than its types. Pod is idempotent: for a pod that was patched,
// also after the API server has added defaults, it returns an empty patch. If another webhook has
// changed the injected parts, the patch restores them. What others have added to an injected
// container stays, also when the container is replaced.
//
// The package uses the label, the annotations and the container names of
// azure-workload-identity, whose webhook may change the same pod before or after. Each of the two
// webhooks recognizes the changes of the other.
//
// # Security considerations
//
// Everyone who may create pods in a namespace chooses the pod and its annotations. The
// annotations choose among the settings that the configuration allows. They may also set the
// images, because anyone who may create pods can run any image anyway. The patch contains values
// of annotations only in typed fields, and never in a shell command. The init container has
// NET_ADMIN, unless the CNI plugin installs the redirect. This gives no pod a privilege that admission would refuse, because the API server
// checks the pod after the patch.
package inject

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Pod is [PodContext] without a deadline.
func Pod(pod *corev1.Pod, account *corev1.ServiceAccount, config Config) (Result, error) {
	return PodContext(context.Background(), pod, account, config)
}

// PodContext returns the patch with which a pod gets tokens through the proxy. The error is a
// [*Refusal], or that of ctx, which is checked between the steps and for each container. A nil
// service account means one without annotations. The configuration must be valid.
func PodContext(ctx context.Context, pod *corev1.Pod, account *corev1.ServiceAccount, config Config) (Result, error) {
	if warnings, skipped := Skipped(pod); skipped {
		return Result{Warnings: warnings}, nil
	}
	s, err := readSettings(pod, account, config)
	if err != nil {
		return Result{}, err
	}
	p := &plan{pod: pod, settings: s, account: account, earlier: earlierValues(pod)}
	for _, step := range []func() error{
		func() error { return s.check(pod, account) },
		infallible(p.locateToken),
		p.locateBinding,
		p.checkTokenMode,
		func() error { return p.environments(ctx) },
		infallible(p.ownParts),
		infallible(p.recordValues),
		infallible(p.requestRedirect),
		func() error { return p.addConfigMapVolumes(p.tokenVolume()) },
		infallible(p.warn),
		ctx.Err,
	} {
		if err := ctx.Err(); err != nil {
			return Result{}, err
		}
		if err := step(); err != nil {
			return Result{}, err
		}
	}
	return p.Result, nil
}

func infallible(step func()) func() error {
	return func() error { step(); return nil }
}

// Skipped reports whether a pod is not changed, independent of its service account. It also
// returns warnings for the pod's author.
func Skipped(pod *corev1.Pod) (warnings []string, skipped bool) {
	if pod.Labels[UseLabel] != "true" {
		return warnUnlabelled(pod), true
	}
	// The kubelet runs the pod of its own file, and this mirror pod is a copy. The API server
	// refuses a service account in it, and other changes would have no effect.
	if _, mirror := pod.Annotations[corev1.MirrorPodAnnotationKey]; mirror {
		return []string{StaticPod}, true
	}
	return nil, false
}

// StaticPod is the warning about a mirror pod.
const StaticPod = "static pod, which its node's kubelet reads from a file: not changed; change that file instead"

// plan collects the operations of a patch. In their order, the indexes of the original pod stay
// valid: first changes in containers, then removals from the highest index down, then containers
// that are inserted at the front.
type plan struct {
	pod      *corev1.Pod
	settings *settings
	account  *corev1.ServiceAccount
	token    token
	binding  binding
	earlier  map[string]string // [earlierValues]

	injectedNames map[string]bool // by injectedVolumes

	Result // so far
}

func (p *plan) add(path string, value any)     { p.do(Operation{"add", path, value}) }
func (p *plan) replace(path string, value any) { p.do(Operation{"replace", path, value}) }
func (p *plan) remove(path string)             { p.do(Operation{"remove", path, nil}) }

func (p *plan) do(o Operation) { p.Patch = append(p.Patch, o) }

// appendAll appends elements to a list of n elements. If n is zero it adds the list, which may
// be missing in the pod.
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

// metricsLabel adds the label that the PodMonitor of deploy/monitoring selects.
func (p *plan) metricsLabel() {
	if _, labelled := p.pod.Labels[metricsLabel]; p.settings.adminPort != 0 && !labelled {
		p.add("/metadata/labels/"+escape(metricsLabel), "true")
	}
}

// Result is the change to a pod.
type Result struct {
	// Patch is a list of operations to apply in order. If it is empty, the pod is not changed.
	Patch []Operation

	// Warnings are for the pod's author: one line for each setting or change that was
	// probably not intended.
	Warnings []string
}

// Operation is one step of a JSON patch (RFC 6902): add, replace or remove.
type Operation struct {
	Op string `json:"op"`
	// Path is a JSON pointer into the pod.
	Path string `json:"path"`
	// Value is a container, a volume or another part of a pod, in the types of k8s.io/api.
	// If it is nil, the operation is remove.
	Value any `json:"value,omitempty"`
}

// Refusal is the error for a pod that is refused. Its text is one line for the pod's author.
type Refusal struct {
	// Where is the annotation or field, such as spec.hostNetwork.
	Where string
	// Remedy is what is wrong with it and how to fix it.
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

// escape returns a name as a token of a JSON pointer (RFC 6901).
func escape(name string) string {
	return strings.NewReplacer("~", "~0", "/", "~1").Replace(name)
}

func at(list string, index int) string { return fmt.Sprintf("%s/%d", list, index) }

// containerRef is a container and its position in the pod.
type containerRef struct {
	*corev1.Container
	list  string
	index int
}

func (c containerRef) path() string { return at(c.list, c.index) }

// field returns the path of a field for the pod's author, with the container's name in place of
// its index.
func (c containerRef) field(of string) string {
	return fmt.Sprintf("%s[%s].%s", strings.ReplaceAll(c.list[1:], "/", "."), shorten(c.Name), of)
}

// ours reports whether the container has the name of an injected one.
func (c containerRef) ours() bool { return isOurs(*c.Container) }

// allContainers returns all containers of a pod, init containers first.
func allContainers(pod *corev1.Pod) []containerRef {
	var all []containerRef
	for i := range pod.Spec.InitContainers {
		all = append(all, containerRef{&pod.Spec.InitContainers[i], initContainers, i})
	}
	for i := range pod.Spec.Containers {
		all = append(all, containerRef{&pod.Spec.Containers[i], containers, i})
	}
	return all
}

// authorContainers returns the containers of the pod's author, which are not injected.
func authorContainers(pod *corev1.Pod) []containerRef {
	return slices.DeleteFunc(allContainers(pod), containerRef.ours)
}
