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

// besideAzwi is one way for the two webhooks to meet.
type besideAzwi struct {
	order        string // of azwi's webhook: before or after ours
	layout       azwi.Layout
	native       bool // azwi's proxy as a native sidecar, as on servers from 1.32 on
	reinvocation admissionregistrationv1.ReinvocationPolicyType
}

func (b besideAzwi) String() string {
	return fmt.Sprintf("%s/layout-%d/native-%t/reinvocation-%s", b.order, b.layout, b.native, b.reinvocation)
}

// refused is the way that does not work: azwi's webhook comes last and is asked again,
// and looks for its proxy among the containers, where ours never is. It puts one there
// each time, ours takes it out, and azwi has the last word. The API server refuses two
// containers of one name, so that nothing starts. azwi's own configuration is called
// azure-wi-webhook-…, which comes before ours.
func (b besideAzwi) refused() bool {
	return b.order == "after" && !b.native && b.reinvocation == admissionregistrationv1.IfNeededReinvocationPolicy
}

func allWaysBesideAzwi() (all []besideAzwi) {
	for _, order := range []string{"before", "after"} {
		for _, layout := range []azwi.Layout{azwi.V160, azwi.Older, azwi.Newer} {
			for _, native := range []bool{false, true} {
				for _, reinvocation := range []admissionregistrationv1.ReinvocationPolicyType{admissionregistrationv1.NeverReinvocationPolicy, admissionregistrationv1.IfNeededReinvocationPolicy} {
					all = append(all, besideAzwi{order, layout, native, reinvocation})
				}
			}
		}
	}
	return all
}

// TestBesideAzwi: whichever of the two webhooks comes first, and whether azwi's is
// asked again or not, the pod ends with one proxy and one init container: ours.
func TestBesideAzwi(t *testing.T) {
	server := startAzwi(t)
	for _, way := range allWaysBesideAzwi() {
		t.Run(way.String(), func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			pod, err := meet(ctx, t, server, way)
			if way.refused() {
				if err == nil || !strings.Contains(err.Error(), `Duplicate value: "azwi-proxy"`) {
					t.Errorf("%v, want the refusal of two containers of one name", err)
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

// meet makes a pod that both webhooks are asked about.
func meet(ctx context.Context, t *testing.T, server *azwiServer, way besideAzwi) (*corev1.Pod, error) {
	t.Helper()
	namespace := appNamespace(ctx, t)
	// Ours is called imds-….
	configuration := map[string]string{"before": "azwi-", "after": "zz-azwi-"}[way.order] + namespace
	path := server.install(ctx, t, configuration, namespace, azwi.Webhook{Layout: way.layout, NativeSidecar: way.native, TenantID: tenantID}, way.reinvocation)
	before := server.requests(path)
	pod, _, err := create(ctx, t, namespace, injected())
	if server.requests(path) == before {
		t.Fatal("azwi's webhook was not asked")
	}
	return pod, err
}

// checkMountsDiffer checks what kubelets trip over: a path that is mounted twice.
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

// TestAzwiWithoutUs: what azwi does where our webhook is not, so that the test before
// shows something; and that a copy of such a pod becomes ours.
func TestAzwiWithoutUs(t *testing.T) {
	server := startAzwi(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	namespace := appNamespace(ctx, t, ownWebhookLabel, "nobody")
	server.install(ctx, t, "azwi-"+namespace, namespace, azwi.Webhook{TenantID: tenantID}, admissionregistrationv1.NeverReinvocationPolicy)
	pod, _, err := create(ctx, t, namespace, injected())
	if err != nil {
		t.Fatal(err)
	}
	if got := container(t, pod, inject.ProxyName).Image; got != azwi.ProxyImage {
		t.Errorf("image %s, want azwi's: the stand-in shows nothing otherwise", got)
	}
	if got := names(pod.Spec.InitContainers); got != "migrate azwi-proxy-init" {
		t.Errorf("init containers %s, want azwi's order", got)
	}
	// The same pod where our webhook is: as one that is made from a copy.
	copied := pod.DeepCopy()
	copied.ResourceVersion, copied.UID, copied.Namespace, copied.Status = "", "", "", corev1.PodStatus{}
	mended := mustCreate(ctx, t, appNamespace(ctx, t), copied, "")
	checkOurs(t, mended)
	checkMountsDiffer(t, mended)
}
