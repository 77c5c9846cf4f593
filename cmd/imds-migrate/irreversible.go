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
// warning is only about changes of this patch. The argument emptied is the keys that are written
// without a value and get one: uninject removes them.
func irreversible(pod *corev1.Pod, patch []inject.Operation, emptied []string) (string, error) {
	differences, err := kept(pod, patch)
	if len(emptied) > 0 {
		differences = append(differences, "the manifest loses the empty "+strings.Join(emptied, ", "))
	}
	if err != nil || len(differences) == 0 {
		return "", err
	}
	return "imds-migrate uninject cannot undo this completely: " + strings.Join(differences, "; "), nil
}

// kept returns the differences between a pod and the same pod after a patch and its removal.
func kept(pod *corev1.Pod, patch []inject.Operation) ([]string, error) {
	if len(patch) == 0 {
		return nil, nil
	}
	before, err := patched(pod, inject.Remove(pod).Patch)
	if err != nil {
		return nil, err
	}
	injected, err := patched(pod, patch)
	if err != nil {
		return nil, err
	}
	after, err := patched(injected, inject.Remove(injected).Patch)
	if err != nil {
		return nil, err
	}
	return inject.Differences(before, after), nil
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
