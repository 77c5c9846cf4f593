package inject

import (
	"encoding/json"
	"path"
	"reflect"
	"regexp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
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
	for name := range wanted {
		if held[name] != wanted[name] {
			return false
		}
	}
	for name := range held {
		if _, ok := wanted[name]; !ok && isSetting(want.Name, name) {
			return false
		}
	}
	return true
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
func tree(c corev1.Container) any {
	text, err := json.Marshal(c)
	if err != nil {
		return nil // of these types it is always JSON
	}
	var t any
	if err := json.Unmarshal(text, &t); err != nil {
		return nil
	}
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
