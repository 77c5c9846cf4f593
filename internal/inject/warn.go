package inject

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"imds-oidc-proxy/internal/azure"
)

func (p *plan) warnf(format string, args ...any) {
	p.Warnings = append(p.Warnings, fmt.Sprintf(format, args...))
}

// warnUnlabelled warns about a pod without the label whose author probably wants injection.
func warnUnlabelled(pod *corev1.Pod) []string {
	warnings := WrongNames(pod)
	_, annotated := pod.Annotations[InjectProxyAnnotation]
	switch value := strings.ToLower(pod.Labels[UseLabel]); {
	case annotated:
		warnings = append(warnings, fmt.Sprintf(`annotation %s has no effect without the label %s: "true" on the pod`, InjectProxyAnnotation, UseLabel))
	case value == "true" || value == "1" || value == "yes":
		warnings = append(warnings, fmt.Sprintf(`label %s has no effect: must be "true"`, UseLabel))
	}
	return warnings
}

// warn adds the warnings that do not depend on a single change.
func (p *plan) warn() {
	p.Warnings = append(p.Warnings, WrongNames(p.pod)...)
	p.warnIdentity()
	p.warnSkipped()
	p.warnAADPodIdentity()
	if p.settings.inject {
		p.warnApplication()
		p.warnRedirect()
		p.warnNoValidator()
		p.warnInstance()
		p.warnPostStart()
		p.warnTokenMode()
	} else {
		p.warnNotInjected()
	}
}

func (p *plan) warnIdentity() {
	if p.settings.clientID == "" {
		p.warnf("%s has no annotation %s: requests without a client ID get no token", accountName(p.account), ClientIDAnnotation)
	}
	if p.settings.TenantID == "" {
		p.warnf("%s has no annotation %s, and the configuration has no tenant: %s is not set", accountName(p.account), TenantIDAnnotation, azure.EnvTenantID)
	}
}

// warnNoToken warns about a token path that the author set and at which no volume is mounted.
func (p *plan) warnNoToken(c containerRef, mountPath string) {
	i := variable(c.Container, azure.EnvFederatedTokenFile)
	if i < 0 || !isPath(c.Env[i]) {
		return
	}
	if env := c.Env[i]; !mountedIn(c.Container, env.Value) && !inDir(env.Value, mountPath) && !dangling(c.Container, env, mountPath) {
		p.warnf("container %q keeps its own %s, but mounts no volume at %s; remove the variable to use the injected token",
			shorten(c.Name), azure.EnvFederatedTokenFile, shorten(env.Value))
	}
}

// warnOutdated warns about variables that were injected with other annotations or another
// configuration. They are not changed, since the author may have edited them.
func (p *plan) warnOutdated(c containerRef, want []corev1.EnvVar) {
	ours, written := p.injectedBefore(c), p.writtenIn(c)
	for i, env := range c.Env {
		isFile := env.Name == azure.EnvFederatedTokenFile || env.Name == azure.EnvCAFile // the path may differ
		same := func(e corev1.EnvVar) bool {
			return e.Name == env.Name && azure.EqualFoldASCII(strings.TrimSuffix(valueText(e), "/"), strings.TrimSuffix(valueText(env), "/"))
		}
		if ours(i, env) && !isFile && !written(i) && !p.isBinding(env.Name) && !slices.ContainsFunc(want, same) {
			p.warnf("container %q keeps its %s, which differs from the value that would be injected now; remove the variable, or run imds-migrate uninject before you inject again", shorten(c.Name), env.Name)
		}
	}
}

func (p *plan) warnSkipped() {
	unknown := maps.Clone(p.settings.skip)
	for _, c := range allContainers(p.pod) {
		delete(unknown, c.Name)
	}
	// A pod may list the injected containers for azure-workload-identity, which would otherwise
	// add a token to them.
	delete(unknown, ProxyName)
	delete(unknown, ProxyInitName)
	if len(unknown) > 0 {
		p.warnf("annotation %s: the pod has no container %q", SkipContainersAnnotation, shorten(strings.Join(slices.Sorted(maps.Keys(unknown)), "; ")))
	}
}

func (p *plan) warnRedirect() {
	if p.settings.redirect == redirectNone {
		p.warnNoRedirect()
		return
	}
	for _, c := range authorContainers(p.pod) {
		if canChangeRules(c.SecurityContext) {
			p.warnf("container %q is privileged or has NET_ADMIN: it can remove the redirect", shorten(c.Name))
		}
	}
}

// warnNoValidator warns about an annotation that has no effect.
func (p *plan) warnNoValidator() {
	switch s := p.settings; {
	case !s.noValidator:
	case !s.redirect.byCNI():
		p.warnf(`annotation %s: "false" has no effect with redirect %s: it is for cni-forward and cni-sealed`, CNIValidatorAnnotation, s.redirect)
	case s.PostStart:
		p.warnf(`annotation %s: "false" has no effect: the proxy is not a native sidecar, so other containers start before it`, CNIValidatorAnnotation)
	}
}

// canChangeRules reports whether a container may change iptables rules.
func canChangeRules(s *corev1.SecurityContext) bool {
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

// warnPostStart warns about the limits of a proxy that is not a native sidecar.
func (p *plan) warnPostStart() {
	if !p.settings.PostStart {
		return
	}
	if slices.ContainsFunc(p.pod.Spec.InitContainers, func(c corev1.Container) bool { return !isOurs(c) }) {
		p.warnf("init containers get no tokens: the proxy is not a native sidecar, so it starts after them")
	}
	if r := p.pod.Spec.RestartPolicy; r == corev1.RestartPolicyNever || r == corev1.RestartPolicyOnFailure {
		p.warnf("spec.restartPolicy %s: the pod does not complete by itself, since the proxy is not a native sidecar and keeps running", r)
	}
}

func (p *plan) warnNotInjected() {
	if p.settings.injectSet {
		p.warnf(`annotation %s is "false": azure-workload-identity v1.6.0 injects its proxy nevertheless; remove the annotation if its webhook is in the cluster`, InjectProxyAnnotation)
	}
	for _, a := range annotations {
		if _, given := p.pod.Annotations[a.Name]; given && a.proxy {
			p.warnf(`annotation %s has no effect without %s: "true"`, a.Name, InjectProxyAnnotation)
		}
	}
}
