package main

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"imds-oidc-proxy/test/kit/azwi"
)

// TestInjectedTemplatesPassAzureWorkloadIdentity runs azure-workload-identity's webhook on a pod of an
// injected Deployment. The pod has a name that the manifest does not have. The webhook must not add
// a second volume or mount with the same name or path: the API server would refuse the pod.
func TestInjectedTemplatesPassAzureWorkloadIdentity(t *testing.T) {
	const manifest = `{"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "shop"}, "spec": {"template": {
  "metadata": {
    "labels": {"azure.workload.identity/use": "true"},
    "annotations": {"azure.workload.identity/inject-proxy-sidecar": "true"}},
  "spec": {"containers": [{"name": "app", "image": "registry.example.test/app:1"}]}}}}`
	for _, layout := range []azwi.Layout{azwi.V160, azwi.Older, azwi.Newer} {
		// Before Kubernetes 1.32 that webhook looks for its proxy only in containers.
		for native, mode := range map[bool]string{true: "--native-sidecar=on", false: "--native-sidecar=off"} {
			var deployment appsv1.Deployment
			injected, _ := filter(t, commandInject, []byte(manifest), mode)
			if err := json.Unmarshal(injected, &deployment); err != nil {
				t.Fatal(err)
			}
			pod := &corev1.Pod{ObjectMeta: deployment.Spec.Template.ObjectMeta, Spec: deployment.Spec.Template.Spec}
			pod.GenerateName = "shop-6f9c7d5b8d-"
			mutated, err := azwi.Webhook{Layout: layout, NativeSidecar: native, TenantID: "22222222-2222-4222-8222-222222222222"}.Mutate(pod, new(corev1.ServiceAccount))
			if err != nil {
				t.Fatal(err)
			}
			checkNoDuplicates(t, mutated)
		}
	}
}

// TestInjectedTemplatesPassAKS does the same with an identity binding of AKS. The injected proxy gets
// the token proxy from AKS's webhook, and its token has the audience of the binding before.
func TestInjectedTemplatesPassAKS(t *testing.T) {
	const manifest = `{"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "shop"}, "spec": {"template": {
  "metadata": {
    "labels": {"azure.workload.identity/use": "true"},
    "annotations": {"azure.workload.identity/use-identity-binding": "true", "azure.workload.identity/inject-proxy-sidecar": "true"}},
  "spec": {"containers": [{"name": "app", "image": "registry.example.test/app:1"}]}}}}`
	for _, layout := range []azwi.Layout{azwi.V160, azwi.Newer} {
		for native, mode := range map[bool]string{true: "--native-sidecar=on", false: "--native-sidecar=off"} {
			var deployment appsv1.Deployment
			injected, _ := filter(t, commandInject, []byte(manifest), mode)
			if err := json.Unmarshal(injected, &deployment); err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(string(injected), "api://AKSIdentityBinding") || strings.Contains(string(injected), "api://AzureADTokenExchange") {
				t.Errorf("the manifest has a token of another audience: %s", injected)
			}
			pod := &corev1.Pod{ObjectMeta: deployment.Spec.Template.ObjectMeta, Spec: deployment.Spec.Template.Spec}
			pod.GenerateName = "shop-6f9c7d5b8d-"
			mutated, err := azwi.Webhook{Layout: layout, NativeSidecar: native, TenantID: "22222222-2222-4222-8222-222222222222", Endpoint: azwi.AKS()}.Mutate(pod, new(corev1.ServiceAccount))
			if err != nil {
				t.Fatal(err)
			}
			checkNoDuplicates(t, mutated)
			for _, c := range append(mutated.Spec.InitContainers, mutated.Spec.Containers...) {
				bound := slices.Contains(c.Env, corev1.EnvVar{Name: "AZURE_KUBERNETES_TOKEN_PROXY", Value: azwi.AKS().TokenProxy})
				if !bound && c.Name != "azwi-proxy-init" {
					t.Errorf("container %s has no token proxy: %v", c.Name, c.Env)
				}
			}
		}
	}
}

// TestInjectedPodsPassAzureWorkloadIdentity does the same with a Pod: under its own name, and under
// the name that a workflow engine gives to the pods that it makes of a template file.
func TestInjectedPodsPassAzureWorkloadIdentity(t *testing.T) {
	text, err := os.ReadFile("testdata/cases/pod-template.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, layout := range []azwi.Layout{azwi.V160, azwi.Older, azwi.Newer} {
		for native, mode := range map[bool]string{true: "--native-sidecar=on", false: "--native-sidecar=off"} {
			for _, name := range []string{"placeholder-name", "task-x7k2p"} {
				injected, _ := filter(t, commandInject, text, mode)
				pod := new(corev1.Pod)
				if err := yaml.Unmarshal(injected, pod); err != nil {
					t.Fatal(err)
				}
				pod.Name = name
				mutated, err := azwi.Webhook{Layout: layout, NativeSidecar: native, TenantID: "22222222-2222-4222-8222-222222222222"}.Mutate(pod, new(corev1.ServiceAccount))
				if err != nil {
					t.Fatal(err)
				}
				checkNoDuplicates(t, mutated)
				checkToken(t, mutated, "base")
			}
		}
	}
}

// checkToken checks that the token's path in a container is in a mount of a volume with a token.
func checkToken(t *testing.T, pod *corev1.Pod, container string) {
	t.Helper()
	tokens := map[string]bool{}
	for _, v := range pod.Spec.Volumes {
		tokens[v.Name] = v.Projected != nil
	}
	for _, c := range pod.Spec.Containers {
		for _, e := range c.Env {
			for _, m := range c.VolumeMounts {
				if c.Name == container && e.Name == "AZURE_FEDERATED_TOKEN_FILE" && tokens[m.Name] && strings.HasPrefix(e.Value, m.MountPath+"/") {
					return
				}
			}
		}
	}
	t.Errorf("container %s of pod %s has no token", container, pod.Name)
}

func checkNoDuplicates(t *testing.T, pod *corev1.Pod) {
	t.Helper()
	once := func(what string, seen map[string]bool, name string) {
		if seen[name] {
			t.Errorf("duplicate %s %s", what, name)
		}
		seen[name] = true
	}
	volumes, containers := map[string]bool{}, map[string]bool{}
	for _, v := range pod.Spec.Volumes {
		once("volume", volumes, v.Name)
	}
	for _, c := range append(pod.Spec.InitContainers, pod.Spec.Containers...) {
		once("container", containers, c.Name)
		paths := map[string]bool{}
		for _, m := range c.VolumeMounts {
			once("in "+c.Name+": mount path", paths, m.MountPath)
		}
	}
	if !containers["azwi-proxy"] {
		t.Error("the manifest was not injected")
	}
}
