package inject_test

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/inject"
)

// reservedVolume returns the volume that a webhook adds to a pod of this name.
func reservedVolume(t *testing.T, audience string) corev1.Volume {
	t.Helper()
	c := config()
	c.Audience = audience
	return mutate(t, labelled(), account(), c).Spec.Volumes[0]
}

// setsToken sets the path of the token in the first container, and mounts a volume there.
func setsToken(file, volume, mountPath string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		c := &p.Spec.Containers[0]
		c.Env = []corev1.EnvVar{{Name: "AZURE_FEDERATED_TOKEN_FILE", Value: file}}
		if volume != "" {
			c.VolumeMounts = []corev1.VolumeMount{{Name: volume, MountPath: mountPath}}
		}
	}
}

// TestOwnTokenFile checks that a path of the author is not changed, with a warning if no volume
// is mounted there, and that a path of a webhook is updated if the mount was moved.
func TestOwnTokenFile(t *testing.T) {
	const (
		old, moved = "/var/run/secrets/azure/tokens/azure-identity-token", "/var/run/secrets/azure/wi/token/azure-identity-token"
		newer      = "/var/run/secrets/azure/wi/0123"
	)
	volume := reservedVolume(t, azure.Audience)
	for _, c := range []struct {
		name, file, volume, mountPath string
		want                          string
		mounts, warnings              int
	}{
		{"older azwi's path, set by the author", old, "", "", old, 0, 1},
		{"a path without a volume", "/opt/token", "", "", "/opt/token", 0, 1},
		{"the injected path", moved, "", "", moved, 1, 0},
		{"in the author's volume", "/opt/token", "mine", "/opt", "/opt/token", 1, 0},
		{"the author's volume", "/opt/token", "mine", "/opt/token", "/opt/token", 1, 0},
		{"a reference", "$(DIR)/token", "", "", "$(DIR)/token", 1, 0},
		{"empty", "", "", "", "", 1, 0},
		{"moved", moved, volume.Name, newer, newer + "/token/azure-identity-token", 1, 0},
		{"older azwi's path, set by the author, with a webhook's mount", old, volume.Name, newer, old, 1, 1},
		{"another path, with a webhook's mount", "/opt/token/azure-identity-token", volume.Name, newer, "/opt/token/azure-identity-token", 1, 1},
	} {
		pod := labelled(setsToken(c.file, c.volume, c.mountPath))
		pod.Spec.Volumes = []corev1.Volume{{Name: "mine"}}
		if c.volume == volume.Name {
			pod.Spec.Volumes = append(pod.Spec.Volumes, volume)
		}
		result, err := inject.Pod(pod, account(), config())
		if err != nil || len(result.Warnings) != c.warnings {
			t.Errorf("%s: %v, warnings %q, want %d", c.name, err, result.Warnings, c.warnings)
		}
		once := mutate(t, pod, account(), config())
		got := &once.Spec.Containers[0]
		if value(got, "AZURE_FEDERATED_TOKEN_FILE") != c.want || len(got.VolumeMounts) != c.mounts {
			t.Errorf("%s: %s, mounts %v, want %s and %d", c.name, value(got, "AZURE_FEDERATED_TOKEN_FILE"), got.VolumeMounts, c.want, c.mounts)
		}
		if again, err := inject.Pod(once, account(), config()); err != nil || len(again.Patch) > 0 {
			t.Errorf("%s: second pass: %v, %v", c.name, again.Patch, err)
		}
	}
}

// TestOwnVolumeBesideMount checks that a path like a webhook's in a volume of the author is not
// changed if the container also has a webhook's mount.
func TestOwnVolumeBesideMount(t *testing.T) {
	const file = "/var/run/secrets/azure/own/token/azure-identity-token"
	volume := reservedVolume(t, azure.Audience)
	pod := labelled(setsToken(file, "mine", "/var/run/secrets/azure/own"))
	pod.Spec.Volumes = []corev1.Volume{{Name: "mine"}, volume}
	pod.Spec.Containers[0].VolumeMounts = append(pod.Spec.Containers[0].VolumeMounts, corev1.VolumeMount{Name: volume.Name, MountPath: "/wi"})
	pod = mutate(t, pod, account(), config())
	if got := value(&pod.Spec.Containers[0], "AZURE_FEDERATED_TOKEN_FILE"); got != file {
		t.Errorf("token at %s, want %s", got, file)
	}
}

// TestAuthoritiesOnly checks that a container with its own token gets a mount with the
// certificate authorities of the token endpoint, at the path in the variable.
func TestAuthoritiesOnly(t *testing.T) {
	c := config()
	c.TokenEndpoint = binding()
	pod := mutate(t, labelled(setsToken("/opt/token", "", ""), annotate(inject.TokenEndpointPrefix+"identity-binding", "true")), account(), c)
	app := &pod.Spec.Containers[0]
	if len(app.VolumeMounts) != 1 || !strings.HasPrefix(value(app, "AZURE_KUBERNETES_CA_FILE"), app.VolumeMounts[0].MountPath) {
		t.Errorf("authorities at %s, mounts %v", value(app, "AZURE_KUBERNETES_CA_FILE"), app.VolumeMounts)
	}
	if again, err := inject.Pod(pod, account(), c); err != nil || len(again.Patch) > 0 {
		t.Errorf("second pass: %v, %v", again.Patch, err)
	}
}

// TestMovedAuthorities checks that the path of the authorities is updated if the mount was moved.
func TestMovedAuthorities(t *testing.T) {
	c := config()
	c.TokenEndpoint = binding()
	want := mutate(t, injected(annotate(inject.TokenEndpointPrefix+"identity-binding", "true")), account(), c)
	moved := want.DeepCopy()
	for i := range moved.Spec.Containers {
		moved.Spec.Containers[i].VolumeMounts[0].MountPath = "/var/run/secrets/azure/wi/0123"
	}
	got := mutate(t, moved, account(), c)
	if file := value(&got.Spec.Containers[0], "AZURE_KUBERNETES_CA_FILE"); file != "/var/run/secrets/azure/wi/0123/ca-cert/ca.crt" {
		t.Errorf("authorities at %s", file)
	}
}

// TestOwnTokenFileWarning checks the text of the warning about a path without a volume.
func TestOwnTokenFileWarning(t *testing.T) {
	result, err := inject.Pod(labelled(setsToken("/opt/token", "", "")), account(), config())
	want := []string{`container "app" keeps its own AZURE_FEDERATED_TOKEN_FILE, but mounts no volume at /opt/token; remove the variable to use the injected token`}
	if err != nil || !slices.Equal(result.Warnings, want) {
		t.Errorf("%v, %q, want %q", err, result.Warnings, want)
	}
}
