package inject

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"imds-oidc-proxy/internal/azure"
)

func (p *plan) warnf(format string, args ...any) {
	p.Warnings = append(p.Warnings, fmt.Sprintf(format, args...))
}

// warnUnlabelled is for pods that say how, and not that.
func warnUnlabelled(pod *corev1.Pod) []string {
	if _, annotated := pod.Annotations[InjectProxyAnnotation]; !annotated {
		return nil
	}
	return []string{fmt.Sprintf(`annotation %s has no effect without the label %s: "true" on the pod`, InjectProxyAnnotation, UseLabel)}
}

// warn says what will be done and is probably not what was meant.
func (p *plan) warn() {
	p.warnIdentity()
	p.warnSkipped()
	if p.settings.inject {
		p.warnRedirect()
		p.warnPostStart()
		p.warnTokenMode()
	} else {
		p.warnNotInjected()
	}
}

func (p *plan) warnIdentity() {
	if p.settings.clientID == "" {
		p.warnf("%s has no annotation %s: a request that names no identity gets no token", accountName(p.account), ClientIDAnnotation)
	}
	if p.settings.TenantID == "" {
		p.warnf("%s has no annotation %s, and the configuration no tenant: %s is not set", accountName(p.account), TenantIDAnnotation, azure.EnvTenantID)
	}
}

// warnNoToken is for a path that the author wrote and nothing is mounted at.
func (p *plan) warnNoToken(c place, mountPath string) {
	i := variable(c.Container, azure.EnvFederatedTokenFile)
	if i < 0 || !isPath(c.Env[i]) {
		return
	}
	if env := c.Env[i]; !mountedIn(c.Container, env.Value) && !below(env.Value, mountPath) && !dangling(c.Container, env, mountPath) {
		p.warnf("container %q keeps its own %s, and mounts no volume at %s; remove the variable for the token that is injected",
			shorten(c.Name), azure.EnvFederatedTokenFile, shorten(env.Value))
	}
}

// warnOutdated is for variables that were injected by other annotations or another
// configuration. Their author may have changed them since, so they stay.
func (p *plan) warnOutdated(c place, want []corev1.EnvVar) {
	ours := p.injectedBefore(c)
	for i, env := range c.Env {
		isFile := env.Name == azure.EnvFederatedTokenFile || env.Name == azure.EnvCAFile // which may be elsewhere
		same := func(e corev1.EnvVar) bool {
			return e.Name == env.Name && azure.EqualFoldASCII(strings.TrimSuffix(e.Value, "/"), strings.TrimSuffix(env.Value, "/"))
		}
		if ours(i, env) && !isFile && !slices.ContainsFunc(want, same) {
			p.warnf("container %q keeps %s, which is not what would be injected now; remove it, or inject again after --uninject", shorten(c.Name), env.Name)
		}
	}
}

func (p *plan) warnSkipped() {
	unknown := slices.DeleteFunc(slices.Clone(p.settings.skip), func(name string) bool {
		// Ours: for azure-workload-identity, which gives them a token otherwise.
		return isOurName(name) || slices.ContainsFunc(places(p.pod), func(c place) bool { return c.Name == name })
	})
	if len(unknown) > 0 {
		p.warnf("annotation %s: the pod has no container %q", SkipContainersAnnotation, shorten(strings.Join(unknown, "; ")))
	}
}

func (p *plan) warnRedirect() {
	if p.settings.redirect == redirectNone {
		p.warnf("%s: none: tokens go to the clients that heed %s only, and nothing keeps the pod from the node's IMDS", RedirectAnnotation, azure.EnvIMDSHost)
		return
	}
	for _, c := range authors(p.pod) {
		if ruleChanger(c.SecurityContext) {
			p.warnf("container %q is privileged or has NET_ADMIN: it can take the redirect away", shorten(c.Name))
		}
	}
}

func ruleChanger(s *corev1.SecurityContext) bool {
	if s == nil {
		return false
	}
	if s.Privileged != nil && *s.Privileged {
		return true
	}
	return s.Capabilities != nil && slices.ContainsFunc(s.Capabilities.Add, func(c corev1.Capability) bool {
		return slices.Contains([]string{"NET_ADMIN", "ALL"}, strings.TrimPrefix(strings.ToUpper(string(c)), "CAP_"))
	})
}

// warnPostStart says what a sidecar cannot do before native ones.
func (p *plan) warnPostStart() {
	if !p.settings.PostStart {
		return
	}
	if slices.ContainsFunc(p.pod.Spec.InitContainers, func(c corev1.Container) bool { return !isOurs(c) }) {
		p.warnf("init containers get no tokens: on this server the proxy starts after them")
	}
	if r := p.pod.Spec.RestartPolicy; r == corev1.RestartPolicyNever || r == corev1.RestartPolicyOnFailure {
		p.warnf("spec.restartPolicy %s: the pod will not complete by itself, as on this server the proxy runs on", r)
	}
}

func (p *plan) warnNotInjected() {
	if p.settings.injectSaid {
		p.warnf(`annotation %s is false: azure-workload-identity v1.6.0 injects even so; remove it where its webhook runs`, InjectProxyAnnotation)
	}
	for _, a := range annotations {
		if _, given := p.pod.Annotations[a.Name]; given && a.proxy {
			p.warnf(`annotation %s has no effect without %s: "true"`, a.Name, InjectProxyAnnotation)
		}
	}
}
