package inject

import (
	"encoding/json"
	"maps"
	"path"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"imds-oidc-proxy/internal/azure"
)

const (
	// caVolume is the volume with the certificate authorities of [Config.CAConfigMap], and
	// caMountPath its mount in the proxy. Only injected volumes have this name.
	caVolume    = "imds-oidc-proxy-ca"
	caMountPath = "/etc/imds-oidc-proxy/ca"

	// requireBlockedEnv is the variable of the proxy's --require-imds-blocked. Where the proxy
	// forwards to the node's IMDS it is left out: there the redirect keeps the application from
	// it, and the proxy would refuse to start.
	requireBlockedEnv = "PROXY_REQUIRE_IMDS_BLOCKED"
)

// ConfigMapKey is a key of a ConfigMap in the pod's namespace. The zero value means none.
type ConfigMapKey struct{ Name, Key string }

// parseConfigMapKey parses NAME or NAME/KEY.
func parseConfigMapKey(s string) (ConfigMapKey, error) {
	name, key, given := strings.Cut(s, "/")
	if !given {
		key = caKey
	}
	if len(validation.IsDNS1123Subdomain(name)) > 0 || len(validation.IsConfigMapKey(key)) > 0 {
		return ConfigMapKey{}, azure.Invalid(s, "must be the name of a ConfigMap, or NAME/KEY")
	}
	return ConfigMapKey{name, key}, nil
}

var parseNoProxy = accepted(func(s string) bool { return !strings.ContainsAny(s, "\r\n") }, "must be one line")

// parseEnv parses variables of the proxy. It refuses those with which the container would be
// another one than the annotations request. The error does not contain values, which may be
// secret.
func parseEnv(s string) ([]corev1.EnvVar, error) {
	var set map[string]string
	if err := json.Unmarshal([]byte(s), &set); err != nil || set == nil {
		return nil, azure.Secret(`must be a JSON object of strings, such as {"PROXY_LOG_FORMAT": "console"}`)
	}
	var env []corev1.EnvVar
	for _, name := range slices.Sorted(maps.Keys(set)) {
		switch {
		case len(validation.IsEnvVarName(name)) > 0:
			return nil, azure.Invalid(name, "must be the name of a variable")
		case isSetting(ProxyName, name) && name != shutdownDelayEnv:
			return nil, azure.Invalid(name, "is set by injection: use the annotation or the flag of this setting")
		}
		env = append(env, corev1.EnvVar{Name: name, Value: set[name]})
	}
	return env, nil
}

// extraEnv returns the variables of the proxy for its connections to Entra and for its end, and
// those of [Config.ProxyEnv], which take precedence.
func (s *settings) extraEnv() []corev1.EnvVar {
	var env []corev1.EnvVar
	if s.CAConfigMap.Name != "" {
		env = append(env, corev1.EnvVar{Name: "PROXY_CA_FILE", Value: path.Join(caMountPath, caKey)})
	}
	env = append(env, corev1.EnvVar{Name: "HTTPS_PROXY", Value: s.HTTPSProxy}, corev1.EnvVar{Name: "NO_PROXY", Value: s.NoProxy})
	if s.PostStart {
		env = append(env, corev1.EnvVar{Name: shutdownDelayEnv, Value: s.shutdownDelay})
	}
	env = slices.DeleteFunc(env, func(e corev1.EnvVar) bool {
		return slices.ContainsFunc(s.ProxyEnv, func(given corev1.EnvVar) bool { return given.Name == e.Name })
	})
	return slices.DeleteFunc(slices.Concat(withoutEmpty(env), s.ProxyEnv), func(e corev1.EnvVar) bool {
		return e.Name == requireBlockedEnv && s.redirect.forwards()
	})
}

func (s *settings) caMounts() []corev1.VolumeMount {
	if s.CAConfigMap.Name == "" {
		return nil
	}
	return []corev1.VolumeMount{{Name: caVolume, MountPath: caMountPath, ReadOnly: true}}
}

// isCAVolume reports whether [Pod] added the volume.
func isCAVolume(v corev1.Volume) bool { return v.Name == caVolume && v.ConfigMap != nil }

// authoritiesVolume adds the volume with the certificate authorities, replaces one of another
// configuration, or removes one that nothing uses any more. It is called after tokenVolume, with
// the number of volumes that the pod then has.
func (p *plan) authoritiesVolume(count int) error {
	ca := p.settings.CAConfigMap
	// The proxy does not trust Entra's certificate without the authorities, so the ConfigMap
	// is not optional.
	want := corev1.Volume{Name: caVolume, VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{
		LocalObjectReference: corev1.LocalObjectReference{Name: ca.Name},
		Items:                []corev1.KeyToPath{{Key: ca.Key, Path: caKey}},
	}}}
	i := slices.IndexFunc(p.pod.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == caVolume })
	needed := p.settings.inject && ca.Name != ""
	switch {
	case !needed && (i < 0 || !isCAVolume(p.pod.Spec.Volumes[i]) || p.mountsCA()):
	case !needed:
		p.remove(at(volumes, i))
	case i < 0:
		appendAll(p, volumes, count, []corev1.Volume{want})
	case isSubset(asJSON(want), asJSON(p.pod.Spec.Volumes[i])):
	case !isCAVolume(p.pod.Spec.Volumes[i]) || p.mountsCA():
		return refuse("spec.volumes["+caVolume+"].name", "this name is reserved for the injected volume; use another name")
	default:
		p.replace(at(volumes, i), want)
	}
	return nil
}

// mountsCA reports whether a container of the author mounts the volume.
func (p *plan) mountsCA() bool {
	return slices.ContainsFunc(authorContainers(p.pod), func(c containerRef) bool { return mountOf(c.Container, caVolume) != nil })
}
