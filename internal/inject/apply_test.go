package inject_test

import (
	"encoding/json"
	"testing"

	jsonpatch "github.com/evanphx/json-patch/v5"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"imds-oidc-proxy/internal/inject"
)

// apply puts a patch to a document, as the API server does.
func apply(t testing.TB, document []byte, operations []inject.Operation) []byte {
	t.Helper()
	if len(operations) == 0 {
		return document
	}
	text, err := json.Marshal(operations)
	if err != nil {
		t.Fatal(err)
	}
	patch, err := jsonpatch.DecodePatch(text)
	if err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	patched, err := patch.Apply(document)
	if err != nil {
		t.Fatalf("%v: %s\nto %s", err, text, document)
	}
	return patched
}

// decode reads a pod, in YAML or JSON.
func decode(t testing.TB, document []byte) *corev1.Pod {
	t.Helper()
	var pod corev1.Pod
	if err := yaml.Unmarshal(document, &pod); err != nil {
		t.Fatalf("%v: %s", err, document)
	}
	return &pod
}
