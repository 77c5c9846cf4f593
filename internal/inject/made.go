package inject

import (
	"path"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// made reports whether a container is one that [Pod] made, in any configuration, and
// not one that only has its name: by what no other has, as images have any name.
func made(c corev1.Container) bool {
	switch c.Name {
	case ProxyName:
		s := c.SecurityContext
		return hasEnv(c, "PROXY_PORT") && s != nil && s.RunAsUser != nil && *s.RunAsUser == proxyID
	case ProxyInitName:
		return hasEnv(c, "PROXY_UID")
	}
	return false
}

// madeIn is [made] for the containers of one pod: an init container without a proxy of
// ours is that of deploy/components, which is the same.
func madeIn(pod *corev1.Pod) func(corev1.Container) bool {
	proxied := slices.ContainsFunc(places(pod), func(c place) bool { return c.Name == ProxyName && made(*c.Container) })
	return func(c corev1.Container) bool { return proxied && made(c) }
}

func hasEnv(c corev1.Container, name string) bool { return variable(&c, name) >= 0 }

// reserved reports whether a volume has the name that webhooks give theirs:
// azure-workload-identity's and ours.
func reserved(volume string) bool { return strings.HasPrefix(volume, VolumePrefix) }

// madeVolume reports whether a volume is one that [Pod] or azure-workload-identity's
// webhook made, which are the same.
func madeVolume(v corev1.Volume) bool {
	return reserved(v.Name) && v.Projected != nil && slices.ContainsFunc(v.Projected.Sources, func(s corev1.VolumeProjection) bool {
		return s.ServiceAccountToken != nil && s.ServiceAccountToken.Path == tokenPath
	})
}

// foreign reports whether a container of our names is neither ours nor
// azure-workload-identity's, whose images are called proxy and proxy-init wherever
// they are from.
func (s *settings) foreign(c corev1.Container) bool {
	theirs, ours := "proxy", s.proxyImage
	if c.Name == ProxyInitName {
		theirs, ours = "proxy-init", s.initImage
	}
	return !made(c) && imageName(c.Image) != theirs && imageName(c.Image) != imageName(ours)
}

// warnReplaced is for containers of the pod's own that go, as they have our names.
func (p *plan) warnReplaced(going ...corev1.Container) {
	for _, c := range going {
		if isOurs(c) && p.settings.foreign(c) {
			p.warnf("container %s with image %q is replaced: the name is that of the container that is injected; give yours another", c.Name, shorten(c.Image))
		}
	}
}

// imageName is an image's name without registry, tag and digest.
func imageName(image string) string {
	name, _, _ := strings.Cut(image, "@")
	name, _, _ = strings.Cut(path.Base(name), ":")
	return name
}
