//go:build chart

package chart

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestPostRenderer runs Helm with the script of docs/imds-migrate.md. Helm does not give hooks to a
// post-renderer, as the page says.
func TestPostRenderer(t *testing.T) {
	const workload = `
apiVersion: batch/v1
kind: Job
metadata: {name: NAME, annotations: {ANNOTATION}}
spec:
  template:
    spec:
      restartPolicy: Never
      containers:
      - {name: app, image: registry.example.test/app:1}
`
	page, err := os.ReadFile(repository + "/docs/imds-migrate.md")
	if err != nil {
		t.Fatal(err)
	}
	script := regexp.MustCompile("(?s)```sh\n(#!/bin/sh\nexec imds-migrate .*?)```").FindSubmatch(page)
	if script == nil {
		t.Fatal("docs/imds-migrate.md has no script")
	}
	dir := t.TempDir()
	build := exec.Command("go", "build", "-o", filepath.Join(dir, "imds-migrate"), "./cmd/imds-migrate")
	build.Dir = repository
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	for name, text := range map[string]string{
		"inject.sh":               strings.NewReplacer("<NAMESPACE>", "shop", "<TENANT_ID>", "22222222-2222-4222-8222-222222222222", "<CLIENT_ID>", "11111111-1111-4111-8111-111111111111").Replace(string(script[1])),
		"app/Chart.yaml":          "apiVersion: v2\nname: app\nversion: 0.1.0\n",
		"app/templates/app.yaml":  strings.NewReplacer("NAME", "app", "ANNOTATION", "").Replace(workload),
		"app/templates/hook.yaml": strings.NewReplacer("NAME", "hook", "ANNOTATION", `helm.sh/hook: pre-install`).Replace(workload),
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	out, errs, err := helm(t, "template", "app", filepath.Join(dir, "app"), "--namespace=shop", "--post-renderer="+filepath.Join(dir, "inject.sh"))
	if err != nil {
		t.Fatalf("%v: %s", err, errs)
	}
	for _, document := range strings.Split(out, "\n---\n") {
		isHook := strings.Contains(document, "helm.sh/hook")
		if isInjected := strings.Contains(document, "name: azwi-proxy-init"); isInjected == isHook {
			t.Errorf("hook %t, injected %t:\n%s", isHook, isInjected, document)
		}
	}
	if n := strings.Count(out, "kind: Job"); n != 2 {
		t.Errorf("%d Jobs, want 2:\n%s", n, out)
	}
}
