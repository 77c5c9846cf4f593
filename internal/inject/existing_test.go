package inject_test

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"imds-oidc-proxy/internal/inject"
)

// TestStale checks that settings of an earlier configuration do not stay in injected containers.
func TestStale(t *testing.T) {
	bound := config()
	bound.TokenEndpoint = binding()
	bound.TokenEndpoint.AnnotationSuffix = "custom" // not AKS's, with which the pod's variables are taken
	pod := injected(annotate(inject.TokenEndpointPrefix+"custom", "true"))
	pod = mutate(t, mutate(t, pod, account(), bound), account(), config())
	if got := value(find(pod.Spec.InitContainers, inject.ProxyName), "AZURE_KUBERNETES_TOKEN_PROXY"); got != "(unset)" {
		t.Errorf("the proxy still uses the token endpoint %s", got)
	}
	for name, change := range map[string]func(*corev1.Container){
		"memory":   func(c *corev1.Container) { c.Env = append(c.Env, corev1.EnvVar{Name: "GOMEMLIMIT", Value: "48MiB"}) },
		"port":     func(c *corev1.Container) { c.Ports = []corev1.ContainerPort{{ContainerPort: 9}} },
		"untagged": func(c *corev1.Container) { c.Image = "other.example.test/imds-oidc-proxy" },
		"client twice": func(c *corev1.Container) {
			c.Env = append(c.Env, corev1.EnvVar{Name: "AZURE_CLIENT_ID", Value: objectID})
		},
	} {
		c := config()
		c.ProxyImage = "registry.example.test/imds-oidc-proxy"
		c.ProxyResources = &corev1.ResourceRequirements{} // without a limit
		want := mutate(t, injected(), account(), c)
		changed := want.DeepCopy()
		change(find(changed.Spec.InitContainers, inject.ProxyName))
		if got := mutate(t, changed, account(), c); string(encode(t, got)) != string(encode(t, want)) {
			t.Errorf("%s was not restored: %v", name, got.Spec.InitContainers)
		}
	}
}

// TestAuthoritiesMissing checks that a volume with a token for the token endpoint is replaced if
// it lacks the endpoint's certificate authorities.
func TestAuthoritiesMissing(t *testing.T) {
	c := config()
	c.TokenEndpoint = binding()
	without := binding()
	without.CAConfigMap = ""
	before := config()
	before.TokenEndpoint = without
	pod := injected(annotate(inject.TokenEndpointPrefix+"identity-binding", "true"))
	pod = mutate(t, mutate(t, pod, account(), before), account(), c)
	if got := len(pod.Spec.Volumes[0].Projected.Sources); got != 2 || len(pod.Spec.Volumes) != 1 {
		t.Errorf("volumes %v, want one, with token and authorities", pod.Spec.Volumes)
	}
}

// TestTrustBundle checks that authorities from a ClusterTrustBundle are found in a volume, but
// not at another path.
func TestTrustBundle(t *testing.T) {
	c := config()
	c.TokenEndpoint = binding()
	c.TokenEndpoint.CAConfigMap, c.TokenEndpoint.ClusterTrustBundleSigner = "", "example.test/signer"
	pod := mutate(t, injected(annotate(inject.TokenEndpointPrefix+"identity-binding", "true")), account(), c)
	if result, err := inject.Pod(pod, account(), c); err != nil || len(result.Patch) > 0 {
		t.Errorf("second pass: %v, %v", result.Patch, err)
	}
	pod.Spec.Volumes[0].Projected.Sources[1].ClusterTrustBundle.Path = "elsewhere"
	if result, err := inject.Pod(pod, account(), c); err != nil || len(result.Patch) != 1 {
		t.Errorf("another path: %v, %v, want the volume replaced", result.Patch, err)
	}
}

// TestExpirationKept checks that the expiration of another webhook is not changed without the
// annotation.
func TestExpirationKept(t *testing.T) {
	pod := mutate(t, labelled(annotate(inject.TokenExpirationAnnotation, "7200")), account(), config())
	delete(pod.Annotations, inject.TokenExpirationAnnotation)
	if result, err := inject.Pod(pod, account(), config()); err != nil || len(result.Patch) > 0 {
		t.Errorf("%v, %v, want no change", result.Patch, err)
	}
}

// TestSubPath checks that a mount with a subPath is not used as the mount of the token's volume.
func TestSubPath(t *testing.T) {
	for name, mount := range map[string]corev1.VolumeMount{
		"subPath":     {Name: "mine", MountPath: "/one", SubPath: "t"},
		"subPathExpr": {Name: "mine", MountPath: "/one", SubPathExpr: "$(T)"},
	} {
		pod := labelled(ownToken)
		pod.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{mount}
		pod = mutate(t, pod, account(), config())
		checkTokens(t, pod)
		if got := pod.Spec.Containers[0].VolumeMounts; len(got) != 2 {
			t.Errorf("%s: mounts %v, want one of the whole volume too", name, got)
		}
	}
}

// TestNoneWithoutProxy checks that clients are not sent to the proxy's port if there is no proxy.
func TestNoneWithoutProxy(t *testing.T) {
	pod := mutate(t, labelled(annotate(inject.RedirectAnnotation, "none")), account(), config())
	if got := value(&pod.Spec.Containers[0], "AZURE_POD_IDENTITY_AUTHORITY_HOST"); got != "(unset)" {
		t.Errorf("AZURE_POD_IDENTITY_AUTHORITY_HOST=%s", got)
	}
}

func TestClaims(t *testing.T) {
	_, err := inject.Pod(injected(annotate(inject.ProxyResourcesAnnotation, `{"claims":[{"name":"gpu"}]}`)), account(), config())
	checkRefusal(t, err, `annotation imds-oidc-proxy/proxy-resources: "{\"claims\":[{\"name\":\"gpu\"}]}": must have requests and limits only, no claims`)
}

// TestRemoveKeepsReferences checks that a variable with valueFrom is not removed: Pod adds none.
func TestRemoveKeepsReferences(t *testing.T) {
	pod := mutate(t, injected(), nil, config()) // without a client ID
	app := &pod.Spec.Containers[0]
	app.Env = append(app.Env, corev1.EnvVar{Name: "AZURE_CLIENT_ID", ValueFrom: &corev1.EnvVarSource{}})
	pod = decode(t, apply(t, encode(t, pod), inject.Remove(pod).Patch))
	if env(&pod.Spec.Containers[0], "AZURE_CLIENT_ID") == nil || len(pod.Spec.Containers[0].Env) != 1 {
		t.Errorf("variables %v, want the pod's own", pod.Spec.Containers[0].Env)
	}
}

// TestOneReplaced checks that only the container that differs is replaced.
func TestOneReplaced(t *testing.T) {
	pod := mutate(t, injected(initNamed("migrate")), account(), config())
	for name, c := range map[string]struct {
		change func(*inject.Config)
		path   string
	}{
		"proxy": {func(c *inject.Config) { c.ProxyImage += ".1" }, "/spec/initContainers/1"},
		"init":  {func(c *inject.Config) { c.ProxyInitImage += ".1" }, "/spec/initContainers/0"},
	} {
		newer := config()
		c.change(&newer)
		result, err := inject.Pod(pod, account(), newer)
		if err != nil || len(result.Patch) != 1 || result.Patch[0].Op != "replace" || result.Patch[0].Path != c.path {
			t.Errorf("%s: %v, %v, want %s replaced", name, result.Patch, err, c.path)
		}
	}
}

// TestPinned checks that a digest that another webhook added to the tag is kept, from another
// registry too.
func TestPinned(t *testing.T) {
	digest := "@sha256:" + strings.Repeat("0a", 32)
	for image, want := range map[string]struct{ patch, warnings int }{
		"registry.example.test/imds-oidc-proxy:v1.0.0" + digest: {0, 0},
		"mirror.example.test/imds-oidc-proxy:v1.0.0" + digest:   {0, 1},
		"registry.example.test/imds-oidc-proxy:v0.9.0" + digest: {1, 0},
		"registry.example.test/imds-oidc-proxy:v1.0.0@sha256:0": {1, 0},
	} {
		pod := mutate(t, injected(), account(), config())
		pod.Spec.InitContainers[1].Image = image
		result, err := inject.Pod(pod, account(), config())
		if err != nil || len(result.Patch) != want.patch || len(result.Warnings) != want.warnings {
			t.Errorf("%s: %v, %v, want %+v", image, result, err, want)
		}
	}
}

// TestPinnedIsNotOther checks that an image with another digest is replaced if the configured
// image has a digest.
func TestPinnedIsNotOther(t *testing.T) {
	c := config()
	c.ProxyImage = "registry.example.test/imds-oidc-proxy@sha256:" + strings.Repeat("0b", 32)
	pod := mutate(t, injected(), account(), c)
	pod.Spec.InitContainers[1].Image = "registry.example.test/imds-oidc-proxy@sha256:" + strings.Repeat("0a", 32)
	if result, err := inject.Pod(pod, account(), c); err != nil || len(result.Patch) != 1 {
		t.Errorf("%v, %v, want the image replaced", result, err)
	}
}

// TestReplacedOfOthers checks the warning about a container of the author that is replaced.
func TestReplacedOfOthers(t *testing.T) {
	const digest = "@sha256:0"
	for _, c := range []struct {
		name, image string
		warned      bool
	}{
		{inject.ProxyName, "registry.example.test/team/envoy:1", true},
		{inject.ProxyName, "registry.example.test/team/proxy-init:1", true},
		{inject.ProxyInitName, "registry.example.test/team/setup", true},
		{inject.ProxyName, "registry.example.test/azwi/proxy:v1.6.0", false},
		{inject.ProxyInitName, "registry.example.test/azwi/proxy-init" + digest, false},
		{inject.ProxyName, "other.example.test/imds-oidc-proxy:v0.1.0", false},
	} {
		for _, add := range []func(*corev1.Pod, corev1.Container){
			func(p *corev1.Pod, c corev1.Container) { p.Spec.InitContainers = append(p.Spec.InitContainers, c) },
			func(p *corev1.Pod, c corev1.Container) { p.Spec.Containers = append(p.Spec.Containers, c) },
		} {
			pod := injected()
			add(pod, corev1.Container{Name: c.name, Image: c.image})
			result, err := inject.Pod(pod, account(), config())
			if warned := len(result.Warnings) > 0; err != nil || warned != c.warned || warned && !strings.Contains(result.Warnings[0], c.image) {
				t.Errorf("%s: %s: %v, %q, want a warning: %t", c.name, c.image, err, result.Warnings, c.warned)
			}
		}
	}
}

// TestReplacedOfOurs checks that there is no warning when an injected container with an earlier
// image is replaced.
func TestReplacedOfOurs(t *testing.T) {
	pod := mutate(t, injected(), account(), config())
	newer := config()
	newer.ProxyImage, newer.ProxyInitImage = "p:1", "i:1"
	if result, err := inject.Pod(pod, account(), newer); err != nil || len(result.Patch) != 2 || len(result.Warnings) > 0 {
		t.Errorf("%v, %v, want both replaced and no warning", result, err)
	}
}

// TestInjectedInAnyOrder checks that injected containers are identified by a variable at any
// position, also the first.
func TestInjectedInAnyOrder(t *testing.T) {
	pod := mutate(t, injected(), account(), config())
	for name, variable := range map[string]string{inject.ProxyName: "PROXY_PORT", inject.ProxyInitName: "PROXY_UID"} {
		c := find(pod.Spec.InitContainers, name)
		i := slices.IndexFunc(c.Env, func(e corev1.EnvVar) bool { return e.Name == variable })
		c.Env[0], c.Env[i] = c.Env[i], c.Env[0]
	}
	pod = decode(t, apply(t, encode(t, pod), inject.Remove(pod).Patch))
	if got := names(pod.Spec.InitContainers); len(got) != 0 {
		t.Errorf("containers %q were not removed", got)
	}
}
