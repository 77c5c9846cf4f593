package manifests

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/pod-security-admission/api"
)

// injectedPods returns the patched pods in internal/inject's testdata, by name.
func injectedPods(t *testing.T) map[string]corev1.PodTemplateSpec {
	t.Helper()
	files, err := filepath.Glob(repository + "/internal/inject/testdata/pods/*/patched.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no injected pods: %v", err)
	}
	pods := map[string]corev1.PodTemplateSpec{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		pod := decode(t, string(text)).(*corev1.Pod)
		pods[filepath.Base(filepath.Dir(file))] = corev1.PodTemplateSpec{ObjectMeta: pod.ObjectMeta, Spec: pod.Spec}
	}
	return pods
}

// TestInjectedPodSecurity checks that a pod without a redirect, or with the redirect of the CNI
// plugin, passes the Pod Security level restricted, and that the level baseline refuses a pod with a redirect only because of NET_ADMIN.
func TestInjectedPodSecurity(t *testing.T) {
	pods := injectedPods(t)
	for _, name := range []string{"no-redirect", "cni-forward", "cni-sealed"} {
		if got := refusals(t, api.LevelRestricted, pods[name]); len(got) > 0 {
			t.Errorf("%s: restricted refuses for %q", name, got)
		}
	}
	want := []string{`non-default capabilities: container "azwi-proxy-init" must not include "NET_ADMIN" in securityContext.capabilities.add`}
	for _, name := range []string{"injected", "sealed", "old-style", "every-annotation", "after-azwi"} {
		if got := refusals(t, api.LevelBaseline, pods[name]); !slices.Equal(got, want) {
			t.Errorf("%s: baseline refuses for %q, want %q", name, got, want)
		}
	}
}

// TestInjectedAsDeployed checks that the injected containers are those of deploy/, except for the path
// of the token and the settings in the ConfigMap.
func TestInjectedAsDeployed(t *testing.T) {
	pods := injectedPods(t)
	for variantName, injected := range map[string]string{"deployment": "injected", "sealed": "sealed"} {
		deployed := load(t, variantName)
		for _, name := range []string{initName, sidecarName} {
			got := variant{pod: pods[injected]}.container(name)
			want := deployed.container(name)
			if !got.Resources.Requests.Cpu().Equal(*want.Resources.Requests.Cpu()) || !got.Resources.Limits.Memory().Equal(*want.Resources.Limits.Memory()) {
				t.Errorf("%s: %s has resources %v, want %v", injected, name, got.Resources, want.Resources)
			}
			// Injection sets this field explicitly, so that it can identify its containers.
			got.SecurityContext.Privileged, want.SecurityContext.Privileged = nil, nil
			if got.SecurityContext.String() != want.SecurityContext.String() {
				t.Errorf("%s: %s has the security context %v, want %v", injected, name, got.SecurityContext, want.SecurityContext)
			}
			if got.Lifecycle.String() != want.Lifecycle.String() {
				t.Errorf("%s: %s has the hook %v, want %v", injected, name, got.Lifecycle, want.Lifecycle)
			}
			for _, env := range want.Env {
				if env.Name == "AZURE_FEDERATED_TOKEN_FILE" || env.Name == "PROXY_ADMIN_ADDRESS" {
					continue
				}
				if !slices.ContainsFunc(got.Env, func(e corev1.EnvVar) bool { return e.Name == env.Name && e.Value == env.Value }) {
					t.Errorf("%s: %s lacks %s=%s", injected, name, env.Name, env.Value)
				}
			}
		}
	}
	liveness := pods["every-annotation"].Spec.InitContainers[1].LivenessProbe
	if want := load(t, "deployment").container(sidecarName).LivenessProbe; liveness.String() != want.String() {
		t.Errorf("liveness probe %v, want %v", liveness, want)
	}
}
