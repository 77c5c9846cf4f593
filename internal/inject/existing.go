package inject

import (
	"encoding/json"
	"maps"
	"path"
	"reflect"
	"regexp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"imds-oidc-proxy/internal/azure"
)

// fits reports whether a container does what the wanted one would: what is wanted is
// all there. More may be there too, as the API server fills in defaults, the service
// account admission a mount, and azure-workload-identity variables; but nothing that
// changes what the container is or may do.
func fits(want, have corev1.Container) bool {
	if want.Name != have.Name || !sameImage(want.Image, have.Image) || !sameShape(want, have) || !sameSettings(want, have) {
		return false
	}
	have.Image = want.Image
	return within(tree(want), tree(have))
}

// sameImage: a registry mirror's webhook may have changed where the image is from, and
// another have pinned its tag to a digest. To put it back would leave the two webhooks
// at odds, and the pod without image.
func sameImage(want, have string) bool {
	have = unpinned(want, have)
	name := path.Base(want)
	return want == have || name == path.Base(have) && strings.ContainsAny(name, ":@")
}

// pin is a digest as one more word of an image's name.
var pin = regexp.MustCompile(`@sha256:[0-9a-f]{64}$`)

// unpinned is an image without a digest that the wanted one does not have.
func unpinned(want, have string) string {
	if strings.Contains(want, "@") {
		return have
	}
	return pin.ReplaceAllLiteralString(have, "")
}

// sameShape compares where more than what is wanted would be another container.
func sameShape(want, have corev1.Container) bool {
	return reflect.DeepEqual(want.Command, have.Command) &&
		reflect.DeepEqual(want.Args, have.Args) &&
		reflect.DeepEqual(want.RestartPolicy, have.RestartPolicy) &&
		have.SecurityContext != nil &&
		reflect.DeepEqual(want.SecurityContext.Capabilities, have.SecurityContext.Capabilities) &&
		len(have.EnvFrom) == 0 &&
		len(want.Ports) == len(have.Ports) &&
		(want.Lifecycle == nil) == (have.Lifecycle == nil) &&
		(want.StartupProbe == nil) == (have.StartupProbe == nil) &&
		(want.LivenessProbe == nil) == (have.LivenessProbe == nil) &&
		have.ReadinessProbe == nil
}

// sameSettings: what is wanted holds, which of a name given twice the last does; and
// a setting that is there and not wanted would hold as well, such as a seal that the
// annotations no longer ask for.
func sameSettings(want, have corev1.Container) bool {
	wanted, held := values(want.Env), values(have.Env)
	maps.DeleteFunc(held, func(name, _ string) bool {
		_, isWanted := wanted[name]
		return !isWanted && !isSetting(want.Name, name)
	})
	return maps.Equal(wanted, held)
}

func values(env []corev1.EnvVar) map[string]string {
	set := map[string]string{}
	for _, e := range env {
		set[e.Name] = e.Value
	}
	return set
}

// isSetting reports whether a container of ours reads the variable. The redirect's
// reads nothing of Azure, and azure-workload-identity gives it all the same.
func isSetting(container, name string) bool {
	return strings.HasPrefix(name, "PROXY_") || name == "GOMEMLIMIT" || name == "METADATA_IP" || name == "METADATA_PORT" ||
		container == ProxyName && strings.HasPrefix(name, "AZURE_")
}

// tree is a container as JSON has it, so that values that are written in two ways,
// such as quantities, are alike.
func tree(c corev1.Container) (t any) {
	_ = json.Unmarshal([]byte(encoded(c)), &t) // which is always JSON
	return t
}

// within reports whether all of want is in have. Elements of lists are known by what
// they say, wherever they stand.
func within(want, have any) bool {
	switch want := want.(type) {
	case map[string]any:
		have, ok := have.(map[string]any)
		for key := range want {
			ok = ok && within(want[key], have[key])
		}
		return ok
	case []any:
		have, ok := have.([]any)
		for _, w := range want {
			ok = ok && slices.ContainsFunc(have, func(h any) bool { return within(w, h) })
		}
		return ok
	}
	return want == have
}

// made reports whether a container is one that [Pod] made, in any configuration, and
// not one that only has its name: by what no other has, as images have any name.
func made(c corev1.Container) bool {
	switch c.Name {
	case ProxyName:
		s := c.SecurityContext
		return hasEnv(c, "PROXY_PORT") && s != nil && s.RunAsUser != nil && *s.RunAsUser == azure.ProxyID
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
	theirs, ours := "proxy", s.ProxyImage
	if c.Name == ProxyInitName {
		theirs, ours = "proxy-init", s.ProxyInitImage
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
