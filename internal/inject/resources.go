package inject

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// guaranteedCPU and guaranteedMemory are the requests and limits of injected containers in a pod
// of the QoS class Guaranteed, where none are configured. The CPU limit is far above the average
// use of 5m: a lower one delays the tokens of all clients until the next period of 100 ms.
var guaranteedCPU, guaranteedMemory = resource.MustParse("100m"), resource.MustParse("64Mi")

// fitResources adapts the resources of the injected containers to those of the pod.
func (p *plan) fitResources() {
	s := p.settings
	injected := []struct {
		annotation string
		resources  *corev1.ResourceRequirements
	}{{ProxyResourcesAnnotation, s.ProxyResources}, {ProxyInitResourcesAnnotation, s.ProxyInitResources}}
	if s.redirect == redirectNone {
		injected = injected[:1] // there is no init container
	}
	shared, guaranteed := hasPodLevel(p.pod), isGuaranteed(p.pod)
	s.memoryLimit = memoryLimit(*s.ProxyResources)
	for _, c := range injected {
		_, annotated := p.pod.Annotations[c.annotation]
		switch {
		case shared:
			if removed := shareResources(c.resources); annotated && removed {
				p.warnf("annotation %s has no effect on cpu and memory: all containers share those in spec.resources", c.annotation)
			}
		case guaranteed && !annotated:
			guarantee(c.resources)
		case guaranteed && !guaranteesAll(*c.resources):
			p.warnf("annotation %s makes the pod Burstable, which is Guaranteed without it: set limits of cpu and memory, and no other requests", c.annotation)
		}
	}
	if !shared {
		s.memoryLimit = memoryLimit(*s.ProxyResources)
	}
}

// hasPodLevel reports whether the pod has resources in spec.resources. The API server then refuses
// containers that together request more, and native sidecars count. It also writes the sum of the
// containers' requests into spec.resources, where there are other limits, so that the sum must not
// grow after its defaults either.
func hasPodLevel(pod *corev1.Pod) bool {
	return pod.Spec.Resources != nil && len(pod.Spec.Resources.Requests)+len(pod.Spec.Resources.Limits) > 0
}

// shareResources removes requests and limits of CPU and memory, and reports whether there were
// any. The container then shares the pod's resources, whose QoS class depends on spec.resources
// alone.
func shareResources(r *corev1.ResourceRequirements) (removed bool) {
	for _, list := range []corev1.ResourceList{r.Requests, r.Limits} {
		before := len(list)
		delete(list, corev1.ResourceCPU)
		delete(list, corev1.ResourceMemory)
		removed = removed || len(list) < before
	}
	return removed
}

// isGuaranteed reports whether the pod has the QoS class Guaranteed without injected containers:
// every container has limits of CPU and memory, and requests that equal them.
func isGuaranteed(pod *corev1.Pod) bool {
	author := authorContainers(pod)
	return pod.Spec.Resources == nil && len(author) > 0 && !slices.ContainsFunc(author, func(c containerRef) bool { return !guaranteesAll(c.Resources) })
}

func guaranteesAll(r corev1.ResourceRequirements) bool {
	for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
		limit := r.Limits[name]
		request, given := r.Requests[name] // the default is the limit
		if limit.IsZero() || given && request.Cmp(limit) != 0 {
			return false
		}
	}
	return true
}

// guarantee makes requests and limits of CPU and memory equal: to the limit, or else to the
// request, which is raised to the value that Guaranteed pods get.
func guarantee(r *corev1.ResourceRequirements) {
	if r.Limits == nil {
		r.Limits = corev1.ResourceList{}
	}
	if r.Requests == nil {
		r.Requests = corev1.ResourceList{}
	}
	for name, least := range map[corev1.ResourceName]resource.Quantity{corev1.ResourceCPU: guaranteedCPU, corev1.ResourceMemory: guaranteedMemory} {
		limit := r.Limits[name]
		if limit.IsZero() {
			if limit = r.Requests[name]; limit.Cmp(least) < 0 {
				limit = least
			}
		}
		r.Limits[name], r.Requests[name] = limit, limit
	}
}
