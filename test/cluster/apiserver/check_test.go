package apiserver

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os/exec"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"imds-oidc-proxy/internal/preflight"
)

// check runs imds-migrate check, and returns its results about a namespace and its exit code.
func check(ctx context.Context, t *testing.T, kubeconfig, namespace string, args ...string) (results []preflight.Result, code int) {
	t.Helper()
	cmd := exec.CommandContext(ctx, program("imds-migrate"), append([]string{"check", "--kubeconfig=" + kubeconfig, "--namespace=" + namespace, "--output=json"}, args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if exit, exited := errors.AsType[*exec.ExitError](err); exited {
		code = exit.ExitCode()
	} else if err != nil {
		t.Fatal(err)
	}
	var all []preflight.Result
	if err := json.Unmarshal(stdout.Bytes(), &all); err != nil {
		t.Fatalf("%v: %s%s", err, &stdout, &stderr)
	}
	for _, r := range all {
		if strings.HasPrefix(r.Group, "namespace ") {
			results = append(results, r)
		}
	}
	return results, code
}

// TestCheck checks that the verdict of imds-migrate check about a namespace is that of the API server.
func TestCheck(t *testing.T) {
	kubeconfig := writeKubeconfig(t)
	images := []string{"--proxy-image=registry.corp.test/proxy:v1", "--proxy-init-image=registry.corp.test/init:v1"}
	limit := func(ctx context.Context, t *testing.T, namespace string) {
		_, err := running.Client.CoreV1().LimitRanges(namespace).Create(ctx, &corev1.LimitRange{ObjectMeta: metav1.ObjectMeta{Name: "small"}, Spec: corev1.LimitRangeSpec{Limits: []corev1.LimitRangeItem{
			{Type: corev1.LimitTypeContainer, Min: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("50m")}},
		}}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		level   string
		labels  []string
		prepare func(context.Context, *testing.T, string)
		args    []string
		status  preflight.Status
		text    string
		docs    string
	}{
		"privileged":              {privileged, nil, nil, nil, preflight.OK, "a pod with the redirect is accepted", ""},
		"restricted":              {restricted, nil, nil, nil, preflight.Warning, `a pod with the redirect is refused: `, "docs/plan.md#imds131"},
		"baseline":                {baseline, nil, nil, nil, preflight.Warning, `a pod with the redirect is refused: `, "docs/plan.md#imds130"},
		"baseline, before":        {baseline, []string{ownWebhookLabel, "none"}, nil, []string{"--pre"}, preflight.Warning, `a pod with the redirect is refused: `, "docs/plan.md#imds130"},
		"privileged, before":      {privileged, []string{ownWebhookLabel, "none"}, nil, []string{"--pre"}, preflight.OK, "a pod with the redirect is accepted", ""},
		"another webhook's":       {privileged, []string{ownWebhookLabel, "none"}, nil, nil, preflight.Fault, "a pod that requests the sidecar is accepted without it", "docs/webhook.md"},
		"a LimitRange":            {privileged, nil, limit, nil, preflight.Fault, "a pod with the sidecar is refused: ", "docs/plan.md#imds135"},
		"no right to create pods": {privileged, nil, nil, []string{"--as=nobody", "--as-group=system:authenticated"}, "", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
			defer cancel()
			labels := map[string]string{podSecurityEnforce: c.level}
			for i := 0; i+1 < len(c.labels); i += 2 {
				labels[c.labels[i]] = c.labels[i+1]
			}
			namespace, err := running.NewNamespace(ctx, labels)
			if err != nil {
				t.Fatal(err)
			}
			if c.prepare != nil {
				c.prepare(ctx, t, namespace)
			}
			if c.status == "" { // without rights, the cluster cannot be read at all
				cmd := exec.CommandContext(ctx, program("imds-migrate"), append([]string{"check", "--kubeconfig=" + kubeconfig}, c.args...)...)
				out, err := cmd.CombinedOutput()
				if exit, exited := errors.AsType[*exec.ExitError](err); !exited || exit.ExitCode() != 1 || string(out) != "imds-migrate: cannot list pods: you may not list pods\n" {
					t.Errorf("%v, %s", err, out)
				}
				return
			}
			results, code := check(ctx, t, kubeconfig, namespace, append(images, c.args...)...)
			if len(results) == 0 || results[0].Status != c.status || !strings.HasPrefix(results[0].Text, c.text) || results[0].Docs != c.docs {
				t.Errorf("got %+v, want %s %q %s", results, c.status, c.text, c.docs)
			}
			if c.status == preflight.Fault && code != 4 {
				t.Errorf("exit code %d", code)
			}
			pods, err := running.Client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
			if err != nil || len(pods.Items) > 0 {
				t.Errorf("%v; the check has created %d pods", err, len(pods.Items))
			}
		})
	}
}
