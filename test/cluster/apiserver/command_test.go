package apiserver

import (
	"bytes"
	"context"
	"os/exec"
	"reflect"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	"imds-oidc-proxy/test/cluster"
)

// injectByCommand runs imds-migrate inject on a pod's manifest, with the webhook's settings.
func injectByCommand(ctx context.Context, t *testing.T, pod *corev1.Pod) *corev1.Pod {
	t.Helper()
	pod = pod.DeepCopy()
	pod.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}
	manifest, err := yaml.Marshal(pod)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, program("imds-migrate"), "inject", "--client-id="+clientID, "--tenant-id="+tenantID,
		"--proxy-image="+proxyImage, "--proxy-init-image="+proxyInitImage)
	cmd.Stdin = bytes.NewReader(manifest)
	output, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	objects, err := cluster.Objects(output)
	if err != nil || len(objects) != 1 {
		t.Fatalf("%d objects, %v; want one", len(objects), err)
	}
	injected := new(corev1.Pod)
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(objects[0].Object, injected); err != nil {
		t.Fatal(err)
	}
	return injected
}

// TestCommandMatchesWebhook checks that imds-migrate and the webhook produce the same pod,
// and that the webhook does not change a pod that imds-migrate injected.
func TestCommandMatchesWebhook(t *testing.T) {
	for _, c := range injections {
		if c.pod.Name == "" {
			continue // the webhook names volumes after the pod, and a manifest has no generated name
		}
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
			defer cancel()
			pod := c.pod.DeepCopy()
			pod.Spec.AutomountServiceAccountToken = new(bool) // false: its volume would have a random name
			written := injectByCommand(ctx, t, pod)
			without, _, err := create(ctx, t, appNamespace(ctx, t, ownWebhookLabel, "none"), written)
			if err != nil {
				t.Fatal(err)
			}
			c.check(t, without)
			for name, with := range map[string]*corev1.Pod{"webhook": pod, "command and webhook": written} {
				created := mustCreate(ctx, t, appNamespace(ctx, t), with, c.warning)
				if !reflect.DeepEqual(created.Spec, without.Spec) {
					t.Errorf("%s:\n%+v\nwant as with the command:\n%+v", name, created.Spec, without.Spec)
				}
			}
		})
	}
	t.Run("no webhook", func(t *testing.T) { // no webhook injects where the command's pods were created
		ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
		defer cancel()
		checkUnchanged(t, mustCreate(ctx, t, appNamespace(ctx, t, ownWebhookLabel, "none"), injected(), ""))
	})
}
