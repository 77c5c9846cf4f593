package apiserver

import (
	"context"
	"fmt"
	"strings"
	"testing"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"

	"imds-oidc-proxy/internal/inject"
	"imds-oidc-proxy/test/kit/azwi"
)

// azwiCase is a case of azure-workload-identity's webhook running on the same pod as ours.
type azwiCase struct {
	order        string // "before" or "after": when azwi's webhook runs, relative to ours
	layout       azwi.Layout
	native       bool // azwi injects its proxy as a native sidecar, as on API servers 1.32 and later
	reinvocation admissionregistrationv1.ReinvocationPolicyType
}

func (b azwiCase) String() string {
	return fmt.Sprintf("%s/layout-%d/native-%t/reinvocation-%s", b.order, b.layout, b.native, b.reinvocation)
}

// refused reports whether the API server refuses the pod. It does if azwi's webhook runs
// after ours, has the reinvocation policy IfNeeded, and looks for its proxy among the
// containers only, because our proxy is an init container. azwi's webhook then adds its
// proxy, ours is reinvoked and removes it, and azwi's is reinvoked and adds it again. The
// API server refuses the two containers with the same name, so the pod does not start.
// With its default name, azure-wi-webhook-…, azwi's configuration comes before ours.
func (b azwiCase) refused() bool {
	return b.order == "after" && !b.native && b.reinvocation == admissionregistrationv1.IfNeededReinvocationPolicy
}

// azwiCases returns all combinations of the fields.
func azwiCases() (all []azwiCase) {
	for _, order := range []string{"before", "after"} {
		for _, layout := range []azwi.Layout{azwi.V160, azwi.Older, azwi.Newer} {
			for _, native := range []bool{false, true} {
				for _, reinvocation := range []admissionregistrationv1.ReinvocationPolicyType{admissionregistrationv1.NeverReinvocationPolicy, admissionregistrationv1.IfNeededReinvocationPolicy} {
					all = append(all, azwiCase{order, layout, native, reinvocation})
				}
			}
		}
	}
	return all
}

// TestBesideAzwi checks that the pod gets one proxy and one init container, ours, in any
// order of the two webhooks and any reinvocation policy of azwi's, except as in refused.
func TestBesideAzwi(t *testing.T) {
	server := startAzwi(t)
	for _, c := range azwiCases() {
		t.Run(c.String(), func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
			defer cancel()
			pod, err := createBesideAzwi(ctx, t, server, c)
			if c.refused() {
				if err == nil || !strings.Contains(err.Error(), `Duplicate value: "azwi-proxy"`) {
					t.Errorf("%v, want a refusal of two containers with the same name", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			checkContainers(t, pod)
			for _, name := range []string{"app", "migrate"} {
				checkToken(t, pod, name)
				checkEnv(t, container(t, pod, name), "AZURE_CLIENT_ID="+clientID, "AZURE_TENANT_ID="+tenantID)
			}
			checkMountsDiffer(t, pod)
		})
	}
}

// createBesideAzwi creates a pod that both webhooks get.
func createBesideAzwi(ctx context.Context, t *testing.T, server *azwiServer, c azwiCase) (*corev1.Pod, error) {
	t.Helper()
	namespace := appNamespace(ctx, t)
	// The API server calls webhooks in the order of their configurations' names. Ours
	// begins with imds-.
	configuration := map[string]string{"before": "azwi-", "after": "zz-azwi-"}[c.order] + namespace
	path := server.install(ctx, t, configuration, namespace, azwi.Webhook{Layout: c.layout, NativeSidecar: c.native, TenantID: tenantID}, c.reinvocation)
	before := server.requests(path)
	pod, _, err := create(ctx, t, namespace, injected())
	if server.requests(path) == before {
		t.Fatal("azwi's webhook got no request")
	}
	return pod, err
}

// checkMountsDiffer checks that no container has two mounts at the same path, with which
// the container would not start.
func checkMountsDiffer(t *testing.T, pod *corev1.Pod) {
	t.Helper()
	for _, c := range append(append([]corev1.Container{}, pod.Spec.InitContainers...), pod.Spec.Containers...) {
		seen := map[string]bool{}
		for _, m := range c.VolumeMounts {
			if seen[m.MountPath] {
				t.Errorf("%s: %s is mounted twice", c.Name, m.MountPath)
			}
			seen[m.MountPath] = true
		}
	}
}

// TestAzwiAlone checks that azwi's webhook alone injects its own proxy. Otherwise
// TestBesideAzwi would prove nothing. It also checks that our webhook replaces that proxy
// in a copy of the pod.
func TestAzwiAlone(t *testing.T) {
	server := startAzwi(t)
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	namespace := appNamespace(ctx, t, ownWebhookLabel, "none")
	server.install(ctx, t, "azwi-"+namespace, namespace, azwi.Webhook{TenantID: tenantID}, admissionregistrationv1.NeverReinvocationPolicy)
	pod, _, err := create(ctx, t, namespace, injected())
	if err != nil {
		t.Fatal(err)
	}
	if got := container(t, pod, inject.ProxyName).Image; got != azwi.ProxyImage {
		t.Errorf("the proxy has the image %s, want %s", got, azwi.ProxyImage)
	}
	if got := names(pod.Spec.InitContainers); got != "migrate azwi-proxy-init" {
		t.Errorf("init containers %s, want azwi's order: migrate azwi-proxy-init", got)
	}
	// A copy of the pod, in a namespace with our webhook.
	copied := pod.DeepCopy()
	copied.ResourceVersion, copied.UID, copied.Namespace, copied.Status = "", "", "", corev1.PodStatus{}
	replaced := mustCreate(ctx, t, appNamespace(ctx, t), copied, "")
	checkInjected(t, replaced)
	checkMountsDiffer(t, replaced)
}
