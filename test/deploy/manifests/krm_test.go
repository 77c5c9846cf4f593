package manifests

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/api/types"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

// TestKRMFunction runs imds-migrate as the KRM function of docs/imds-migrate.md, on resources that
// kustomize has patched.
func TestKRMFunction(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	build := exec.Command("go", "build", "-o", filepath.Join(dir, "imds-migrate"), "./cmd/imds-migrate")
	build.Dir = repository
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	const docs = "docs/imds-migrate.md"
	function := page(t, docs, "(?s)```yaml\n# inject-proxy.yaml\n(.*?)```")
	for name, text := range map[string]string{
		"kustomization.yaml": page(t, docs, "(?s)```yaml\n# kustomization.yaml\n(.*?)```") + "patches: [{path: patch.yaml}]\n",
		"inject-proxy.yaml": strings.NewReplacer("<TENANT_ID>", "22222222-2222-4222-8222-222222222222",
			"<CLIENT_ID>", "11111111-1111-4111-8111-111111111111").Replace(function),
		"patch.yaml": `{apiVersion: apps/v1, kind: Deployment, metadata: {name: app}, spec: {template: {spec: {containers: [{name: app, env: [{name: MODE, value: prod}]}]}}}}`,
		"app.yaml": `apiVersion: apps/v1
kind: Deployment
metadata: {name: app}
spec:
  template:
    spec:
      containers:
      - {name: app, image: registry.example.test/app:1}
`} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	options := krusty.MakeDefaultOptions()
	options.PluginConfig = types.EnabledPluginConfig(types.BploUseStaticallyLinked)
	options.PluginConfig.FnpLoadingOptions.EnableExec = true
	resources, err := krusty.MakeKustomizer(options).Run(filesys.MakeFsOnDisk(), dir)
	if err != nil {
		t.Fatal(err)
	}
	rendered, err := resources.AsYaml()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"name: azwi-proxy-init", "name: MODE", "name: AZURE_FEDERATED_TOKEN_FILE", `azure.workload.identity/use: "true"`} {
		if !strings.Contains(string(rendered), want) {
			t.Errorf("no %q in\n%s", want, rendered)
		}
	}
	if n := strings.Count(string(rendered), "name: azwi-proxy\n"); n != 1 {
		t.Errorf("%d proxies, want 1:\n%s", n, rendered)
	}
}
