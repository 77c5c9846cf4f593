package inject

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"imds-oidc-proxy/internal/azure"
)

// requireBlockedEnv is the variable of the proxy's --require-imds-blocked. Where the proxy
// forwards to the node's IMDS it is left out: there the redirect keeps the application from
// it, and the proxy would refuse to start.
const requireBlockedEnv = "PROXY_REQUIRE_IMDS_BLOCKED"

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
		env = append(env, corev1.EnvVar{Name: "PROXY_CA_FILE", Value: volumeNamed(caVolume).path()})
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
