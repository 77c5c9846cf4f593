package manifests

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// The names of the containers. azure-workload-identity's webhook does not inject containers with these
// names again.
const (
	sidecarName = "azwi-proxy"
	initName    = "azwi-proxy-init"
)

// proxyID is the user and group that the redirect exempts.
const proxyID = 1501

// TestOrder checks the order of the init containers: a container that starts before the redirect reaches
// the node's IMDS, and one that starts before the sidecar gets no token.
func TestOrder(t *testing.T) {
	for _, c := range []struct {
		variant string
		want    []string
	}{
		{"deployment", []string{initName, sidecarName}},
		{"job", []string{initName, sidecarName, "download"}},
		{"sealed", []string{initName, sidecarName}},
		{"no-redirect", []string{sidecarName}},
		{"dev-pod", nil},
	} {
		var got []string
		for _, container := range load(t, c.variant).pod.Spec.InitContainers {
			got = append(got, container.Name)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: init containers %q, want %q", c.variant, got, c.want)
		}
	}
}

// TestProxyContainer checks the settings of the sidecar.
func TestProxyContainer(t *testing.T) {
	for _, name := range variants {
		t.Run(name, func(t *testing.T) {
			v := load(t, name)
			proxy := v.container(sidecarName)
			if proxy == nil {
				t.Fatal("no proxy")
			}
			checkHardened(t, proxy)
			s := proxy.SecurityContext
			if s.RunAsUser == nil || *s.RunAsUser != proxyID || s.RunAsGroup == nil || *s.RunAsGroup != proxyID {
				t.Errorf("runs as %v:%v, want %d by its own security context", s.RunAsUser, s.RunAsGroup, proxyID)
			}
			checkFederatedToken(t, v)
			if name == "dev-pod" {
				return // an ordinary container, so that it can fail and be examined
			}
			if proxy.RestartPolicy == nil || *proxy.RestartPolicy != corev1.ContainerRestartPolicyAlways {
				t.Error("not a native sidecar: restartPolicy is not Always")
			}
			hook := postStart(proxy)
			if len(hook) == 0 || hook[0] != "/proxy" || !slices.Contains(hook, "--probe") {
				t.Errorf("the postStart hook is %q, want /proxy --probe", hook)
			}
		})
	}
}

// postStart returns the command of a container's postStart hook, or nil.
func postStart(c *corev1.Container) []string {
	if c.Lifecycle == nil || c.Lifecycle.PostStart == nil || c.Lifecycle.PostStart.Exec == nil {
		return nil
	}
	return c.Lifecycle.PostStart.Exec.Command
}

// TestInitContainer checks that the init container runs as root with NET_ADMIN and no other privilege.
func TestInitContainer(t *testing.T) {
	for _, name := range []string{"deployment", "job", "sealed"} {
		proxyInit := load(t, name).container(initName)
		checkHardened(t, proxyInit)
		s := proxyInit.SecurityContext
		if s.RunAsUser == nil || *s.RunAsUser != 0 || s.RunAsNonRoot == nil || *s.RunAsNonRoot {
			t.Errorf("%s: %s does not set root in its own security context, so that the pod's applies", name, initName)
		}
		if got := s.Capabilities.Add; !slices.Equal(got, []corev1.Capability{"NET_ADMIN"}) {
			t.Errorf("%s: %s adds capabilities %v, want only NET_ADMIN", name, initName, got)
		}
		if len(proxyInit.VolumeMounts) != 0 {
			t.Errorf("%s: %s mounts %v, want no mounts", name, initName, proxyInit.VolumeMounts)
		}
	}
}

// TestApplication checks the requirements of docs/security.md for the other containers.
func TestApplication(t *testing.T) {
	for _, name := range variants {
		v := load(t, name)
		for _, list := range [][]corev1.Container{v.pod.Spec.InitContainers, v.pod.Spec.Containers} {
			for _, container := range list {
				if container.Name == sidecarName || container.Name == initName {
					continue
				}
				checkHardened(t, &container)
				if user := effectiveUser(v, container); user == proxyID || user == 0 {
					t.Errorf("%s: %s runs as user %d, which may bypass the redirect", name, container.Name, user)
				}
				for _, mount := range container.VolumeMounts {
					if mount.Name == tokenVolume {
						t.Errorf("%s: %s can read the federated token", name, container.Name)
					}
				}
			}
		}
		if v.pod.Spec.HostNetwork || v.pod.Spec.HostPID {
			t.Errorf("%s: in a namespace of the node", name)
		}
	}
}

func effectiveUser(v variant, c corev1.Container) int64 {
	if c.SecurityContext.RunAsUser != nil {
		return *c.SecurityContext.RunAsUser
	}
	if v.pod.Spec.SecurityContext == nil || v.pod.Spec.SecurityContext.RunAsUser == nil {
		return 0
	}
	return *v.pod.Spec.SecurityContext.RunAsUser
}

func checkHardened(t *testing.T, c *corev1.Container) {
	t.Helper()
	s := c.SecurityContext
	if s == nil {
		t.Fatalf("%s has no security context", c.Name)
	}
	if s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation {
		t.Errorf("%s allows privilege escalation", c.Name)
	}
	if s.ReadOnlyRootFilesystem == nil || !*s.ReadOnlyRootFilesystem {
		t.Errorf("%s can write its root file system", c.Name)
	}
	if s.Capabilities == nil || !slices.Contains(s.Capabilities.Drop, "ALL") {
		t.Errorf("%s keeps the container runtime's capabilities", c.Name)
	}
	if c.Resources.Requests.Cpu().IsZero() || c.Resources.Requests.Memory().IsZero() || c.Resources.Limits.Memory().IsZero() {
		t.Errorf("%s: resources %+v, want requests and a memory limit", c.Name, c.Resources)
	}
}

const tokenVolume = "azure-federated-token"

// checkFederatedToken checks the volume, the mount and the variable of the token.
func checkFederatedToken(t *testing.T, v variant) {
	t.Helper()
	var token *corev1.ServiceAccountTokenProjection
	for _, volume := range v.pod.Spec.Volumes {
		if volume.Name == tokenVolume && volume.Projected != nil {
			token = volume.Projected.Sources[0].ServiceAccountToken
		}
	}
	if token == nil {
		t.Fatal("no projected service-account token")
	}
	if want := "api://AzureADTokenExchange"; token.Audience != want {
		t.Errorf("audience %q, want %q", token.Audience, want)
	}
	proxy := v.container(sidecarName)
	var file string
	for _, e := range proxy.Env {
		if e.Name == "AZURE_FEDERATED_TOKEN_FILE" {
			file = e.Value
		}
	}
	for _, mount := range proxy.VolumeMounts {
		if mount.Name == tokenVolume {
			if want := strings.TrimSuffix(mount.MountPath, "/") + "/" + token.Path; file != want {
				t.Errorf("AZURE_FEDERATED_TOKEN_FILE is %q, the token is at %q", file, want)
			}
			if !mount.ReadOnly {
				t.Error("the token's mount is writable")
			}
			return
		}
	}
	t.Error("the proxy does not mount the token")
}

// TestAuthorityHost checks that the application has the proxy's address only in the variant without a
// redirect.
func TestAuthorityHost(t *testing.T) {
	for _, name := range variants {
		app := load(t, name).container("app")
		if app == nil {
			continue
		}
		got := ""
		for _, e := range app.Env {
			if e.Name == "AZURE_POD_IDENTITY_AUTHORITY_HOST" {
				got = e.Value
			}
		}
		want := ""
		if name == "no-redirect" {
			want = "http://127.0.0.1:8000"
		}
		if got != want {
			t.Errorf("%s: AZURE_POD_IDENTITY_AUTHORITY_HOST=%q, want %q", name, got, want)
		}
	}
}
