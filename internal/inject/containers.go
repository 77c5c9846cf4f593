package inject

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"imds-oidc-proxy/internal/azure"
)

const (
	adminPortName = "imds-admin"

	// shutdownDelayEnv is the variable of the proxy's --shutdown-delay. maxShutdownDelay is
	// how long a proxy that is not a native sidecar serves after SIGTERM, in seconds, unless
	// half of the pod's grace period is less. Every pod ends that much later, and the other
	// half is left for the requests in progress.
	shutdownDelayEnv = "PROXY_SHUTDOWN_DELAY"
	maxShutdownDelay = 10

	// wireServer is the two endpoints of 168.63.129.16 with information about the node. Other
	// ports must stay reachable: Azure's DNS server has the same address.
	wireServer = "168.63.129.16:80,168.63.129.16:32526"

	// backendLegacy is the backend of proxy-init that needs a capability besides NET_ADMIN.
	backendLegacy = "legacy"
)

// probeCommand waits for the proxy. The kubelet has no timeout for a hook, and a pod that is deleted
// while its hook runs is not stopped before the hook ends: hence the timeout here.
var probeCommand = []string{"/proxy", "--probe", "--probe-timeout=20s"}

// proxyContainer returns the container of deploy/components/sidecar. Its settings are environment
// variables and not flags, so that `kubectl exec … -- /proxy check` uses them too.
func (p *plan) proxyContainer() corev1.Container {
	s := p.settings
	c := corev1.Container{
		Name:            ProxyName,
		Image:           s.ProxyImage,
		Env:             slices.Concat(p.identityEnv(p.token.mountPath), p.binding.env, s.proxyEnv()),
		Resources:       *s.ProxyResources,
		VolumeMounts:    slices.Concat([]corev1.VolumeMount{p.mount(p.token.mountPath)}, p.binding.mounts, s.configMapMounts()),
		SecurityContext: restricted(azure.ProxyID),
	}
	// A startup probe would delay the pod by a second: see ADR 0051.
	c.Lifecycle = &corev1.Lifecycle{PostStart: &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: slices.Clone(probeCommand)}}}
	if !s.PostStart {
		c.RestartPolicy = new(corev1.ContainerRestartPolicyAlways)
	}
	if s.adminPort != 0 {
		c.Ports = []corev1.ContainerPort{{Name: adminPortName, ContainerPort: s.adminPort}}
		c.LivenessProbe = &corev1.Probe{
			ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{
				Path: "/livez", Port: intstr.FromString(adminPortName)}},
			TimeoutSeconds: 3, PeriodSeconds: 20, FailureThreshold: 3,
		}
	}
	return c
}

func (s *settings) proxyEnv() []corev1.EnvVar {
	env := []corev1.EnvVar{
		{Name: "PROXY_PORT", Value: decimal(s.port)},
		{Name: "PROXY_IDENTITY", Value: s.identities.text},
		{Name: "PROXY_PREFETCH", Value: s.prefetch.text},
		{Name: "PROXY_ALLOWED_CLIENT_IDS", Value: s.allowed.text},
		{Name: "PROXY_LOG_LEVEL", Value: s.LogLevel},
		{Name: "GOMEMLIMIT", Value: s.memoryLimit},
	}
	if s.adminPort != 0 {
		env = append(env, corev1.EnvVar{Name: "PROXY_ADMIN_ADDRESS", Value: ":" + decimal(s.adminPort)})
	}
	// If the pod is sealed, a forwarded request would be redirected to the proxy again.
	// Without a redirect, an application that reads metadata asks the node itself.
	if !s.redirect.forwards() {
		env = append(env, corev1.EnvVar{Name: "PROXY_IMDS_PASSTHROUGH", Value: "off"})
	}
	if s.proxyProves() {
		env = append(env, corev1.EnvVar{Name: requireRedirectEnv, Value: "true"})
	}
	env = append(env, s.instanceEnvs()...)
	if s.servesAppService() {
		env = append(env, podUID(appServiceHeaderEnv))
	}
	if s.redirect == redirectNone { // for `proxy check`: the pod is meant to have no redirect
		env = append(env, corev1.EnvVar{Name: azure.EnvIMDSHost, Value: imdsHost(decimal(s.port))})
	}
	extra := s.extraEnv()
	env = append(env, corev1.EnvVar{Name: recordEnv, Value: record(extra, *s.ProxyResources)})
	return append(withoutEmpty(env), extra...)
}

// shutdownDelay returns the PROXY_SHUTDOWN_DELAY of a proxy that is not a native sidecar: it gets
// SIGTERM together with the application, which may still need tokens. The kubelet stops native
// sidecars after the application.
func shutdownDelay(pod *corev1.Pod) string {
	grace := int64(corev1.DefaultTerminationGracePeriodSeconds)
	if given := pod.Spec.TerminationGracePeriodSeconds; given != nil {
		grace = *given
	}
	if delay := min(grace/2, maxShutdownDelay); delay > 0 {
		return fmt.Sprintf("%ds", delay)
	}
	return ""
}

// memoryLimit returns a GOMEMLIMIT of three quarters of the container's memory limit, so that a
// burst causes garbage collection before the container is killed. It returns "" if there is no
// limit.
func memoryLimit(r corev1.ResourceRequirements) string {
	limit := r.Limits[corev1.ResourceMemory]
	if limit.IsZero() { // for Kubernetes, zero means no limit
		return ""
	}
	const mebibyte = 1 << 20
	bytes := limit.Value() / 4 * 3
	if bytes%mebibyte == 0 {
		return fmt.Sprintf("%dMiB", bytes/mebibyte)
	}
	return fmt.Sprintf("%dB", bytes)
}

// initContainer returns the container of deploy/components/redirect, of deploy/components/sealed,
// or the validator.
func (s *settings) initContainer() corev1.Container {
	env := []corev1.EnvVar{
		{Name: "PROXY_PORT", Value: decimal(s.port)},
		{Name: "PROXY_UID", Value: decimal(azure.ProxyID)},
		{Name: "PROXY_GID", Value: decimal(azure.ProxyID)},
		{Name: "PROXY_LOG_LEVEL", Value: s.LogLevel},
	}
	if s.redirect.sealed() {
		env = append(env, corev1.EnvVar{Name: "PROXY_SEAL", Value: "true"}, corev1.EnvVar{Name: "PROXY_DENY", Value: wireServer})
	}
	env = append(env, corev1.EnvVar{Name: recordEnv, Value: record(nil, *s.ProxyInitResources)})
	if s.redirect.byCNI() {
		return s.validator(withoutEmpty(env))
	}
	env = append(env, corev1.EnvVar{Name: "PROXY_BACKEND", Value: s.ProxyInitBackend})
	security := restricted(0)
	security.RunAsNonRoot = new(false)
	security.Capabilities.Add = []corev1.Capability{"NET_ADMIN"}
	if s.ProxyInitBackend == backendLegacy {
		security.Capabilities.Add = append(security.Capabilities.Add, "NET_RAW")
	}
	return corev1.Container{
		Name:            ProxyInitName,
		Image:           s.ProxyInitImage,
		Env:             withoutEmpty(env),
		Resources:       *s.ProxyInitResources,
		SecurityContext: security,
	}
}

// restricted returns a security context that sets every field, since a container inherits unset
// fields from the pod.
func restricted(id int64) *corev1.SecurityContext {
	return &corev1.SecurityContext{
		RunAsNonRoot:             new(true),
		RunAsUser:                &id,
		RunAsGroup:               &id,
		Privileged:               new(false),
		AllowPrivilegeEscalation: new(false),
		ReadOnlyRootFilesystem:   new(true),
		Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		SeccompProfile:           &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
	}
}

func decimal(n int32) string { return strconv.Itoa(int(n)) }

func withoutEmpty(env []corev1.EnvVar) []corev1.EnvVar {
	return slices.DeleteFunc(env, func(e corev1.EnvVar) bool { return e.Value == "" && e.ValueFrom == nil })
}

// ownParts adds what the proxy needs, if it is injected.
func (p *plan) ownParts() {
	if p.settings.inject {
		p.settings.shutdownDelay = shutdownDelay(p.pod)
		p.fitResources()
		p.ownContainers()
		p.metricsLabel()
	}
}

// ownContainers adds the injected containers before all others: a container that starts before
// the redirect reaches the node's IMDS, and one that starts before the proxy gets no token.
func (p *plan) ownContainers() {
	var inits, others []corev1.Container
	if p.settings.hasInitContainer() {
		inits = append(inits, p.settings.initContainer())
	}
	if p.settings.PostStart {
		others = append(others, p.proxyContainer())
	} else {
		inits = append(inits, p.proxyContainer())
	}
	p.ours(initContainers, inits, p.pod.Spec.InitContainers)
	p.ours(containers, others, p.pod.Spec.Containers)
}

// ours puts the wanted containers first in a list, and removes others with their names. If they
// are first already, it replaces only those that differ.
func (p *plan) ours(list string, want, have []corev1.Container) {
	if !inPlace(want, have) {
		p.warnReplaced(have...)
		for i := range want {
			if earlier := p.replaced(want[i].Name); earlier != nil {
				want[i] = p.carried(want[i], *earlier)
			}
		}
		p.front(list, want, have)
		return
	}
	for i := range want {
		switch {
		case !fits(want[i], have[i]):
			p.warnReplaced(have[i])
			p.replace(at(list, i), p.carried(want[i], have[i]))
		case want[i].Image != unpinned(want[i].Image, have[i].Image):
			p.warnf("container %s keeps image %s, which is %s from another registry; remove the container to replace it", want[i].Name, shorten(have[i].Image), shorten(want[i].Image))
		}
	}
}

// replaced returns the container of this name in either list: an injected one, else the first.
func (p *plan) replaced(name string) *corev1.Container {
	var found *corev1.Container
	for _, c := range allContainers(p.pod) {
		if c.Name == name && (found == nil || !isInjected(*found) && isInjected(*c.Container)) {
			found = c.Container
		}
	}
	return found
}

// carried returns the wanted container with the additions of the one that it replaces, unless
// that is a container of the author, and warns about what it loses.
func (p *plan) carried(want, have corev1.Container) corev1.Container {
	if p.settings.foreign(have) {
		return want
	}
	merged, lost := carry(want, have)
	if len(lost) > 0 {
		p.warnf("container %s is replaced and loses %s, which injection does not keep; use an annotation, or another container", want.Name, shorten(strings.Join(lost, ", ")))
	}
	return merged
}

// inPlace reports whether the list begins with containers of the wanted names, and has no others
// with such names.
func inPlace(want, have []corev1.Container) bool {
	return len(have) >= len(want) && !slices.ContainsFunc(have[len(want):], isOurs) &&
		slices.EqualFunc(want, have[:len(want)], func(w, h corev1.Container) bool { return w.Name == h.Name })
}

func (p *plan) front(list string, want, have []corev1.Container) {
	for i, c := range slices.Backward(have) {
		if isOurs(c) {
			p.remove(at(list, i))
		}
	}
	if len(have) == 0 && len(want) > 0 {
		p.add(list, want)
		return
	}
	for i := range want {
		p.add(at(list, i), want[i])
	}
}

func isOurs(c corev1.Container) bool { return isOurName(c.Name) }

func isOurName(name string) bool { return name == ProxyName || name == ProxyInitName }
