package inject_test

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"imds-oidc-proxy/internal/inject"
)

// TestOneReplaced: the container beside the one that changes stays as it is.
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

// TestPinned: a webhook that adds the digest of a tag has the last word too, and so
// whatever mirror it is from.
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

// TestPinnedIsNotOther: of an image by digest another digest is another image.
func TestPinnedIsNotOther(t *testing.T) {
	c := config()
	c.ProxyImage = "registry.example.test/imds-oidc-proxy@sha256:" + strings.Repeat("0b", 32)
	pod := mutate(t, injected(), account(), c)
	pod.Spec.InitContainers[1].Image = "registry.example.test/imds-oidc-proxy@sha256:" + strings.Repeat("0a", 32)
	if result, err := inject.Pod(pod, account(), c); err != nil || len(result.Patch) != 1 {
		t.Errorf("%v, %v, want the image replaced", result, err)
	}
}

// TestReplacedOfOthers: whose container of our name goes learns of it.
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

// TestReplacedOfOurs: an image that was configured before is no stranger's.
func TestReplacedOfOurs(t *testing.T) {
	pod := mutate(t, injected(), account(), config())
	newer := config()
	newer.ProxyImage, newer.ProxyInitImage = "p:1", "i:1"
	if result, err := inject.Pod(pod, account(), newer); err != nil || len(result.Patch) != 2 || len(result.Warnings) > 0 {
		t.Errorf("%v, %v, want both replaced and no warning", result, err)
	}
}
