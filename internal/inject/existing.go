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

// fits reports whether the existing container is equivalent to the wanted one. It must have all
// fields of the wanted one. It may have more: defaults of the API server, a mount of the service
// account admission plugin, variables of azure-workload-identity. It must not have fields that
// change what the container does or may do.
func fits(want, have corev1.Container) bool {
	if want.Name != have.Name || !sameImage(want.Image, have.Image) || !sameShape(want, have) || !sameSettings(want, have) {
		return false
	}
	have.Image = want.Image
	return isSubset(asJSON(want), asJSON(have))
}

// sameImage reports whether have is the wanted image, possibly from another registry, or with
// its tag pinned to a digest: webhooks for registry mirrors change images in these ways. If the
// image were changed back, the two webhooks would overwrite each other's changes, and the node
// might not be able to pull it.
func sameImage(want, have string) bool {
	have = unpinned(want, have)
	name := path.Base(want)
	return want == have || name == path.Base(have) && strings.ContainsAny(name, ":@")
}

// pin is the digest at the end of an image's name.
var pin = regexp.MustCompile(`@sha256:[0-9a-f]{64}$`)

// unpinned returns have without its digest, unless want has one.
func unpinned(want, have string) string {
	if strings.Contains(want, "@") {
		return have
	}
	return pin.ReplaceAllLiteralString(have, "")
}

// sameShape compares the fields that must not have more than what is wanted.
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

// sameSettings compares the environment variables that the container reads. If a name occurs
// twice, the last value applies. A variable that is not wanted is a difference, such as a
// PROXY_SEAL that the annotations no longer request.
func sameSettings(want, have corev1.Container) bool {
	wanted, existing := values(want.Env), values(have.Env)
	maps.DeleteFunc(existing, func(name, _ string) bool {
		_, isWanted := wanted[name]
		return !isWanted && !isSetting(want.Name, name)
	})
	return maps.Equal(wanted, existing)
}

func values(env []corev1.EnvVar) map[string]string {
	set := map[string]string{}
	for _, e := range env {
		set[e.Name] = valueText(e)
	}
	return set
}

// valueText returns the value of a variable as a text that differs from that of any other value.
// The API server adds a version to a reference to a field of the pod, so the text has none.
func valueText(e corev1.EnvVar) string {
	switch {
	case e.ValueFrom == nil:
		return e.Value
	case e.ValueFrom.FieldRef != nil:
		return "\x00field " + e.ValueFrom.FieldRef.FieldPath
	}
	return "\x00" + encoded(e.ValueFrom)
}

// isSetting reports whether an injected container reads the variable, and it is not one that
// others may add. The init container reads
// no AZURE_ variables, which azure-workload-identity may have added to it.
func isSetting(container, name string) bool {
	if slices.Contains(keptSettings, name) {
		return false
	}
	return strings.HasPrefix(name, "PROXY_") || name == recordEnv || name == "GOMEMLIMIT" || name == "METADATA_IP" || name == "METADATA_PORT" ||
		container == ProxyName && strings.HasPrefix(name, "AZURE_")
}

// asJSON returns a part of a pod as decoded JSON, in which equal values have the same form: a
// quantity, for example, has several in its Go type.
func asJSON(part any) (t any) {
	_ = json.Unmarshal([]byte(encoded(part)), &t) // cannot fail: encoded returns JSON
	return t
}

// isSubset reports whether have contains everything in want. It compares the elements of lists
// regardless of their order.
func isSubset(want, have any) bool {
	switch want := want.(type) {
	case map[string]any:
		have, ok := have.(map[string]any)
		for key := range want {
			ok = ok && isSubset(want[key], have[key])
		}
		return ok
	case []any:
		have, ok := have.([]any)
		for _, w := range want {
			ok = ok && slices.ContainsFunc(have, func(h any) bool { return isSubset(w, h) })
		}
		return ok
	}
	return want == have
}

// isInjected reports whether [Pod] made the container, in any configuration. The name alone does
// not show this, and images can have any name, so it checks for fields that only injected
// containers have.
func isInjected(c corev1.Container) bool {
	switch c.Name {
	case ProxyName:
		s := c.SecurityContext
		return hasEnv(c, "PROXY_PORT") && s != nil && s.RunAsUser != nil && *s.RunAsUser == azure.ProxyID
	case ProxyInitName:
		return hasEnv(c, "PROXY_UID")
	}
	return false
}

// injectedIn returns [isInjected] for the containers of one pod. An init container in a pod
// without an injected proxy comes from deploy/components, where it is the same, and was not
// injected.
func injectedIn(pod *corev1.Pod) func(corev1.Container) bool {
	proxied := slices.ContainsFunc(allContainers(pod), func(c containerRef) bool { return c.Name == ProxyName && isInjected(*c.Container) })
	return func(c corev1.Container) bool { return proxied && isInjected(c) }
}

func hasEnv(c corev1.Container, name string) bool { return variable(&c, name) >= 0 }

// reserved reports whether a volume has a name that azure-workload-identity and this package
// give to their volumes.
func reserved(volume string) bool { return strings.HasPrefix(volume, VolumePrefix) }

// HasToken reports whether a webhook has added the volume with the token to the pod.
func HasToken(pod *corev1.Pod) bool { return slices.ContainsFunc(pod.Spec.Volumes, isInjectedVolume) }

// isInjectedVolume reports whether [Pod] or azure-workload-identity's webhook added the volume.
// Both add the same one.
func isInjectedVolume(v corev1.Volume) bool {
	return reserved(v.Name) && v.Projected != nil && slices.ContainsFunc(v.Projected.Sources, func(s corev1.VolumeProjection) bool {
		return s.ServiceAccountToken != nil && s.ServiceAccountToken.Path == tokenPath
	})
}

// foreign reports whether a container with the name of an injected one is neither ours nor
// azure-workload-identity's, whose images are named proxy and proxy-init in every registry.
func (s *settings) foreign(c corev1.Container) bool {
	theirs, ours := "proxy", s.ProxyImage
	if c.Name == ProxyInitName {
		theirs, ours = "proxy-init", s.ProxyInitImage
	}
	return !isInjected(c) && imageName(c.Image) != theirs && imageName(c.Image) != imageName(ours)
}

// warnReplaced warns about containers of the author that are replaced because they have the name
// of an injected container.
func (p *plan) warnReplaced(replaced ...corev1.Container) {
	for _, c := range replaced {
		if isOurs(c) && p.settings.foreign(c) {
			p.warnf("container %s with image %q is replaced by the injected container of the same name; rename your container", c.Name, shorten(c.Image))
		}
	}
}

// imageName returns an image's name without registry, tag and digest.
func imageName(image string) string {
	name, _, _ := strings.Cut(image, "@")
	name, _, _ = strings.Cut(path.Base(name), ":")
	return name
}
