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

// TestBesideAzwi: azure-workload-identity's webhook on the same pod, before ours or
// after, and both called again since the other changed the pod.
func TestBesideAzwi(t *testing.T) {
	layouts := map[string]azwi.Layout{"v1.6.0": azwi.V160, "older": azwi.Older, "newer": azwi.Newer}
	for _, order := range []string{"azwi ours", "ours azwi", "ours azwi ours", "azwi ours azwi", "azwi ours azwi ours", "ours azwi ours azwi"} {
		for version, layout := range layouts {
			for _, native := range []bool{true, false} {
				for _, postStart := range []bool{true, false} {
					for _, redirect := range []string{"forward", "sealed", "none"} {
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

// azwiAgrees reports whether azure-workload-identity may have the last word. It may
// not where it does not find what it would inject: an init container where there is
// to be none, a proxy in the other of the two lists. And the first time its newer
// versions move the mount from under the variable. Ours is called again then, as the
// API server sorts webhooks by name.
func azwiAgrees(order string, layout azwi.Layout, sameList bool, redirect string) bool {
	moved := layout == azwi.Newer && order == "ours azwi"
	return sameList && redirect != "none" && !moved
}

func testBesideAzwi(t *testing.T, order []string, w azwi.Webhook, c inject.Config, redirect string) {
	pod := injected(initNamed("migrate"), annotate(inject.RedirectAnnotation, redirect))
	for _, who := range order {
		pod = defaulted(pod)
		if who == "ours" {
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
		t.Errorf("another pass: %v, %v, want nothing to do", result.Patch, err)
	}
}

// checkOurs: one proxy and one init container, ours, and first.
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

// checkTokens: AZURE_FEDERATED_TOKEN_FILE leads to a token in each container that has
// it, and each but the redirect's has.
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

// TestRenamed: between two calls the pod got a name, and so would the volume.
func TestRenamed(t *testing.T) {
	pod := injected(func(p *corev1.Pod) { p.Name, p.GenerateName = "", "app-" })
	pod = mutate(t, pod, account(), config())
	pod.Name = "app-x7k2p"
	if result, err := inject.Pod(pod, account(), config()); err != nil || len(result.Patch) > 0 {
		t.Errorf("%v, %v, want nothing to do", result.Patch, err)
	}
}

// TestTemplate: a manifest's pod has no name. What comes of it is a pod that
// azure-workload-identity's webhook may add its own volume to.
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
