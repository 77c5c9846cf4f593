package inject_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"imds-oidc-proxy/internal/inject"
	"imds-oidc-proxy/test/kit/azwi"
)

var update = flag.Bool("update", false, "write the patches and patched pods in testdata")

// TestGolden compares the patches of example pods. Each directory in testdata has the pod, its
// service account, the patch, and the patched pod.
func TestGolden(t *testing.T) {
	dirs, err := filepath.Glob("testdata/pods/*/pod.yaml")
	if err != nil || len(dirs) == 0 {
		t.Fatal("no pods", err)
	}
	for _, file := range dirs {
		dir := filepath.Dir(file)
		t.Run(filepath.Base(dir), func(t *testing.T) { testGolden(t, dir) })
	}
}

func testGolden(t *testing.T, dir string) {
	document, err := yaml.YAMLToJSON(read(t, dir, "pod.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var a corev1.ServiceAccount
	if err := yaml.UnmarshalStrict(read(t, dir, "account.yaml"), &a); err != nil {
		t.Fatal(err)
	}
	c := config()
	c.PostStart = strings.HasSuffix(dir, "old-style")
	if strings.HasSuffix(dir, "identity-binding") {
		c.TokenEndpoint = binding()
	}
	result, err := inject.Pod(decode(t, document), &a, c)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, dir, "patch.yaml", toYAML(t, result))
	golden(t, dir, "patched.yaml", toYAML(t, json.RawMessage(apply(t, document, result.Patch))))
}

func read(t *testing.T, dir, name string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func toYAML(t *testing.T, v any) []byte {
	t.Helper()
	text, err := yaml.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func golden(t *testing.T, dir, name string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(filepath.Join(dir, name), got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if want := read(t, dir, name); !bytes.Equal(got, want) {
		t.Errorf("%s is\n%s, want (go test -update writes it)\n%s", name, got, want)
	}
}

// TestGoldenAfterAzwi compares the pods in testdata that azure-workload-identity, or AKS, has
// changed first with the result of its stand-in. With -update it writes these pods.
func TestGoldenAfterAzwi(t *testing.T) {
	for dir, c := range map[string]struct {
		webhook azwi.Webhook
		change  func(*corev1.Pod)
	}{
		"testdata/pods/after-azwi": {azwi.Webhook{NativeSidecar: true, TenantID: tenantID}, func(*corev1.Pod) {}},
		"testdata/pods/after-aks":  {aks(), bound},
	} {
		if *update {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, "account.yaml"), read(t, "testdata/pods/injected", "account.yaml"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		pod := decode(t, read(t, "testdata/pods/injected", "pod.yaml"))
		c.change(pod)
		pod, err := c.webhook.Mutate(pod, account())
		if err != nil {
			t.Fatal(err)
		}
		golden(t, dir, "pod.yaml", toYAML(t, pod))
	}
}
