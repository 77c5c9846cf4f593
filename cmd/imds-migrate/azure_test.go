//go:build unix

package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"imds-oidc-proxy/internal/plan"
)

// existing returns a state with the identities of a plan, and the credentials of the workloads that are
// migrated, under names of their own. The identities whose resource ID the plan does not know are in
// another resource group.
func existing(p plan.Plan) *stubState {
	s := &stubState{Identities: map[string]string{}, Credentials: map[string][]credential{}}
	for _, w := range p.Workloads {
		if w.Today == plan.ByWorkloadIdentity || w.Today == plan.BySidecar {
			id := strings.ToLower(w.Identity.Default.ResourceID)
			s.Credentials[id] = append(s.Credentials[id], credential{"by-hand-" + w.Name, p.Cluster.Issuer, "system:serviceaccount:" + w.Namespace + ":" + w.ServiceAccount, []string{"api://AzureADTokenExchange"}})
		}
	}
	for _, ref := range p.Refs() {
		switch {
		case ref.Kind == plan.KindApplication:
			s.Applications = append(s.Applications, string(ref.ClientID))
		case ref.ResourceID != "":
			s.Identities[strings.ToLower(ref.ResourceID)] = string(ref.ClientID)
		default:
			s.Identities["/subscriptions/99999999-9999-4999-8999-999999999999/resourcegroups/others/providers/microsoft.managedidentity/userassignedidentities/id-"+string(ref.ClientID)] = string(ref.ClientID)
		}
	}
	return s
}

func runScript(t *testing.T, script string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "credentials.sh")
	if err := os.WriteFile(file, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("sh", file).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// TestPlanAz runs the commands of the example cluster's plan, and checks that then none is left. A second
// run changes nothing.
func TestPlanAz(t *testing.T) {
	args := func(more ...string) []string { return append(example[:len(example):len(example)], more...) }
	stdout, _, _ := command(args("--output=json"), "")
	before := decoded(t, stdout)
	state := existing(before)
	serveStubs(t, state)
	script, _, _ := command(args("--output=az"), "")
	runScript(t, script)
	created := 0
	for _, list := range state.Credentials {
		for _, c := range list {
			if !strings.HasPrefix(c.Name, "by-hand-") {
				created++
			}
		}
	}
	if created != before.Summary.NewCredentials || created < 40 {
		t.Errorf("%d credentials were created, and the plan has %d", created, before.Summary.NewCredentials)
	}
	commands := strings.Join(state.Kubectl, "\n")
	for _, want := range []string{
		"--namespace=shop get serviceaccount stock",
		"--namespace=shop annotate --overwrite serviceaccount stock azure.workload.identity/client-id=00000001-0000-4000-8000-000000000001 azure.workload.identity/tenant-id=22222222-2222-4222-8222-222222222222",
		`--namespace=shop patch serviceaccount stock --type=merge --patch={"imagePullSecrets":[{"name":"registry-login"}]}`,
	} {
		if !strings.Contains(commands, want) {
			t.Errorf("kubectl did not run %q:\n%s", want, commands)
		}
	}
	stdout, _, code := command(args("--output=json", "--azure"), "")
	left := decoded(t, stdout)
	if len(left.Credentials) != 0 || !left.Summary.CredentialsCounted || left.Summary.Incomplete || code != plan.ExitBlocked {
		t.Errorf("exit code %d, left: %+v, not looked at: %v", code, left.Credentials, left.NotLookedAt)
	}
	for _, i := range left.Identities {
		if i.Existing == nil || i.Total() != *i.Existing || i.Total() == 0 {
			t.Errorf("%s has %v credentials", i.Ref, i.Existing)
		}
	}
	second, _, _ := command(args("--output=az", "--azure"), "")
	if !strings.Contains(second, "# There is nothing to create.") || strings.Contains(second, "az identity") {
		t.Errorf("there are commands left:\n%s", second)
	}
	want := fmt.Sprint(state.Credentials)
	runScript(t, script)
	if got := fmt.Sprint(state.Credentials); got != want {
		t.Errorf("a second run changes the credentials:\n%s\n%s", got, want)
	}
}

// migrated is a workload that lacks nothing but its credential.
const migrated = `{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a"}}
{"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "sa", "namespace": "a", "annotations": {"azure.workload.identity/client-id": "11111111-1111-4111-8111-111111111111"}}}
{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "a", "labels": {"azure.workload.identity/use": "true"}}, "spec": {"serviceAccountName": "sa", "containers": [{"name": "c", "image": "i", "env": [{"name": "AZURE_FEDERATED_TOKEN_FILE", "value": "/x"}]}]}}`

// TestPlanNothingLeft goes from a missing credential to exit code 0.
func TestPlanNothingLeft(t *testing.T) {
	const id = "/subscriptions/99999999-9999-4999-8999-999999999999/resourcegroups/shop/providers/microsoft.managedidentity/userassignedidentities/app"
	serveStubs(t, &stubState{Identities: map[string]string{id: "11111111-1111-4111-8111-111111111111"}, Credentials: map[string][]credential{}})
	args := []string{"plan", "-f", "-", "--azure", "--issuer=https://oidc.example.test/shop/", "-o"}
	if stdout, stderr, code := command(append(args, "table"), migrated); code != plan.ExitWork || !strings.Contains(stdout, "To create: 1 federated credential, 0 service accounts.\n  app will have 1 of 20 federated credentials\n") {
		t.Fatalf("exit code %d, %s%s", code, stdout, stderr)
	}
	script, _, _ := command(append(args, "az"), migrated)
	runScript(t, script)
	if stdout, stderr, code := command(append(args, "table"), migrated); code != plan.ExitNothing || !strings.Contains(stdout, "To create: 0 federated credentials") {
		t.Errorf("exit code %d, %s%s", code, stdout, stderr)
	}
}

// TestPlanAzureFails checks what a plan says if az cannot look.
func TestPlanAzureFails(t *testing.T) {
	args := []string{"plan", "-f", "-", "--azure", "--issuer=https://oidc.example.test/shop/"}
	const app = "11111111-1111-4111-8111-111111111111"
	for name, c := range map[string]struct {
		state stubState
		line  string
	}{
		"not signed in":  {stubState{SignedOut: true}, "  IMDS305 federated credentials of 11111111-1111-4111-8111-111111111111 (az identity list: ERROR: Please run 'az login' to setup account.)"},
		"not found":      {stubState{}, "  IMDS305 federated credentials of 11111111-1111-4111-8111-111111111111 (the current subscription has no identity with this client ID: az account set, or --identity=<RESOURCE_ID>=11111111-1111-4111-8111-111111111111)"},
		"two identities": {stubState{Identities: map[string]string{"/a": app, "/b": app}}, "  IMDS305 federated credentials of 11111111-1111-4111-8111-111111111111 (the current subscription has no identity with this client ID: az account set, or --identity=<RESOURCE_ID>=11111111-1111-4111-8111-111111111111)"},
		"odd output":     {stubState{Identities: map[string]string{"/a": app}}, `  IMDS305 federated credentials of 11111111-1111-4111-8111-111111111111 ("/a": must be an object ID (a GUID) or the ARM resource ID of a user-assigned identity, before =CLIENT_ID)`},
	} {
		serveStubs(t, &c.state)
		stdout, stderr, code := command(args, migrated)
		if code != plan.ExitNotRead || stderr != "" || !strings.Contains(stdout, c.line+"\n") {
			t.Errorf("%s: exit code %d, no line %q in\n%s%s", name, code, c.line, stdout, stderr)
		}
	}
	t.Setenv("PATH", t.TempDir())
	if stdout, _, code := command(args, migrated); code != plan.ExitNotRead || !strings.Contains(stdout, "  IMDS305 federated credentials in Azure (az is not installed)\n") {
		t.Errorf("without az: exit code %d, %s", code, stdout)
	}
}
