package output_test

import (
	"encoding/json"
	"errors"
	"regexp"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/output"
	"imds-oidc-proxy/internal/plan"
)

const (
	first  = "11111111-1111-4111-8111-111111111111"
	second = "22222222-2222-4222-8222-222222222222"
	third  = "33333333-3333-4333-8333-333333333333"
	issuer = "https://oidc.example.test/shop/"
)

// identity is an identity in a subscription and a resource group.
func identity(name, client, subscription, group string) plan.Identity {
	id := plan.ResourceID{Subscription: subscription, Group: group, Name: name}
	return plan.Identity{Ref: plan.Ref{Name: name, ClientID: azure.ClientID(client), ResourceID: id.String(), Kind: plan.KindUserAssigned}, Subscription: subscription, ResourceGroup: group, AzureName: name, New: 1}
}

func credential(client, namespace, account string) plan.Credential {
	return plan.Credential{Name: "Shop_" + namespace + "-" + account + "-00000000", Issuer: issuer, Subject: "system:serviceaccount:" + namespace + ":" + account,
		Audience: azure.Audience, ClientID: azure.ClientID(client), Identity: "x", Reasons: []string{"deploy/" + account + ": pod identity"}}
}

// example has two credentials of one identity, and one of another resource group and subscription.
func example() *plan.Plan {
	return &plan.Plan{
		Identities:  []plan.Identity{identity("app", first, third, "Shop"), identity("web", second, second, "web-rg")},
		Credentials: []plan.Credential{credential(first, "a", "one"), credential(first, "a", "two"), credential(second, "b", "three")},
		Accounts:    []plan.Account{{Namespace: "a", Name: "one", New: true, ClientID: first, PullSecrets: []string{"x", "y"}, Roles: []string{"Role/read"}, Workloads: []string{"deploy/one"}}},
	}
}

func write(t *testing.T, p *plan.Plan, config output.Config) string {
	t.Helper()
	var b strings.Builder
	if err := output.Write(&b, p, config); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func contains(t *testing.T, name, text string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(text, w) {
			t.Errorf("%s: no %q in\n%s", name, w, text)
		}
	}
}

// TestBicep checks that a file is for one resource group, and that the credentials of one identity are
// created one after the other.
func TestBicep(t *testing.T) {
	var b strings.Builder
	err := output.Write(&b, example(), output.Config{Format: "bicep"})
	if _, usage := err.(*output.UsageError); !usage || err.Error() != "--resource-group is required: a Bicep file deploys into one resource group, and the identities are in "+second+"/web-rg, "+third+"/shop" {
		t.Errorf("got %v", err)
	}
	for _, group := range []string{"shop", "SHOP", third + "/Shop"} {
		text := write(t, example(), output.Config{Format: "bicep", ResourceGroup: group})
		contains(t, group, text, "az deployment group create --subscription "+third+" --resource-group Shop --template-file FILE", "parent: app", "  dependsOn: [\n    Shop_a_one_00000000\n  ]\n")
		if strings.Contains(text, "web") || strings.Count(text, "dependsOn") != 1 {
			t.Errorf("%s: got\n%s", group, text)
		}
	}
	one := example()
	one.Identities, one.Credentials = one.Identities[:1], one.Credentials[:2]
	contains(t, "one group", write(t, one, output.Config{Format: "bicep"}), "parent: app")
	one.Identities[0].AzureName = `it's ${here}\`
	contains(t, "quotes", write(t, one, output.Config{Format: "bicep"}), `name: 'it\'s \${here}\\'`)
}

// TestBicepString checks that a text cannot leave its literal.
func TestBicepString(t *testing.T) {
	p := example()
	p.Credentials[0].Subject = "a'\\${b}\n\x1bé"
	contains(t, "control characters", write(t, p, output.Config{Format: "bicep", ResourceGroup: p.Identities[0].ResourceGroup}), `subject: 'a\'\\\${b}\u{a}\u{1b}é'`)
}

// TestTerraform checks the arguments for each version of the provider.
func TestTerraform(t *testing.T) {
	id := "/subscriptions/" + third + "/resourceGroups/Shop/providers/Microsoft.ManagedIdentity/userAssignedIdentities/app"
	for version, want := range map[string][]string{
		"3.31": {`resource_group_name = "Shop"`, `parent_id           = "` + id + `"`}, "v4.64.2": {`parent_id           = "` + id + `"`},
		"4.65": {`user_assigned_identity_id = "` + id + `"`}, "5": {`user_assigned_identity_id = "` + id + `"`}, "": {`user_assigned_identity_id = "` + id + `"`},
	} {
		text := write(t, example(), output.Config{Format: "terraform", Provider: version})
		contains(t, version, text, append(want, `["api://AzureADTokenExchange"]`, "azurerm.s_"+strings.ReplaceAll(third, "-", "_"), `image_pull_secret`)...)
		if old := strings.Contains(text, "parent_id"); old == strings.Contains(text, "user_assigned_identity_id") {
			t.Errorf("%s: both arguments, or none", version)
		}
	}
	p := example()
	p.Identities[0] = plan.Identity{Ref: plan.Ref{Name: "app ${x}", ClientID: first, Kind: plan.KindApplication}}
	p.Credentials[0].Subject = `system:serviceaccount:"${a}":%{b}`
	text := write(t, p, output.Config{Format: "terraform"})
	contains(t, "application", text, "data \"azuread_application\" \"app___x_\" {", "application_id = data.azuread_application.app___x_.id", `subject        = "system:serviceaccount:\"$${a}\":%%{b}"`)
	if strings.Contains(text, "provider  ") {
		t.Errorf("one subscription needs no alias:\n%s", text)
	}
}

// TestSymbols checks that names which differ in other characters only are different symbols.
func TestSymbols(t *testing.T) {
	p := example()
	p.Credentials[0].Name, p.Credentials[1].Name, p.Credentials[2].Name = "a.b", "a-b", "1"
	text := write(t, p, output.Config{Format: "terraform"})
	contains(t, "symbols", text, `"azurerm_federated_identity_credential" "a_b" {`, `"azurerm_federated_identity_credential" "a_b_2" {`, `"azurerm_federated_identity_credential" "i_1" {`)
}

// TestKubernetes checks that each document of the formats for operators is a valid object.
func TestKubernetes(t *testing.T) {
	for format, c := range map[string]struct{ provider, version, namespace string }{
		"aso": {"", "managedidentity.azure.com/v1api20230131", "a"}, "crossplane": {"", "managedidentity.azure.m.upbound.io/v1beta1", "a"},
		"crossplane 1": {"1.8", "managedidentity.azure.upbound.io/v1beta1", ""},
	} {
		text := write(t, example(), output.Config{Format: strings.Fields(format)[0], Provider: c.provider})
		documents := strings.Split(text, "---\n")[1:]
		if len(documents) != 4 {
			t.Fatalf("%s: %d documents, want 3 credentials and an account:\n%s", format, len(documents), text)
		}
		var object struct {
			APIVersion string `json:"apiVersion"`
			Metadata   struct{ Name, Namespace string }
		}
		if err := yaml.UnmarshalStrict([]byte(documents[0]), &struct {
			APIVersion, Kind string
			Metadata, Spec   any
		}{}); err != nil {
			t.Error(err)
		}
		if err := yaml.Unmarshal([]byte(documents[0]), &object); err != nil || object.APIVersion != c.version || object.Metadata.Namespace != c.namespace || object.Metadata.Name != "shop-a-one-00000000" {
			t.Errorf("%s: %v, got %+v", format, err, object)
		}
		contains(t, format, documents[3], "kind: ServiceAccount", "imagePullSecrets:\n- name: x\n- name: \"y\"\n", "# Copy its role Role/read")
	}
}

// TestUnknownIdentities checks that each format says what it leaves out.
func TestUnknownIdentities(t *testing.T) {
	p := example()
	p.Identities[1] = plan.Identity{Ref: plan.Ref{ClientID: second, Kind: plan.KindUserAssigned}, New: 1}
	p.Identities[0] = plan.Identity{Ref: plan.Ref{Name: "app", ClientID: first, Kind: plan.KindApplication}, New: 2}
	for _, format := range []string{"bicep", "aso", "crossplane"} {
		text := write(t, p, output.Config{Format: format})
		contains(t, format, text, second+" is not in this file: its resource ID is not known", "app is not in this file: it is an app registration")
	}
	contains(t, "terraform", write(t, p, output.Config{Format: "terraform"}), second+" (client ID "+second+") is not in this file: its resource ID is not known")
	contains(t, "az", write(t, p, output.Config{Format: "az"}), "az identity list --query \"[?clientId=='"+second+"'].id\"", `az ad app federated-credential create --id `+first+` --parameters '{"name":"Shop_a-one-00000000"`)
}

// TestFormats checks the list of formats.
func TestFormats(t *testing.T) {
	for _, format := range output.Formats {
		if text := write(t, &plan.Plan{}, output.Config{Format: format}); text == "" {
			t.Errorf("%s: nothing was written for an empty plan", format)
		}
		if output.CreatesCredentials(format) != regexp.MustCompile(`^(az|bicep|terraform|aso|crossplane)$`).MatchString(format) {
			t.Errorf("%s: CreatesCredentials is wrong", format)
		}
	}
	if err := output.Write(new(strings.Builder), &plan.Plan{}, output.Config{Format: "xml"}); err == nil {
		t.Error("an unknown format is accepted")
	}
}

// TestJSONItems checks that a plan that is written item by item has the bytes that an encoder gives.
func TestJSONItems(t *testing.T) {
	empty := &plan.Plan{Findings: []plan.Finding{}}
	full := &plan.Plan{Schema: "x", Cluster: plan.Cluster{Name: "<shop>"}, Findings: []plan.Finding{{Code: "IMDS101", Text: "a & b"}, {Code: "IMDS102"}}, None: []string{"pods"},
		Workloads: []plan.Workload{{Name: "app", Evidence: []string{"x", "y"}}}, Summary: plan.Summary{ChangedObjects: map[string]int{"Bucket": 1}}}
	for _, p := range []*plan.Plan{empty, full} {
		var got, want strings.Builder
		encoder := json.NewEncoder(&want)
		encoder.SetEscapeHTML(false)
		encoder.SetIndent("", "  ")
		if err := errors.Join(output.Write(&got, p, output.Config{Format: "json"}), encoder.Encode(p)); err != nil {
			t.Fatal(err)
		}
		if got.String() != want.String() {
			t.Errorf("got\n%s\nwant\n%s", &got, &want)
		}
	}
}
