package inject

import (
	"path"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"imds-oidc-proxy/internal/azure"
)

// ConfigMapKey is a key of a ConfigMap in the pod's namespace. The zero value means none.
type ConfigMapKey struct{ Name, Key string }

// configMapKeyOr returns a parser of NAME or NAME/KEY with this default key.
func configMapKeyOr(defaultKey string) func(string) (ConfigMapKey, error) {
	return func(s string) (ConfigMapKey, error) {
		name, key, given := strings.Cut(s, "/")
		if !given {
			key = defaultKey
		}
		if len(validation.IsDNS1123Subdomain(name)) > 0 || len(validation.IsConfigMapKey(key)) > 0 {
			return ConfigMapKey{}, azure.Invalid(s, "must be the name of a ConfigMap, or NAME/KEY")
		}
		return ConfigMapKey{name, key}, nil
	}
}

// parseConfigMapKey parses the ConfigMap with certificate authorities.
var parseConfigMapKey = configMapKeyOr(caKey)

// The volumes with a file from a ConfigMap for the proxy. Only injected volumes have these names.
const (
	caVolume       = "imds-oidc-proxy-ca"
	instanceVolume = "imds-oidc-proxy-instance"
)

// configMapVolume is a volume with a file from a ConfigMap, and its mount in the proxy.
type configMapVolume struct {
	name, mountPath, file string
	of                    func(*settings) ConfigMapKey
}

var configMapVolumes = []configMapVolume{
	{caVolume, "/etc/imds-oidc-proxy/ca", caKey, func(s *settings) ConfigMapKey { return s.CAConfigMap }},
	{instanceVolume, "/etc/imds-oidc-proxy/instance", instanceKey, func(s *settings) ConfigMapKey { return s.instanceConfigMap }},
}

// path returns the path of the file in the proxy.
func (v configMapVolume) path() string { return path.Join(v.mountPath, v.file) }

// volume returns the volume for a ConfigMap, which is not optional: without the file the proxy
// would not do what the pod's author wants.
func (v configMapVolume) volume(from ConfigMapKey) corev1.Volume {
	return corev1.Volume{Name: v.name, VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{
		LocalObjectReference: corev1.LocalObjectReference{Name: from.Name},
		Items:                []corev1.KeyToPath{{Key: from.Key, Path: v.file}},
	}}}
}

func volumeNamed(name string) configMapVolume {
	return configMapVolumes[slices.IndexFunc(configMapVolumes, func(v configMapVolume) bool { return v.name == name })]
}

// isConfigMapName reports whether a volume has the name of an injected one with a ConfigMap.
func isConfigMapName(name string) bool {
	return slices.ContainsFunc(configMapVolumes, func(v configMapVolume) bool { return v.name == name })
}

// isConfigMapVolume reports whether [Pod] added the volume.
func isConfigMapVolume(v corev1.Volume) bool { return isConfigMapName(v.Name) && v.ConfigMap != nil }

// isConfigMapPath reports whether the proxy has an injected volume with a ConfigMap at a path.
func isConfigMapPath(mountPath string) bool {
	return slices.ContainsFunc(configMapVolumes, func(v configMapVolume) bool { return v.mountPath == path.Clean(mountPath) })
}

func (s *settings) configMapMounts() []corev1.VolumeMount {
	var mounts []corev1.VolumeMount
	for _, v := range configMapVolumes {
		if v.of(s).Name != "" {
			mounts = append(mounts, corev1.VolumeMount{Name: v.name, MountPath: v.mountPath, ReadOnly: true})
		}
	}
	return mounts
}

// addConfigMapVolumes adds the volumes that the proxy needs, replaces those of another
// configuration, and removes those that nothing uses any more. It is called after tokenVolume, with
// the number of volumes that the pod then has.
func (p *plan) addConfigMapVolumes(count int) error {
	var unused []int
	var missing []corev1.Volume
	for _, v := range configMapVolumes {
		from := v.of(p.settings)
		needed := p.settings.inject && from.Name != ""
		i := slices.IndexFunc(p.pod.Spec.Volumes, func(have corev1.Volume) bool { return have.Name == v.name })
		switch {
		case !needed && (i < 0 || !isConfigMapVolume(p.pod.Spec.Volumes[i]) || p.mounts(v.name)):
		case !needed:
			unused = append(unused, i)
		case i < 0:
			missing = append(missing, v.volume(from))
		case isSubset(asJSON(v.volume(from)), asJSON(p.pod.Spec.Volumes[i])):
		case !isConfigMapVolume(p.pod.Spec.Volumes[i]) || p.mounts(v.name):
			return refuse("spec.volumes["+v.name+"].name", "this name is reserved for the injected volume; use another name")
		default:
			p.replace(at(volumes, i), v.volume(from))
		}
	}
	slices.Sort(unused)
	for _, i := range slices.Backward(unused) {
		p.remove(at(volumes, i))
	}
	appendAll(p, volumes, count, missing)
	return nil
}

// mounts reports whether a container of the author mounts a volume.
func (p *plan) mounts(volume string) bool {
	return slices.ContainsFunc(authorContainers(p.pod), func(c containerRef) bool { return mountOf(c.Container, volume) != nil })
}
