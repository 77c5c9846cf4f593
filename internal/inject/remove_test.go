package inject_test

import (
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/inject"
)

// TestRemove checks that the pod is the same as before injection.
func TestRemove(t *testing.T) {
	withEnv := func(p *corev1.Pod) {
		p.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "A", Value: "1"}, {Name: "AZURE_CLIENT_ID", Value: clientID}}
	}
	postStart := config()
	postStart.PostStart = true
	binding := config()
	binding.TokenEndpoint = inject.TokenEndpoint{AnnotationSuffix: "identity-binding", Audience: "api://binding", TokenProxy: "https://proxy.example.test", SNIName: "sni", CAConfigMap: "ca"}
	for name, c := range map[string]struct {
		pod    *corev1.Pod
		config inject.Config
	}{
		"plain":         {labelled(), config()},
		"injected":      {injected(), config()},
		"admin port":    {injected(annotate(inject.AdminPortAnnotation, "8001")), config()},
		"none":          {injected(annotate(inject.RedirectAnnotation, "none"), initNamed("migrate")), config()},
		"CNI":           {injected(annotate(inject.RedirectAnnotation, "cni-sealed")), config()},
		"own variables": {injected(withEnv), config()},
		"postStart":     {injected(), postStart},
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

// TestRemoveKeeps checks that parts of the author with the names of injected parts stay, if they
// can be distinguished.
func TestRemoveKeeps(t *testing.T) {
	for name, change := range map[string]func(*corev1.Pod){
		"containers": func(p *corev1.Pod) {
			p.Spec.InitContainers = []corev1.Container{{Name: inject.ProxyInitName, Image: "registry.example.test/team/setup:1"}}
			p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: inject.ProxyName, Image: "registry.example.test/team/envoy:1",
				Ports: []corev1.ContainerPort{{Name: "imds-admin", ContainerPort: 9}}})
			p.Labels["imds-oidc-proxy/metrics"] = "true"
		},
		"containers like ours": func(p *corev1.Pod) {
			// The containers of deploy/components, and another one with the same settings.
			env := []corev1.EnvVar{{Name: "PROXY_PORT", Value: "8000"}, {Name: "PROXY_UID", Value: "1501"}}
			p.Spec.InitContainers = []corev1.Container{{Name: inject.ProxyInitName, Env: env}, {Name: inject.ProxyName,
				SecurityContext: &corev1.SecurityContext{RunAsUser: new(int64(1501))}, Ports: []corev1.ContainerPort{{Name: "imds-admin"}}}}
			p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: inject.ProxyName, Env: env,
				SecurityContext: &corev1.SecurityContext{RunAsUser: new(int64(1000))}})
			p.Labels["imds-oidc-proxy/metrics"] = "true"
		},
		"volume": func(p *corev1.Pod) {
			p.Spec.Volumes = []corev1.Volume{{Name: "azure-workload-identity-reserved-mine"}}
			p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "azure-workload-identity-reserved-mine", MountPath: "/x"}}
		},
		"variables before the token's": func(p *corev1.Pod) {
			p.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "AZURE_CLIENT_ID", Value: objectID}, {Name: "AZURE_CLIENT_ID", Value: clientID}}
		},
	} {
		pod := labelled(change)
		if result := inject.Remove(pod); len(result.Patch) > 0 {
			t.Errorf("%s: %v, want nothing to do", name, result.Patch)
		}
		once := mutate(t, pod, account(), config())
		got := apply(t, encode(t, once), inject.Remove(once).Patch)
		if want := encode(t, pod); string(got) != string(want) {
			t.Errorf("%s: removed\n%s, want\n%s", name, got, want)
		}
	}
}

// TestRemoveKeepsVariableBefore checks that a variable stays that was added before the injected
// ones after injection.
func TestRemoveKeepsVariableBefore(t *testing.T) {
	pod := mutate(t, injected(), account(), config())
	app := &pod.Spec.Containers[0]
	app.Env = append([]corev1.EnvVar{{Name: "AZURE_CLIENT_ID", Value: objectID}}, app.Env...)
	pod = decode(t, apply(t, encode(t, pod), inject.Remove(pod).Patch))
	if got := pod.Spec.Containers[0].Env; len(got) != 1 || got[0].Value != objectID {
		t.Errorf("variables %v, want the pod's own", got)
	}
}

// TestRemoveLabel checks that the label that the PodMonitor selects is removed only if it has the
// injected value.
func TestRemoveLabel(t *testing.T) {
	for value, want := range map[string]bool{"true": false, "yes": true} {
		pod := mutate(t, injected(annotate(inject.AdminPortAnnotation, "8001")), account(), config())
		pod.Labels["imds-oidc-proxy/metrics"] = value
		pod = decode(t, apply(t, encode(t, pod), inject.Remove(pod).Patch))
		if _, got := pod.Labels["imds-oidc-proxy/metrics"]; got != want {
			t.Errorf("%s: kept %t, want %t", value, got, want)
		}
	}
}

// TestDifferences checks the texts about parts that removal does not restore.
func TestDifferences(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*corev1.Pod)
		want   []string
	}{
		"nothing": {func(*corev1.Pod) {}, nil},
		"own path": {setsToken("/opt/token", "", ""),
			[]string{"container app keeps env AZURE_AUTHORITY_HOST, env AZURE_CLIENT_ID, env AZURE_TENANT_ID"}},
		"own volume": {ownToken,
			[]string{"container app keeps env AZURE_AUTHORITY_HOST, env AZURE_CLIENT_ID, env AZURE_FEDERATED_TOKEN_FILE, env AZURE_TENANT_ID, mount mine"}},
		"our path, set by the author": {setsToken("/var/run/secrets/azure/wi/token/azure-identity-token", "", ""),
			[]string{"container app loses env AZURE_FEDERATED_TOKEN_FILE"}},
		"label": {func(p *corev1.Pod) {
			annotate(inject.AdminPortAnnotation, "8001")(p)
			p.Labels["imds-oidc-proxy/metrics"] = "true"
		}, []string{"the pod loses label imds-oidc-proxy/metrics"}},
		"container": {func(p *corev1.Pod) {
			p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: inject.ProxyName, Image: "registry.example.test/team/envoy:1"})
		}, []string{"the pod loses container azwi-proxy"}},
	} {
		pod := injected(c.change)
		once := mutate(t, pod, account(), config())
		removed := decode(t, apply(t, encode(t, once), inject.Remove(once).Patch))
		if got := inject.Differences(pod, removed); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
	before, after := labelled(ownToken), labelled(ownToken)
	after.Spec.Volumes[0].Projected.Sources[0].ServiceAccountToken.Path = "u"
	if got, want := inject.Differences(before, after), []string{"the pod has another volume mine"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestRemoveNothing checks that nothing is removed from a pod with parts that only resemble
// injected ones.
func TestRemoveNothing(t *testing.T) {
	pod := injected(initNamed("azwi"))
	pod.Labels["imds-oidc-proxy/metrics"] = "true"
	token := func(path string) corev1.VolumeSource {
		return corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
			{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: path, Audience: azure.Audience}}}}}
	}
	pod.Spec.Volumes = []corev1.Volume{
		{Name: "azure-federated-token", VolumeSource: token("token/azure-identity-token")},
		{Name: "azure-workload-identity-reserved-mine", VolumeSource: token("mine")},
	}
	pod.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "azure-federated-token", MountPath: "/var/run/secrets/azure/wi"}}
	pod.Spec.Containers[0].Env = []corev1.EnvVar{
		{Name: "AZURE_FEDERATED_TOKEN_FILE", Value: "/var/run/secrets/azure/wi/token/azure-identity-token"},
		{Name: "AZURE_CLIENT_ID", Value: clientID},
	}
	if result := inject.Remove(pod); len(result.Patch) > 0 {
		t.Errorf("%v, want nothing to do", result.Patch)
	}
}
