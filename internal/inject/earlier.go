package inject

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"imds-oidc-proxy/internal/azure"
)

// accountEnv is the variables of application containers whose values come from the service
// account, the annotations or the configuration. The path of the token is not among them: it
// depends on the mounts of a container, and the token is the same for every account.
var accountEnv = []string{
	azure.EnvClientID, azure.EnvTenantID, azure.EnvAuthorityHost,
	azure.EnvTokenProxy, azure.EnvSNIName, azure.EnvCAFile, azure.EnvCAData, azure.EnvIMDSHost,
}

// earlierValues returns the values of accountEnv that an earlier pass wrote, by name. Between two
// passes, another webhook may have given the pod another service account. The earlier pass gave
// the same values to the proxy that it injected; without a proxy, it recorded them in an
// annotation.
func earlierValues(pod *corev1.Pod) map[string]string {
	earlier := map[string]string{}
	for _, c := range allContainers(pod) {
		if c.Name != ProxyName || !isInjected(*c.Container) {
			continue
		}
		for _, e := range c.Env {
			if e.Name == "PROXY_PORT" {
				earlier[azure.EnvIMDSHost] = imdsHost(e.Value)
			} else if slices.Contains(accountEnv, e.Name) {
				earlier[e.Name] = e.Value
			}
		}
		addAppService(earlier, c.Container)
		return earlier
	}
	// An invalid value, which only an author can have written, records nothing.
	if json.Unmarshal([]byte(pod.Annotations[injectedAnnotation]), &earlier) != nil {
		return nil
	}
	return earlier
}

// imdsHost returns AZURE_POD_IDENTITY_AUTHORITY_HOST for the port of the proxy.
func imdsHost(port string) string { return fmt.Sprintf("http://%s:%s", loopback, port) }

// writtenIn returns a function that reports whether an earlier pass wrote a variable of the
// container: it has the value that this pass wrote, and it comes after the path of the token, as
// with [plan.injectedBefore]. A pass writes all of appServiceNames or none.
func (p *plan) writtenIn(c containerRef) func(int) bool {
	anchor := variable(c.Container, azure.EnvFederatedTokenFile)
	same := func(i int) bool {
		value, known := p.earlier[c.Env[i].Name]
		return known && valueText(c.Env[i]) == value && anchor >= 0 && anchor < i
	}
	hasAll := !slices.ContainsFunc(appServiceNames, func(name string) bool {
		i := variable(c.Container, name)
		return i < 0 || !same(i)
	})
	return func(i int) bool {
		return same(i) && (hasAll || !slices.Contains(appServiceNames, c.Env[i].Name))
	}
}

// recordValues records the values of accountEnv in an annotation. The annotation of an earlier
// configuration is removed from a pod that has them in its proxy.
func (p *plan) recordValues() {
	values := map[string]string{}
	for _, e := range p.identityEnv(p.token.mountPath) {
		if slices.Contains(accountEnv, e.Name) {
			values[e.Name] = e.Value
		}
	}
	text := encoded(values)
	had, recorded := p.pod.Annotations[injectedAnnotation]
	path := "/metadata/annotations/" + escape(injectedAnnotation)
	switch {
	case p.settings.inject && recorded:
		p.remove(path)
	case p.settings.inject || !p.settings.RecordValues || recorded && had == text:
	case len(p.pod.Annotations) == 0:
		p.add("/metadata/annotations", map[string]string{injectedAnnotation: text})
	default:
		p.add(path, text)
	}
}

// removeWritten removes the annotations of recordValues and requestRedirect.
func (p *plan) removeWritten() {
	var written []string
	for _, name := range slices.Sorted(maps.Keys(p.pod.Annotations)) {
		if isWritten(name) {
			written = append(written, name)
		}
	}
	if len(written) > 0 && len(written) == len(p.pod.Annotations) {
		p.remove("/metadata/annotations")
		return
	}
	for _, name := range written {
		p.remove("/metadata/annotations/" + escape(name))
	}
}
