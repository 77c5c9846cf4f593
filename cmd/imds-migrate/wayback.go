package main

import (
	"encoding/json"
	"strings"

	jsonpatch "github.com/evanphx/json-patch/v5"
	corev1 "k8s.io/api/core/v1"

	"imds-oidc-proxy/internal/inject"
)

// wayBack says what --uninject would not give back of a pod that is injected now, as it
// cannot be told from what injection wrote. Where a pod was injected before, what
// counts is what --uninject would make of it without this run.
func wayBack(pod *corev1.Pod, patch []inject.Operation) (string, error) {
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
	return "--uninject will not make this what it was: " + strings.Join(differences, "; "), nil
}

// patched is a pod with a patch applied, as the API server does it.
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
