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

// patience is for one request or a few on a machine under load.
const patience = 30 * time.Second

const (
	podSecurityEnforce = "pod-security.kubernetes.io/enforce"
	privileged         = "privileged"
	restricted         = "restricted"
	baseline           = "baseline"
)

// variants of deploy/ that hold a pod, with the Pod Security level that its README
// gives each.
var variants = map[string]string{
	"dev-pod": restricted, "deployment": privileged, "job": privileged, "sealed": privileged, "no-redirect": restricted,
}

// TestManifests applies every object of deploy/ to the API server, which admits it
// and keeps nothing, with fields that it does not know an error. Left out is
// deploy/monitoring, whose kinds are another project's: test/deploy/manifests decodes them.
func TestManifests(t *testing.T) {
	for directory, level := range variants {
		t.Run(directory, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			namespace := newNamespace(ctx, t, level)
			makeAccount(ctx, t, namespace, "app") // dev-pod's is that of the application in question
			for _, object := range render(t, directory, namespace) {
				if _, err := running.Apply(ctx, object, true); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// TestManifestsPodSecurity makes the pod of every variant at the level that the
// README gives it, and, where that is not the strictest, at the next one, which has
// to refuse it for NET_ADMIN and nothing else.
func TestManifestsPodSecurity(t *testing.T) {
	for directory, level := range variants {
		t.Run(directory, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			if err := tryPods(ctx, t, directory, level); err != nil {
				t.Errorf("level %s: %v", level, err)
			}
			if level == restricted {
				return
			}
			err := tryPods(ctx, t, directory, baseline)
			if err == nil || !strings.Contains(err.Error(), `container "azwi-proxy-init" must not include "NET_ADMIN"`) || strings.Contains(err.Error(), "), ") {
				t.Errorf("level %s: %v, want a refusal for NET_ADMIN alone", baseline, err)
			}
		})
	}
}

// tryPods has the pods of a variant admitted in a namespace of that level.
func tryPods(ctx context.Context, t *testing.T, directory, level string) error {
	t.Helper()
	namespace, pods := newNamespace(ctx, t, level), 0
	makeAccount(ctx, t, namespace, "app")
	var refused error
	for _, object := range render(t, directory, namespace) {
		pod := podOf(t, object)
		if pod == nil {
			if _, err := running.Apply(ctx, object, false); err != nil {
				t.Fatal(err) // the service account has to be there before its pod
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

// podOf is the pod that a controller would make of a workload; a pod itself; or nil.
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

// render renders a directory of deploy/ into another namespace than its own, without
// the namespace itself.
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
		t.Fatalf("deploy/%s renders nothing", directory)
	}
	return kept
}

// makeAccount makes a service account, with annotations in pairs of name and value.
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
