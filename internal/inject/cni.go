package inject

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/cnirequest"
)

// validatorID is the user and group of an init container that only proves the redirect of the CNI
// plugin. It is not the proxy's: the rules exempt that user, who could prove nothing.
const validatorID = 65532

// requireRedirectEnv is the variable of the proxy's --require-redirect.
const requireRedirectEnv = "PROXY_REQUIRE_REDIRECT"

// proxyProves reports whether the proxy proves the redirect of the CNI plugin, and not the
// validator. If the proxy is no native sidecar, containers of the pod start before it.
func (s *settings) proxyProves() bool { return s.redirect.byCNI() && s.noValidator && !s.PostStart }

// ProxyProves reports whether an injected proxy runs only if it has proven the redirect.
func ProxyProves(proxy corev1.Container) bool {
	return slices.Contains(proxy.Env, corev1.EnvVar{Name: requireRedirectEnv, Value: "true"})
}

// hasInitContainer reports whether a container before the proxy installs or proves the redirect.
func (s *settings) hasInitContainer() bool { return s.redirect != redirectNone && !s.proxyProves() }

// validator returns the init container of a pod whose redirect the CNI plugin installs. It fails
// if the plugin did not run. It has no privilege, so that the pod passes the Pod Security level
// restricted if its own containers do.
func (s *settings) validator(env []corev1.EnvVar) corev1.Container {
	return corev1.Container{
		Name:            ProxyInitName,
		Image:           s.ProxyInitImage,
		Args:            []string{"--validate"},
		Env:             env,
		Resources:       *s.ProxyInitResources,
		SecurityContext: restricted(validatorID),
	}
}

// cniRequest returns the redirect that the pod asks the CNI plugin for.
func (s *settings) cniRequest() cnirequest.Request {
	r := cnirequest.New(uint16(s.port), azure.ProxyID, azure.ProxyID)
	if s.redirect.sealed() {
		r.Sealed, r.Deny = true, strings.Split(wireServer, ",")
	}
	return r
}

// requestRedirect adds the annotation for the CNI plugin, or removes that of an earlier pass. A
// pod with the proxy has annotations.
func (p *plan) requestRedirect() {
	path := "/metadata/annotations/" + escape(cnirequest.Annotation)
	want := ""
	if p.settings.inject && p.settings.redirect.byCNI() {
		want = p.settings.cniRequest().String()
	}
	switch have, given := p.pod.Annotations[cnirequest.Annotation]; {
	case want == "" && given:
		p.remove(path)
	case have != want:
		p.add(path, want)
	}
}
