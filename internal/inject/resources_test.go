package inject_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"imds-oidc-proxy/internal/inject"
)

// resources returns resources from texts such as "cpu=100m,memory=64Mi".
func resources(requests, limits string) corev1.ResourceRequirements {
	list := func(text string) corev1.ResourceList {
		l := corev1.ResourceList{}
		for item := range strings.SplitSeq(text, ",") {
			if name, quantity, ok := strings.Cut(item, "="); ok {
				l[corev1.ResourceName(name)] = resource.MustParse(quantity)
			}
		}
		return l
	}
	return corev1.ResourceRequirements{Requests: list(requests), Limits: list(limits)}
}

// each gives all of the author's containers these resources.
func each(r corev1.ResourceRequirements) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		for _, c := range all(p) {
			c.Resources = *r.DeepCopy()
		}
	}
}

func podResources(requests, limits string) func(*corev1.Pod) {
	return func(p *corev1.Pod) { r := resources(requests, limits); p.Spec.Resources = &r }
}

// invalidResources returns why the API server refuses the resources of a pod, or "". It has the
// rules of validatePodResourceConsistency in pkg/apis/core/validation of Kubernetes 1.36, after the
// defaults: the API server's own code needs all of Kubernetes. test/cluster has one of
// these pods.
func invalidResources(pod *corev1.Pod) string {
	pod = defaulted(pod)
	for _, c := range all(pod) {
		for name, limit := range c.Resources.Limits {
			if request := c.Resources.Requests[name]; request.Cmp(limit) > 0 {
				return fmt.Sprintf("%s: request of %s above its limit", c.Name, name)
			}
		}
	}
	level := pod.Spec.Resources
	if level == nil {
		return ""
	}
	for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
		request, requested := level.Requests[name]
		limit, limited := level.Limits[name]
		if sum := aggregate(pod, name); requested && sum.Cmp(request) > 0 {
			return fmt.Sprintf("pod-level request of %s, %s, below the sum of its containers, %s", name, request.String(), sum.String())
		}
		for _, c := range all(pod) {
			if own := c.Resources.Limits[name]; limited && own.Cmp(limit) > 0 {
				return fmt.Sprintf("%s: limit of %s above the pod's", c.Name, name)
			}
		}
	}
	return ""
}

// aggregate returns what the scheduler reserves for the containers of a pod: those that run
// together, and at least what each init container needs together with the sidecars before it.
func aggregate(pod *corev1.Pod, name corev1.ResourceName) resource.Quantity {
	var together, sidecars, most resource.Quantity
	for _, c := range pod.Spec.InitContainers {
		request := c.Resources.Requests[name]
		if c.RestartPolicy != nil {
			sidecars.Add(request)
			request = resource.Quantity{}
		}
		request.Add(sidecars)
		if request.Cmp(most) > 0 {
			most = request
		}
	}
	together.Add(sidecars)
	for _, c := range pod.Spec.Containers {
		together.Add(c.Resources.Requests[name])
	}
	if most.Cmp(together) > 0 {
		return most
	}
	return together
}

// isGuaranteed computes the QoS class as ComputePodQOS of Kubernetes does: of spec.resources alone,
// if there are any.
func isGuaranteed(pod *corev1.Pod) bool {
	pod = defaulted(pod)
	var lists []corev1.ResourceRequirements
	for _, c := range all(pod) {
		lists = append(lists, c.Resources)
	}
	if level := pod.Spec.Resources; level != nil {
		lists = []corev1.ResourceRequirements{*level}
	}
	return !slices.ContainsFunc(lists, func(r corev1.ResourceRequirements) bool {
		for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
			limit, request := r.Limits[name], r.Requests[name]
			if _, given := r.Requests[name]; !given {
				request = limit
			}
			if limit.IsZero() || request.Cmp(limit) != 0 {
				return true
			}
		}
		return false
	})
}

// TestResources checks that a pod that the API server accepts is accepted after injection too, and
// stays Guaranteed or has a warning.
func TestResources(t *testing.T) {
	small, guaranteed := resources("", "cpu=100m,memory=100Mi"), resources("cpu=1,memory=1Gi", "cpu=1,memory=1Gi")
	tight := podResources("cpu=200m,memory=200Mi", "cpu=200m,memory=200Mi")
	pods := map[string]func(*corev1.Pod){
		"none":               func(*corev1.Pod) {},
		"guaranteed":         each(guaranteed),
		"limits alone":       each(small),
		"zero limits":        each(resources("", "cpu=0,memory=0")),
		"burstable":          each(resources("cpu=1", "cpu=2,memory=1Gi")),
		"one not guaranteed": func(p *corev1.Pod) { p.Spec.Containers[0].Resources = guaranteed },
		"pod level": func(p *corev1.Pod) {
			each(small)(p)
			p.Spec.InitContainers = nil
			podResources("cpu=100m,memory=100Mi", "cpu=100m,memory=100Mi")(p)
		},
		"pod level, with a sidecar": func(p *corev1.Pod) {
			each(small)(p)
			p.Spec.InitContainers[0].RestartPolicy = new(corev1.ContainerRestartPolicyAlways)
			tight(p)
		},
		"pod level, no containers'":       podResources("cpu=1m,memory=1Mi", "cpu=1m,memory=1Mi"),
		"pod level, limits alone":         podResources("", "cpu=1m,memory=1Mi"),
		"pod level, requests alone":       podResources("cpu=1m,memory=1Mi", ""),
		"pod level, memory of containers": func(p *corev1.Pod) { each(resources("memory=100Mi", ""))(p); podResources("", "cpu=1")(p) },
		"pod level, cpu alone":            podResources("cpu=1m", "cpu=2m"),
		"pod level, limit below ours":     podResources("memory=1Mi", "memory=20Mi"),
		"pod level, empty":                podResources("", ""),
		"pod level, guaranteed by each":   func(p *corev1.Pod) { each(guaranteed)(p); podResources("cpu=2,memory=2Gi", "cpu=3,memory=3Gi")(p) },
	}
	given := map[string]func(*corev1.Pod, *inject.Config){
		"default": func(*corev1.Pod, *inject.Config) {},
		"by flag": func(_ *corev1.Pod, c *inject.Config) {
			r := resources("cpu=250m", "memory=300Mi")
			c.ProxyResources, c.ProxyInitResources = &r, &r
		},
		"annotation": func(p *corev1.Pod, _ *inject.Config) {
			annotate(inject.ProxyResourcesAnnotation, `{"limits":{"memory":"128Mi"}}`)(p)
		},
		"guaranteed annotation": func(p *corev1.Pod, _ *inject.Config) {
			for _, name := range []string{inject.ProxyResourcesAnnotation, inject.ProxyInitResourcesAnnotation} {
				annotate(name, `{"limits":{"memory":"128Mi","cpu":"50m"}}`)(p)
			}
		},
		"annotation of the init container": func(p *corev1.Pod, _ *inject.Config) { annotate(inject.ProxyInitResourcesAnnotation, `{}`)(p) },
	}
	kept := 0
	for what, change := range pods {
		for how, give := range given {
			for _, redirect := range []string{"forward", "none", "cni-forward"} {
				for variant := range 4 {
					postStart, webhook := variant%2 == 1, variant/2 == 1
					name := fmt.Sprintf("%s, %s, %s, postStart %t", what, how, redirect, postStart)
					c := config()
					c.PostStart = postStart
					pod := injected(initNamed("migrate"), change, annotate(inject.RedirectAnnotation, redirect))
					give(pod, &c)
					if webhook { // gets the pod with the API server's defaults
						pod = defaulted(pod)
					}
					if reason := invalidResources(pod); reason != "" {
						t.Fatalf("%s: the pod is invalid before injection: %s", name, reason)
					}
					result, err := inject.Pod(pod, account(), c)
					if err != nil {
						t.Fatal(err)
					}
					got := mutate(t, pod, account(), c)
					if reason := invalidResources(got); reason != "" {
						t.Errorf("%s: %s", name, reason)
					}
					warned := slices.ContainsFunc(result.Warnings, func(w string) bool { return strings.Contains(w, "makes the pod Burstable") })
					if before, after := isGuaranteed(pod), isGuaranteed(got); warned != (before && !after) {
						t.Errorf("%s: guaranteed: %t, then %t; warnings %q", name, before, after, result.Warnings)
					} else if before && after {
						kept++
					}
					if again, err := inject.Pod(defaulted(got), account(), c); err != nil || len(again.Patch) > 0 {
						t.Errorf("%s: second pass: %v, %v", name, again.Patch, err)
					}
				}
			}
		}
	}
	if kept == 0 {
		t.Error("no pod stays Guaranteed")
	}
}

// TestResourceWarnings checks the texts of the warnings.
func TestResourceWarnings(t *testing.T) {
	guaranteed := each(resources("", "cpu=1,memory=1Gi"))
	for _, c := range []struct {
		pod  *corev1.Pod
		want []string
	}{
		{injected(guaranteed, annotate(inject.ProxyResourcesAnnotation, `{"requests":{"cpu":"5m"},"limits":{"cpu":"1","memory":"64Mi"}}`)),
			[]string{"annotation imds-oidc-proxy/proxy-resources makes the pod Burstable, which is Guaranteed without it: set limits of cpu and memory, and no other requests"}},
		{injected(podResources("cpu=1", "memory=1Gi"), annotate(inject.ProxyInitResourcesAnnotation, `{"limits":{"memory":"64Mi"}}`)),
			[]string{"annotation imds-oidc-proxy/proxy-init-resources has no effect on cpu and memory: all containers share those in spec.resources"}},
		{injected(podResources("cpu=1", ""), annotate(inject.ProxyInitResourcesAnnotation, `{"limits":{"ephemeral-storage":"64Mi"}}`)), nil},
	} {
		result, err := inject.Pod(c.pod, account(), config())
		if err != nil || !slices.Equal(result.Warnings, c.want) {
			t.Errorf("%v, %q, want %q", err, result.Warnings, c.want)
		}
	}
}

// TestMemoryLimit checks that GOMEMLIMIT follows the container's limit, and the configured one
// where the pod's containers share theirs.
func TestMemoryLimit(t *testing.T) {
	for _, c := range []struct {
		change func(*corev1.Pod)
		want   string
	}{
		{func(*corev1.Pod) {}, "48MiB"},
		{each(resources("", "cpu=1,memory=1Gi")), "48MiB"},
		{podResources("cpu=1", "memory=1Gi"), "48MiB"},
		{func(p *corev1.Pod) {
			each(resources("", "cpu=1,memory=1Gi"))(p)
			annotate(inject.ProxyResourcesAnnotation, `{"limits":{"memory":"100Mi"}}`)(p)
		}, "75MiB"},
	} {
		if got := value(&mutate(t, injected(c.change), account(), config()).Spec.InitContainers[1], "GOMEMLIMIT"); got != c.want {
			t.Errorf("GOMEMLIMIT is %s, want %s", got, c.want)
		}
	}
	c := config()
	r := resources("memory=128Mi", "") // a Guaranteed pod gets the limit
	c.ProxyResources = &r
	if got := value(&mutate(t, injected(each(resources("", "cpu=1,memory=1Gi"))), account(), c).Spec.InitContainers[1], "GOMEMLIMIT"); got != "96MiB" {
		t.Errorf("GOMEMLIMIT is %s, want 96MiB", got)
	}
}

// TestPodLevelCase checks the pod of a report: with pod-level resources that equal its
// container's, it was refused after injection.
func TestPodLevelCase(t *testing.T) {
	text, err := os.ReadFile("testdata/cases/pod-level-resources.yaml")
	if err != nil {
		t.Fatal(err)
	}
	pod := mutate(t, decode(t, text), account(), config())
	if reason := invalidResources(pod); reason != "" || !isGuaranteed(pod) {
		t.Errorf("%s; guaranteed: %t", reason, isGuaranteed(pod))
	}
}

// TestCorporateProxyCase checks the pod of a report: what an administrator adds to the proxy was
// lost with the next image.
func TestCorporateProxyCase(t *testing.T) {
	text, err := os.ReadFile("testdata/cases/corporate-proxy.yaml")
	if err != nil {
		t.Fatal(err)
	}
	pod := mutate(t, decode(t, text), account(), config())
	proxy := find(pod.Spec.InitContainers, inject.ProxyName)
	variableOf("HTTPS_PROXY", corporateProxy)(proxy)
	variableOf("PROXY_CA_FILE", "/ca/ca.crt")(proxy)
	mounts("corporate-ca", "/ca")(proxy)
	proxy.Resources.Limits[corev1.ResourceCPU] = resource.MustParse("100m")
	want := proxy.DeepCopy()
	c := config()
	c.ProxyImage = "registry.example.test/p:v2"
	want.Image = c.ProxyImage
	if got := find(mutate(t, pod, account(), c).Spec.InitContainers, inject.ProxyName); got.Image != c.ProxyImage || !survives(t, want, got) {
		t.Errorf("got\n%v, want\n%v", got, want)
	}
}
