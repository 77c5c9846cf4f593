package main

import (
	"encoding/json"
	"strings"

	jsonpatch "github.com/evanphx/json-patch/v5"
	corev1 "k8s.io/api/core/v1"

	"imds-oidc-proxy/internal/inject"
)

// irreversible returns a warning about the changes of a patch that uninject cannot undo, because it
// cannot distinguish them from parts of the author, or "". If the pod was injected before, the
// warning is only about changes of this patch.
func irreversible(pod *corev1.Pod, patch []inject.Operation) (string, error) {
	if len(patch) == 0 {
		return "", nil
	}
	before, err := patched(pod, inject.Remove(pod).Patch)
	if err != nil {
		return "", err
	}
	injected, err := patched(pod, patch)
	if err != nil {
		return "", err
	}
	after, err := patched(injected, inject.Remove(injected).Patch)
	if err != nil {
		return "", err
	}
	differences := inject.Differences(before, after)
	if len(differences) == 0 {
		return "", nil
	}
	return "imds-migrate uninject cannot undo this completely: " + strings.Join(differences, "; "), nil
}

// patched returns a pod with a patch applied, as the API server applies it.
func patched(pod *corev1.Pod, operations []inject.Operation) (*corev1.Pod, error) {
	document, err := json.Marshal(pod)
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(operations)
	if err != nil {
		return nil, err
	}
	patch, err := jsonpatch.DecodePatch(text)
	if err != nil {
		return nil, err
	}
	if document, err = patch.Apply(document); err != nil {
		return nil, err
	}
	after := new(corev1.Pod)
	return after, json.Unmarshal(document, after)
}
