package inject_test

import (
	"os"
	"path/filepath"
	"testing"

	"imds-oidc-proxy/test/kit/azwi"
)

// TestGoldenAfterAzwi writes, with -update, the pod of testdata that
// azure-workload-identity had first, and checks that it is still what its stand-in
// makes of the pod.
func TestGoldenAfterAzwi(t *testing.T) {
	dir := "testdata/pods/after-azwi"
	if *update {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "account.yaml"), read(t, "testdata/pods/injected", "account.yaml"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	pod, err := azwi.Webhook{NativeSidecar: true, TenantID: tenantID}.Mutate(decode(t, read(t, "testdata/pods/injected", "pod.yaml")), account())
	if err != nil {
		t.Fatal(err)
	}
	golden(t, dir, "pod.yaml", toYAML(t, pod))
}
