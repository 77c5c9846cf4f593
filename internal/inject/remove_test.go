package inject_test

import (
	"testing"

	corev1 "k8s.io/api/core/v1"

	"imds-oidc-proxy/internal/inject"
)

// TestRemove: the pod is as it was before.
func TestRemove(t *testing.T) {
	withEnv := func(p *corev1.Pod) {
		p.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "A", Value: "1"}, {Name: "AZURE_CLIENT_ID", Value: clientID}}
	}
	postStart := config()
	postStart.PostStart = true
	binding := config()
	binding.TokenEndpoint = &inject.TokenEndpoint{AnnotationSuffix: "identity-binding", Audience: "api://binding", TokenProxy: "https://proxy.example.test", SNIName: "sni", CAConfigMap: "ca"}
	for name, c := range map[string]struct {
		pod    *corev1.Pod
		config inject.Config
	}{
		"plain":         {labelled(), config()},
		"injected":      {injected(), config()},
		"admin port":    {injected(annotate(inject.AdminPortAnnotation, "8001")), config()},
		"none":          {injected(annotate(inject.RedirectAnnotation, "none"), initNamed("migrate")), config()},
		"own variables": {injected(withEnv), config()},
		"old style":     {injected(), postStart},
		"binding":       {injected(annotate(inject.TokenEndpointPrefix+"identity-binding", "true")), binding},
		"template":      {injected(func(p *corev1.Pod) { p.Name = "" }), config()},
	} {
		once := mutate(t, c.pod, account(), c.config)
		if string(encode(t, once)) == string(encode(t, c.pod)) {
			t.Errorf("%s: nothing was injected", name)
		}
		got := decode(t, apply(t, encode(t, once), inject.Remove(once).Patch))
		if got, want := string(encode(t, got)), string(encode(t, c.pod)); got != want {
			t.Errorf("%s: removed\n%s, want\n%s", name, got, want)
		}
	}
}

// TestRemoveNothing: of a pod that only looks like one of ours nothing is taken.
func TestRemoveNothing(t *testing.T) {
	pod := injected(initNamed("azwi"))
	pod.Labels["imds-oidc-proxy/metrics"] = "true"
	pod.Spec.Volumes = []corev1.Volume{{Name: "azure-federated-token"}}
	pod.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "azure-federated-token", MountPath: "/var/run/secrets/azure/wi"}}
	pod.Spec.Containers[0].Env = []corev1.EnvVar{
		{Name: "AZURE_FEDERATED_TOKEN_FILE", Value: "/var/run/secrets/azure/wi/token/azure-identity-token"},
		{Name: "AZURE_CLIENT_ID", Value: clientID},
	}
	if result := inject.Remove(pod); len(result.Patch) > 0 {
		t.Errorf("%v, want nothing to do", result.Patch)
	}
}
