package apiserver

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"

	"imds-oidc-proxy/internal/inject"
	"imds-oidc-proxy/test/cluster"
	"imds-oidc-proxy/test/kit/azwi"
)

// azwiCase is a case of azure-workload-identity's webhook running on the same pod as ours.
type azwiCase struct {
	order        string // "before" or "after": when azwi's webhook runs, relative to ours
	layout       azwi.Layout
	native       bool // azwi injects its proxy as a native sidecar, as on API servers 1.32 and later
	reinvocation admissionregistrationv1.ReinvocationPolicyType
	endpoint     azwi.TokenEndpoint // of identity bindings; zero: none
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
					all = append(all, azwiCase{order: order, layout: layout, native: native, reinvocation: reinvocation})
				}
			}
		}
	}
	return all
}

func startAzwi(t *testing.T) *cluster.Azwi {
	t.Helper()
	server, err := running.StartAzwi()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	return server
}

// install installs the webhook until the test ends.
func install(ctx context.Context, t *testing.T, server *cluster.Azwi, configuration, namespace string, hook azwi.Webhook, reinvocation admissionregistrationv1.ReinvocationPolicyType) (path string) {
	t.Helper()
	path, err := server.Install(ctx, configuration, namespace, hook, reinvocation, injected())
	t.Cleanup(func() { _ = server.Uninstall(configuration) })
	if err != nil {
		t.Fatal(err)
	}
	return path
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
			for _, name := range []string{"app", "migrate", inject.ProxyName} {
				checkToken(t, pod, name)
				checkEnv(t, container(t, pod, name), "AZURE_CLIENT_ID="+clientID, "AZURE_TENANT_ID="+tenantID)
			}
			checkMountsDiffer(t, pod)
		})
	}
}

// createBesideAzwi creates a pod that both webhooks get.
func createBesideAzwi(ctx context.Context, t *testing.T, server *cluster.Azwi, c azwiCase, edits ...edit) (*corev1.Pod, error) {
	t.Helper()
	namespace := appNamespace(ctx, t)
	// The API server calls webhooks in the order of their configurations' names. Ours
	// begins with imds-.
	configuration := map[string]string{"before": "azwi-", "after": "zz-azwi-"}[c.order] + namespace
	path := install(ctx, t, server, configuration, namespace, azwi.Webhook{Layout: c.layout, NativeSidecar: c.native, TenantID: tenantID, Endpoint: c.endpoint}, c.reinvocation)
	before := server.Requests(path)
	pod, _, err := create(ctx, t, namespace, injected(edits...))
	if server.Requests(path) == before {
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

// TestBesideAKS checks that the injected proxy has the identity binding that AKS's webhook
// gives to the application's containers, in any order of the two webhooks.
func TestBesideAKS(t *testing.T) {
	server := startAzwi(t)
	for _, c := range azwiCases() {
		if c.refused() || c.layout == azwi.Older {
			continue // no version with this layout has identity bindings
		}
		c.endpoint = azwi.AKS()
		t.Run(c.String(), func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
			defer cancel()
			pod, err := createBesideAzwi(ctx, t, server, c, annotate(inject.IdentityBindingAnnotation, "true"))
			if err != nil {
				t.Fatal(err)
			}
			checkContainers(t, pod)
			checkMountsDiffer(t, pod)
			if volumes := tokenVolumes(pod); len(volumes) > 0 {
				t.Errorf("the pod has a token for Entra: %v", volumes)
			}
			for _, name := range []string{"app", "migrate", inject.ProxyName} {
				checkAKS(t, pod, container(t, pod, name))
			}
		})
	}
}

// checkAKS checks what AKS's webhook gives to a container.
func checkAKS(t *testing.T, pod *corev1.Pod, c *corev1.Container) {
	t.Helper()
	aks := azwi.AKS()
	checkEnv(t, c, "AZURE_KUBERNETES_TOKEN_PROXY="+aks.TokenProxy, "AZURE_KUBERNETES_SNI_NAME="+aks.SNIName, "AZURE_CLIENT_ID="+clientID)
	for variable, what := range map[string]string{"AZURE_FEDERATED_TOKEN_FILE": aks.Audience, "AZURE_KUBERNETES_CA_FILE": aks.CAConfigMap} {
		file, _ := env(c, variable)
		if !slices.Contains(mountedFiles(pod, c), file+" "+what) {
			t.Errorf("%s: %s=%s: there is no %s: %q", c.Name, variable, file, what, mountedFiles(pod, c))
		}
	}
}

// mountedFiles returns the files of projected volumes in a container: PATH AUDIENCE or
// PATH CONFIGMAP.
func mountedFiles(pod *corev1.Pod, c *corev1.Container) (all []string) {
	for _, m := range c.VolumeMounts {
		i := slices.IndexFunc(pod.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == m.Name && v.Projected != nil })
		if i < 0 {
			continue
		}
		for _, s := range pod.Spec.Volumes[i].Projected.Sources {
			switch {
			case s.ServiceAccountToken != nil:
				all = append(all, m.MountPath+"/"+s.ServiceAccountToken.Path+" "+s.ServiceAccountToken.Audience)
			case s.ConfigMap != nil:
				all = append(all, m.MountPath+"/"+s.ConfigMap.Items[0].Path+" "+s.ConfigMap.Name)
			}
		}
	}
	return all
}

// TestAzwiAlone checks that azwi's webhook alone injects its own proxy. Otherwise
// TestBesideAzwi would prove nothing. It also checks that our webhook replaces that proxy
// in a copy of the pod.
func TestAzwiAlone(t *testing.T) {
	server := startAzwi(t)
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	namespace := appNamespace(ctx, t, ownWebhookLabel, "none")
	install(ctx, t, server, "azwi-"+namespace, namespace, azwi.Webhook{TenantID: tenantID}, admissionregistrationv1.NeverReinvocationPolicy)
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
