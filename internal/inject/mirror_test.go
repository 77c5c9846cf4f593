package inject_test

import (
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"imds-oidc-proxy/internal/inject"
)

// TestMirrorPod: the API server's copy of a static pod is left alone.
func TestMirrorPod(t *testing.T) {
	result, err := inject.Pod(injected(annotate(corev1.MirrorPodAnnotationKey, "0123")), account(), config())
	if err != nil || len(result.Patch) > 0 || !slices.Equal(result.Warnings, []string{inject.StaticPod}) {
		t.Errorf("%v, %v, want nothing to do and a warning", result, err)
	}
}
