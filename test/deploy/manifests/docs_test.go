package manifests

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

// kustomize renders a kustomization that a page shows, in which from stands for the repository.
func kustomize(t *testing.T, kustomization, from, to string) string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	deploy, err := filepath.Abs(deployDir)
	if err != nil {
		t.Fatal(err)
	}
	target, err := filepath.Rel(dir, filepath.Join(deploy, to))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(kustomization, from) {
		t.Fatalf("no %s in\n%s", from, kustomization)
	}
	app, err := os.ReadFile(filepath.Join(deployDir, "deployment", "app.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"app.yaml":           string(app),
		"kustomization.yaml": strings.ReplaceAll(kustomization, from, target),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	resources, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), dir)
	if err != nil {
		t.Fatal(err)
	}
	rendered, err := resources.AsYaml()
	if err != nil {
		t.Fatal(err)
	}
	return string(rendered)
}

// page returns what a pattern captures of a page.
func page(t *testing.T, file, pattern string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(repository, file))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(pattern).FindSubmatch(text)
	if m == nil {
		t.Fatalf("%s has nothing like %s", file, pattern)
	}
	return string(m[1])
}

// TestDocumentedComponent: the kustomization that the pages show adds the proxy to a workload.
func TestDocumentedComponent(t *testing.T) {
	for _, file := range []string{"deploy/README.md", "docs/migration.md"} {
		shown := page(t, file, "(?s)```yaml\n(components:\n.*?)```")
		shown = strings.NewReplacer("<VERSION>", "v0.1.0", "<REGISTRY>", "registry.example.test",
			"<TENANT_ID>", "11111111-2222-4333-8444-555555555555", "<CLIENT_ID>", "66666666-7777-4888-9999-aaaaaaaaaaaa").Replace(shown)
		text := kustomize(t, "resources: [app.yaml]\n"+shown, "https://<GIT_HOST>/imds-oidc-proxy//deploy/components/redirect?ref=v0.1.0", "components/redirect")
		if strings.Contains(text, "<") {
			t.Errorf("%s: a placeholder is left in\n%s", file, text)
		}
		var images []string
		for _, document := range documents(text) {
			if deployment, ok := decode(t, document).(*appsv1.Deployment); ok {
				for _, c := range deployment.Spec.Template.Spec.InitContainers {
					images = append(images, c.Image)
				}
			}
		}
		if got, want := strings.Join(images, " "), "registry.example.test/imds-oidc-proxy-init:v0.1.0 registry.example.test/imds-oidc-proxy:v0.1.0"; got != want {
			t.Errorf("%s: the init containers' images are %q, want %q", file, got, want)
		}
	}
}

// TestDocumentedDevPod: the kustomization that docs/migration.md writes over deploy/dev-pod has
// the reader's namespace, service account, image and identity.
func TestDocumentedDevPod(t *testing.T) {
	shown := page(t, "docs/migration.md", "(?s)cat > dev-pod/kustomization.yaml <<END\n(.*?)END\n")
	shown = strings.NewReplacer("$NAMESPACE", "shop", "$SERVICE_ACCOUNT", "cart", "$TENANT_ID", "tenant", "$CLIENT_ID", "client",
		"${PROXY_IMAGE%:*}", "registry.example.test/team/imds-oidc-proxy", "${PROXY_IMAGE##*:}", "v1.0.0").Replace(shown)
	text := kustomize(t, shown, "../deploy/dev-pod", "dev-pod")
	for _, document := range documents(text) {
		switch o := decode(t, document).(type) {
		case *corev1.Pod:
			if got := o.Namespace + " " + o.Spec.ServiceAccountName + " " + o.Spec.Containers[0].Image; got != "shop cart registry.example.test/team/imds-oidc-proxy:v1.0.0" {
				t.Errorf("the pod has %s", got)
			}
		case *corev1.ConfigMap:
			if o.Namespace != "shop" || o.Data["AZURE_TENANT_ID"] != "tenant" || o.Data["AZURE_CLIENT_ID"] != "client" {
				t.Errorf("the ConfigMap in namespace %s has %v", o.Namespace, o.Data)
			}
		}
	}
	if n := len(documents(text)); n != 2 {
		t.Errorf("%d objects, want a pod and a ConfigMap", n)
	}
}
