package apiserver

import (
	"bytes"
	"context"
	"encoding/json"
	"os/exec"
	"reflect"
	"regexp"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	"imds-oidc-proxy/internal/inject"
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

// withTokenOfTemplates returns what the spec of an injected pod is if its token has the volume and
// the mount path of a pod whose name is unknown: imds-migrate treats each manifest as one whose
// name may change.
func withTokenOfTemplates(t *testing.T, spec corev1.PodSpec) (renamed corev1.PodSpec) {
	t.Helper()
	text, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	text = regexp.MustCompile(inject.VolumePrefix+"[0-9a-f]+").ReplaceAll(text, []byte(inject.VolumePrefix+"0"))
	text = regexp.MustCompile(`"/var/run/secrets/azure/wi\b`).ReplaceAll(text, []byte(`"/var/run/secrets/azure/imds-oidc-proxy`))
	if err := json.Unmarshal(text, &renamed); err != nil {
		t.Fatal(err)
	}
	return renamed
}

// TestCommandMatchesWebhook checks that imds-migrate and the webhook produce the same pod, except
// for the volume and the mount path of the token, and that the webhook does not change a pod that
// imds-migrate injected.
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
				got, want := mustCreate(ctx, t, appNamespace(ctx, t), with, c.warning).Spec, without.Spec
				if name == "webhook" {
					got, want = withTokenOfTemplates(t, got), withTokenOfTemplates(t, want)
				}
				if !reflect.DeepEqual(got, want) {
					t.Errorf("%s:\n%+v\nwant as with the command:\n%+v", name, got, want)
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
