package inject_test

import (
	"fmt"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"imds-oidc-proxy/internal/inject"
)

// TestWrongNames checks the warnings about names without effect, and that there are none about the
// known names and about names of other projects.
func TestWrongNames(t *testing.T) {
	const didYouMean = "has no effect: did you mean azure.workload.identity/"
	for _, c := range []struct {
		part, name, onPod, onAccount string
	}{
		{"annotation", "azure.workload.identity/inject-proxy-sidecar", "", "has no effect: it must be on the pod"},
		{"label", "azure.workload.identity/inject-proxy-sidecar", "has no effect: it must be an annotation of the pod", "has no effect: it must be an annotation of the pod"},
		{"annotation", "azure.workload.identity/use", "has no effect: it must be a label of the pod", "has no effect: it must be a label of the pod"},
		{"label", "azure.workload.identity/use", "", ""},
		{"label", "imds-oidc-proxy/metrics", "", ""},
		{"annotation", "azure.workload.identity/client-id", "has no effect: it must be on the service account", ""},
		{"annotation", "azure.workload.identity/service-account-token-expiration", "", ""},
		{"annotation", "azure.workload.identity/use-identity-binding", "", "has no effect: it must be on the pod"},
		{"annotation", "azure.workload.identity/use-custom", "", ""},
		{"annotation", "azure.workload.idenityt/inject-proxy-sidecar", didYouMean + "inject-proxy-sidecar?", didYouMean + "inject-proxy-sidecar?"},
		{"annotation", "azure.workload.identity/inject_proxy_sidecar", didYouMean + "inject-proxy-sidecar?", didYouMean + "inject-proxy-sidecar?"},
		{"annotation", "azure.workload.identity/clientid", didYouMean + "client-id?", didYouMean + "client-id?"},
		{"label", "azure-workload-identity/use", didYouMean + "use?", didYouMean + "use?"},
		{"label", "azure.workload.identity/Use", didYouMean + "use?", didYouMean + "use?"},
		{"annotation", "azure.workload.identity/audience", "has no effect: unknown name", "has no effect: unknown name"},
		{"annotation", "imds-oidc-proxy/redirct", "has no effect: did you mean imds-oidc-proxy/redirect?", "has no effect: did you mean imds-oidc-proxy/redirect?"},
		{"annotation", "prometheus.io/scrape", "", ""},
		{"label", "app", "", ""},
	} {
		object := metav1.ObjectMeta{Annotations: map[string]string{c.name: "true"}}
		if c.part == "label" {
			object = metav1.ObjectMeta{Labels: map[string]string{c.name: "true"}}
		}
		pod := &corev1.Pod{ObjectMeta: object}
		check := func(got []string, reason string) {
			t.Helper()
			var want []string
			if reason != "" {
				want = []string{c.part + " " + c.name + " " + reason}
			}
			if !slices.Equal(got, want) {
				t.Errorf("got %q, want %q", got, want)
			}
		}
		check(inject.WrongNames(pod), c.onPod)
		check(inject.WrongAccountNames(&object), c.onAccount)
	}
}

// TestWrongNamesBounded checks that the number of warnings is bounded for a pod with many such names.
func TestWrongNamesBounded(t *testing.T) {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{}, Annotations: map[string]string{}}}
	for i := range 1000 {
		pod.Labels[fmt.Sprintf("azure.workload.identity/a%d", i)] = ""
		pod.Annotations[fmt.Sprintf("azure.workload.identity/b%d", i)] = ""
	}
	if got := inject.WrongNames(pod); len(got) != 10 {
		t.Errorf("%d warnings, want 10", len(got))
	}
}
