package manifests

import (
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
)

// refusals returns the reasons for which a Pod Security level refuses a pod. It uses the evaluator of
// the API server's admission plugin.
func refusals(t *testing.T, level api.Level, pod corev1.PodTemplateSpec) []string {
	t.Helper()
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		t.Fatal(err)
	}
	var reasons []string
	latest := api.LevelVersion{Level: level, Version: api.LatestVersion()}
	for _, result := range evaluator.EvaluatePod(latest, &pod.ObjectMeta, &pod.Spec) {
		if !result.Allowed {
			reasons = append(reasons, result.ForbiddenReason+": "+result.ForbiddenDetail)
		}
	}
	return reasons
}

// TestPodSecurity checks which level each variant passes, and that the others are refused only because
// of what a redirect needs.
func TestPodSecurity(t *testing.T) {
	netAdmin := `non-default capabilities: container "azwi-proxy-init" must not include "NET_ADMIN" in securityContext.capabilities.add`
	root := []string{
		`unrestricted capabilities: container "azwi-proxy-init" must not include "NET_ADMIN" in securityContext.capabilities.add`,
		`runAsNonRoot != true: container "azwi-proxy-init" must not set securityContext.runAsNonRoot=false`,
		`runAsUser=0: container "azwi-proxy-init" must not set runAsUser=0`,
	}
	for _, c := range []struct {
		variant              string
		baseline, restricted []string
	}{
		{variant: "dev-pod"},
		{variant: "no-redirect"},
		{variant: "deployment", baseline: []string{netAdmin}, restricted: root},
		{variant: "job", baseline: []string{netAdmin}, restricted: root},
		{variant: "sealed", baseline: []string{netAdmin}, restricted: root},
	} {
		pod := load(t, c.variant).pod
		if got := refusals(t, api.LevelBaseline, pod); !slices.Equal(got, c.baseline) {
			t.Errorf("%s: baseline refuses for %q, want %q", c.variant, got, c.baseline)
		}
		if got := refusals(t, api.LevelRestricted, pod); !slices.Equal(got, c.restricted) {
			t.Errorf("%s: restricted refuses for %q, want %q", c.variant, got, c.restricted)
		}
	}
}

// TestAllButProxyInitAreRestricted checks that the pods pass the strictest level without the init
// container.
func TestAllButProxyInitAreRestricted(t *testing.T) {
	for _, name := range []string{"deployment", "job", "sealed"} {
		pod := load(t, name).pod
		pod.Spec.InitContainers = slices.DeleteFunc(pod.Spec.InitContainers, func(c corev1.Container) bool { return c.Name == initName })
		if got := refusals(t, api.LevelRestricted, pod); len(got) != 0 {
			t.Errorf("%s without %s: restricted refuses for %q", name, initName, got)
		}
	}
}

// TestNamespaceEnforces checks that the namespace of the variant no-redirect enforces the level
// restricted.
func TestNamespaceEnforces(t *testing.T) {
	for _, object := range load(t, "no-redirect").objects {
		if namespace, ok := object.(*corev1.Namespace); ok {
			if got := namespace.Labels[api.EnforceLevelLabel]; got != string(api.LevelRestricted) {
				t.Errorf("namespace enforces %q, want restricted", got)
			}
			return
		}
	}
	t.Error("no namespace in no-redirect")
}
