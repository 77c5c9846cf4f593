package apiserver

import (
	"context"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"imds-oidc-proxy/test/cluster"
)

// testTimeout limits each test. A test sends few requests; a machine under load needs more
// time for them.
const testTimeout = 30 * time.Second

const (
	podSecurityEnforce = "pod-security.kubernetes.io/enforce"
	privileged         = "privileged"
	restricted         = "restricted"
	baseline           = "baseline"
)

// variants are the directories of deploy/ that contain a pod, with the Pod Security level
// that deploy/README.md gives each.
var variants = map[string]string{
	"dev-pod": restricted, "deployment": privileged, "job": privileged, "sealed": privileged, "no-redirect": restricted,
}

// TestManifests applies every object of deploy/ as a dry run, in which unknown fields are
// errors. deploy/monitoring is missing, because the API server has no definitions of its
// kinds; test/deploy/manifests decodes them.
func TestManifests(t *testing.T) {
	for directory, level := range variants {
		t.Run(directory, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
			defer cancel()
			namespace := newNamespace(ctx, t, level)
			makeAccount(ctx, t, namespace, "app") // dev-pod uses an existing service account
			for _, object := range render(t, directory, namespace) {
				if _, err := running.Apply(ctx, object, true); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// TestManifestsPodSecurity checks that the pods of each variant are admitted at the level
// in variants. If that is privileged, it also checks that level baseline refuses them only
// because of NET_ADMIN.
func TestManifestsPodSecurity(t *testing.T) {
	for directory, level := range variants {
		t.Run(directory, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
			defer cancel()
			if err := tryPods(ctx, t, directory, level); err != nil {
				t.Errorf("level %s: %v", level, err)
			}
			if level == restricted {
				return
			}
			err := tryPods(ctx, t, directory, baseline)
			if err == nil || !strings.Contains(err.Error(), `container "azwi-proxy-init" must not include "NET_ADMIN"`) || strings.Contains(err.Error(), "), ") {
				t.Errorf("level %s: %v, want a refusal of NET_ADMIN only", baseline, err)
			}
		})
	}
}

// tryPods applies the pods of a variant as a dry run, in a namespace with the Pod Security
// level, and returns the last refusal.
func tryPods(ctx context.Context, t *testing.T, directory, level string) error {
	t.Helper()
	namespace, pods := newNamespace(ctx, t, level), 0
	makeAccount(ctx, t, namespace, "app")
	var refused error
	for _, object := range render(t, directory, namespace) {
		pod := podOf(t, object)
		if pod == nil {
			if _, err := running.Apply(ctx, object, false); err != nil {
				t.Fatal(err) // not a dry run: a pod needs its service account
			}
			continue
		}
		pods++
		if _, err := running.Apply(ctx, pod, true); err != nil {
			refused = err
		}
	}
	if pods == 0 {
		t.Fatalf("deploy/%s has no pod", directory)
	}
	return refused
}

// podOf returns the object if it is a pod, or the pod that a controller would create from
// the object's template, or nil if the object has neither.
func podOf(t *testing.T, object *unstructured.Unstructured) *unstructured.Unstructured {
	t.Helper()
	if object.GetKind() == "Pod" {
		return object
	}
	template, found, err := unstructured.NestedMap(object.Object, "spec", "template")
	if err != nil {
		t.Fatal(err)
	}
	if !found {
		return nil
	}
	pod := &unstructured.Unstructured{Object: template}
	pod.SetAPIVersion("v1")
	pod.SetKind("Pod")
	pod.SetName(object.GetName())
	pod.SetNamespace(object.GetNamespace())
	return pod
}

// render renders a directory of deploy/ without its Namespace, and moves the other objects
// to the given namespace.
func render(t *testing.T, directory, namespace string) []*unstructured.Unstructured {
	t.Helper()
	objects, err := cluster.Render(directory)
	if err != nil {
		t.Fatal(err)
	}
	var kept []*unstructured.Unstructured
	for _, object := range objects {
		if object.GetKind() != "Namespace" {
			object.SetNamespace(namespace)
			kept = append(kept, object)
		}
	}
	if len(kept) == 0 {
		t.Fatalf("deploy/%s has no objects but a Namespace", directory)
	}
	return kept
}

// makeAccount creates a service account. annotations are pairs of name and value.
func makeAccount(ctx context.Context, t *testing.T, namespace, name string, annotations ...string) {
	t.Helper()
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{}}}
	for i := 0; i+1 < len(annotations); i += 2 {
		account.Annotations[annotations[i]] = annotations[i+1]
	}
	if _, err := running.Client.CoreV1().ServiceAccounts(namespace).Create(ctx, account, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func newNamespace(ctx context.Context, t *testing.T, level string) string {
	t.Helper()
	name, err := running.NewNamespace(ctx, map[string]string{podSecurityEnforce: level})
	if err != nil {
		t.Fatal(err)
	}
	return name
}
