package output_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"imds-oidc-proxy/internal/output"
	"imds-oidc-proxy/internal/plan"
	"imds-oidc-proxy/internal/survey"
)

// planned returns the plan of a small cluster with a change of each kind.
func planned(t *testing.T) *plan.Plan {
	t.Helper()
	const objects = `
{apiVersion: v1, kind: ServiceAccount, metadata: {namespace: shop, name: web}}
---
{apiVersion: apps/v1, kind: Deployment, metadata: {namespace: shop, name: web}, spec: {template: {metadata: {labels: {app: web}}, spec: {serviceAccountName: web, containers: [{name: c, image: i, env: [{name: AZURE_CLIENT_ID, value: 11111111-1111-4111-8111-111111111111}]}]}}}}
---
{apiVersion: batch/v1, kind: CronJob, metadata: {namespace: strict, name: nightly}, spec: {jobTemplate: {spec: {template: {metadata: {labels: {app: web}}, spec: {containers: [{name: c, image: i, env: [{name: AZURE_CLIENT_ID, value: 11111111-1111-4111-8111-111111111111}]}]}}}}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: strict, labels: {pod-security.kubernetes.io/enforce: baseline}}}
---
{apiVersion: batch/v1, kind: Job, metadata: {namespace: shop, name: once}, spec: {template: {spec: {serviceAccountName: web, containers: [{name: c, image: i, env: [{name: AZURE_CLIENT_ID, value: 11111111-1111-4111-8111-111111111111}]}]}}}}
---
{apiVersion: cert-manager.io/v1, kind: ClusterIssuer, metadata: {name: dns}, spec: {acme: {solvers: [{http01: {}}, {dns01: {azureDNS: {managedIdentity: {resourceID: /subscriptions/99999999-9999-4999-8999-999999999999/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/app}}}}]}}}
---
{apiVersion: secrets-store.csi.x-k8s.io/v1, kind: SecretProviderClass, metadata: {namespace: shop, name: vault}, spec: {provider: azure, parameters: {useVMManagedIdentity: "true", userAssignedIdentityID: 11111111-1111-4111-8111-111111111111}}}
`
	s := survey.New(survey.Config{})
	if err := s.ReadFile("x", strings.NewReader(objects)); err != nil {
		t.Fatal(err)
	}
	s.Finish()
	known, err := plan.ParseKnown("/subscriptions/99999999-9999-4999-8999-999999999999/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/app=11111111-1111-4111-8111-111111111111")
	if err != nil {
		t.Fatal(err)
	}
	return plan.New(s, plan.Options{Issuer: issuer, Identities: []plan.Known{known}})
}

// TestPatch checks the patch of each kind of change.
func TestPatch(t *testing.T) {
	text := write(t, planned(t), output.Config{Format: "patch"})
	var component struct {
		Patches []struct {
			Target struct{ Kind, Name string }
			Patch  string
		}
	}
	if err := yaml.Unmarshal([]byte(text), &component); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, p := range component.Patches {
		got[p.Target.Kind+"/"+p.Target.Name] = p.Patch
	}
	for name, want := range map[string][]string{
		"ServiceAccount/web":        {"azure.workload.identity/client-id: 11111111-1111-4111-8111-111111111111"},
		"Deployment/web":            {"apiVersion: apps/v1", "  template:\n    metadata:\n      annotations:\n        azure.workload.identity/inject-proxy-sidecar: \"true\"\n      labels:\n        azure.workload.identity/use: \"true\"\n"},
		"CronJob/nightly":           {"            imds-oidc-proxy/redirect: none\n", "          serviceAccountName: nightly\n"},
		"ClusterIssuer/dns":         {"- op: add\n  path: /spec/acme/solvers/1/dns01/azureDNS/managedIdentity/clientID\n  value: 11111111-1111-4111-8111-111111111111\n", "- op: remove\n  path: /spec/acme/solvers/1/dns01/azureDNS/managedIdentity/resourceID\n"},
		"SecretProviderClass/vault": {"    clientID: 11111111-1111-4111-8111-111111111111\n", "    useVMManagedIdentity: \"false\"\n", "    userAssignedIdentityID: null\n"},
	} {
		contains(t, name, got[name], want...)
		delete(got, name)
	}
	if len(got) > 0 {
		t.Errorf("more patches: %v", got)
	}
	contains(t, "head", text, "# Not changed: shop job/once: its fields are immutable: create it again\n", "# ServiceAccount strict/nightly is new")
}

// TestWriteDir checks the files, and that those of a person are not replaced.
func TestWriteDir(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "component")
	p := planned(t)
	for range 2 { // a second run replaces its own files
		if err := output.WriteDir(dir, p); err != nil {
			t.Fatal(err)
		}
	}
	read := func(name string) string {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	contains(t, "kustomization", read("kustomization.yaml"), "kind: Component", "resources:\n- accounts.yaml\n")
	contains(t, "accounts", read("accounts.yaml"), "kind: ServiceAccount", "name: nightly")
	const own = "resources: []\n"
	if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(own), 0o600); err != nil {
		t.Fatal(err)
	}
	err := output.WriteDir(dir, p)
	if _, usage := err.(*output.UsageError); !usage || read("kustomization.yaml") != own {
		t.Errorf("got %v, %s", err, read("kustomization.yaml"))
	}
	if err := output.WriteDir("/dev/null/x", p); err == nil {
		t.Error("a directory that cannot be made is no error")
	}
}
