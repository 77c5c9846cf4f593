package inject_test

import (
	"testing"

	corev1 "k8s.io/api/core/v1"

	"imds-oidc-proxy/internal/inject"
)

// TestShutdownDelay checks that a proxy that is not a native sidecar serves for a while after
// SIGTERM, at most half of the pod's grace period, and that a native sidecar does not.
func TestShutdownDelay(t *testing.T) {
	grace := func(seconds int64) func(*corev1.Pod) {
		return func(p *corev1.Pod) { p.Spec.TerminationGracePeriodSeconds = &seconds }
	}
	nothing := func(*corev1.Pod) {}
	for name, c := range map[string]struct {
		change func(*corev1.Pod)
		want   string
	}{
		"default grace period": {nothing, "10s"},
		"long":                 {grace(600), "10s"},
		"short":                {grace(7), "3s"},
		"too short":            {grace(1), "(unset)"},
		"none":                 {grace(0), "(unset)"},
		"set by the author":    {annotate(inject.ProxyEnvAnnotation, `{"PROXY_SHUTDOWN_DELAY":"25s"}`), "25s"},
	} {
		old := config()
		old.PostStart = true
		pod := mutate(t, injected(c.change), account(), old)
		if got := value(find(pod.Spec.Containers, inject.ProxyName), "PROXY_SHUTDOWN_DELAY"); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
		delete(pod.Annotations, inject.ProxyEnvAnnotation)
		pod = mutate(t, pod, account(), config())
		if got := value(find(pod.Spec.InitContainers, inject.ProxyName), "PROXY_SHUTDOWN_DELAY"); got != "(unset)" {
			t.Errorf("%s: the native sidecar has %s", name, got)
		}
	}
}
