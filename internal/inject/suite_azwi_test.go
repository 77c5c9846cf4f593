package inject_test

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"imds-oidc-proxy/internal/inject"
	"imds-oidc-proxy/test/kit/azwi"
)

// TestBesideAzwi runs azure-workload-identity's webhook on the same pod, before or after ours. Both
// may be called again after the other has changed the pod.
func TestBesideAzwi(t *testing.T) {
	layouts := map[string]azwi.Layout{"v1.6.0": azwi.V160, "older": azwi.Older, "newer": azwi.Newer}
	for _, order := range []string{"azwi ours", "ours azwi", "ours azwi ours", "azwi ours azwi", "azwi ours azwi ours", "ours azwi ours azwi"} {
		for version, layout := range layouts {
			for _, native := range []bool{true, false} {
				for _, postStart := range []bool{true, false} {
					for _, redirect := range []string{"forward", "sealed", "none", "cni-sealed"} {
						if strings.HasSuffix(order, "ours azwi") && !azwiAgrees(order, layout, native == !postStart, redirect) {
							continue
						}
						w := azwi.Webhook{Layout: layout, NativeSidecar: native, TenantID: tenantID}
						c := config()
						c.PostStart = postStart
						t.Run(fmt.Sprintf("%s/%s/native=%t/postStart=%t/%s", order, version, native, postStart, redirect), func(t *testing.T) {
							testBesideAzwi(t, strings.Fields(order), w, c, redirect)
						})
					}
				}
			}
		}
	}
}

// azwiAgrees reports whether the pod is correct if azure-workload-identity's webhook runs last. It
// is not if that webhook does not find its containers and adds them: an init container in a pod
// that must have none, or a proxy in the other list. Nor is it after the first run of its newer
// versions, which move the mount and do not change the variable. In a cluster our webhook is
// called again then, since the API server sorts webhooks by name.
func azwiAgrees(order string, layout azwi.Layout, sameList bool, redirect string) bool {
	moved := layout == azwi.Newer && order == "ours azwi"
	return sameList && redirect != "none" && !moved
}

func testBesideAzwi(t *testing.T, order []string, w azwi.Webhook, c inject.Config, redirect string) {
	pod := injected(initNamed("migrate"), annotate(inject.RedirectAnnotation, redirect))
	for _, webhook := range order {
		pod = defaulted(pod)
		if webhook == "ours" {
			pod = mutate(t, pod, account(), c)
			continue
		}
		var err error
		if pod, err = w.Mutate(pod, account()); err != nil {
			t.Fatal(err)
		}
	}
	checkValid(t, pod)
	checkOurs(t, pod, c, redirect)
	checkTokens(t, pod)
	if result, err := inject.Pod(defaulted(pod), account(), c); err != nil || len(result.Patch) > 0 {
		t.Errorf("another run: %v, %v, want no change", result.Patch, err)
	}
}

// checkOurs checks that the pod has one proxy and one init container, that they are ours, and
// that they are the first containers.
func checkOurs(t *testing.T, pod *corev1.Pod, c inject.Config, redirect string) {
	t.Helper()
	inits, others := []string{inject.ProxyInitName}, []string{"app"}
	if redirect == "none" {
		inits = nil
	}
	if c.PostStart {
		others = append([]string{inject.ProxyName}, others...)
	} else {
		inits = append(inits, inject.ProxyName)
	}
	inits = append(inits, "migrate")
	if got := names(pod.Spec.InitContainers); !slices.Equal(got, inits) {
		t.Errorf("init containers %q, want %q", got, inits)
	}
	if got := names(pod.Spec.Containers); !slices.Equal(got, others) {
		t.Errorf("containers %q, want %q", got, others)
	}
	for _, container := range all(pod) {
		want := map[string]string{inject.ProxyName: c.ProxyImage, inject.ProxyInitName: c.ProxyInitImage}[container.Name]
		if want != "" && container.Image != want {
			t.Errorf("%s is %s, want %s", container.Name, container.Image, want)
		}
	}
}

// checkTokens checks that all containers except the injected init container have
// AZURE_FEDERATED_TOKEN_FILE, and that there is a token at this path.
func checkTokens(t testing.TB, pod *corev1.Pod) {
	t.Helper()
	for _, c := range all(pod) {
		file := env(c, "AZURE_FEDERATED_TOKEN_FILE")
		if file == nil {
			if c.Name != inject.ProxyInitName {
				t.Errorf("%s has no token", c.Name)
			}
			continue
		}
		if c.Name != inject.ProxyInitName && !leadsToToken(pod, c, file.Value) {
			t.Errorf("%s: there is no token at %s: mounts %v", c.Name, file.Value, c.VolumeMounts)
		}
	}
}

func leadsToToken(pod *corev1.Pod, c *corev1.Container, file string) bool {
	for _, m := range c.VolumeMounts {
		for _, v := range pod.Spec.Volumes {
			if v.Name != m.Name || v.Projected == nil {
				continue
			}
			for _, s := range v.Projected.Sources {
				if s.ServiceAccountToken != nil && s.ServiceAccountToken.Audience != "" && path.Join(m.MountPath, s.ServiceAccountToken.Path) == file {
					return true
				}
			}
		}
	}
	return false
}

// TestRenamed checks that a second call does not add a volume if the pod got its name after the
// first.
func TestRenamed(t *testing.T) {
	pod := injected(func(p *corev1.Pod) { p.Name, p.GenerateName = "", "app-" })
	pod = mutate(t, pod, account(), config())
	pod.Name = "app-x7k2p"
	if result, err := inject.Pod(pod, account(), config()); err != nil || len(result.Patch) > 0 {
		t.Errorf("%v, %v, want no change", result.Patch, err)
	}
}

// TestTemplate checks a pod template of a manifest, which has no name. azure-workload-identity's
// webhook may add its own volume to the pod that is created.
func TestTemplate(t *testing.T) {
	for _, layout := range []azwi.Layout{azwi.V160, azwi.Older, azwi.Newer} {
		pod := injected(func(p *corev1.Pod) { p.Name = "" })
		pod = mutate(t, pod, account(), config())
		pod.GenerateName = "app-"
		pod, err := azwi.Webhook{Layout: layout, NativeSidecar: true, TenantID: tenantID}.Mutate(pod, account())
		if err != nil {
			t.Fatal(err)
		}
		checkValid(t, pod)
		checkTokens(t, pod)
		pod = mutate(t, pod, account(), config())
		checkValid(t, pod)
		checkTokens(t, pod)
	}
}
