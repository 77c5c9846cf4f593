package signs_test

import (
	"slices"
	"strings"
	"testing"

	"imds-oidc-proxy/internal/signs"
)

const (
	client   = "11111111-2222-4333-8444-555555555555"
	resource = "/subscriptions/99999999-9999-4999-8999-999999999999/resourceGroups/Shop/providers/Microsoft.ManagedIdentity/userAssignedIdentities/App"
)

// found returns the sources of signs with their certainty and their identity, such as IMDS224 certain.
func found(list []signs.Sign) []string {
	var rows []string
	for _, s := range list {
		row := s.Source + " " + s.Certainty.String()
		for _, id := range []string{string(s.ClientID), string(s.ResourceID), string(s.ObjectID)} {
			if id != "" {
				row += " " + id
			}
		}
		rows = append(rows, row)
	}
	return rows
}

func check(t *testing.T, name string, got []signs.Sign, want ...string) {
	t.Helper()
	if rows := found(got); !slices.Equal(rows, want) {
		t.Errorf("%s: got %q, want %q", name, rows, want)
	}
}

// TestText has the setting of each tool in a file, and what looks like it.
func TestText(t *testing.T) {
	for text, want := range map[string]string{
		`{"useManagedIdentityExtension": true, "userAssignedIdentityID": "` + client + `"}`:                                          "IMDS207 certain " + client,
		`{"useManagedIdentityExtension": false}`:                                                                                     "",
		`{"AAD_LOGIN_METHOD": "msi", "AZURE_CLIENT_ID": "` + client + `"}`:                                                           "IMDS211 certain " + client,
		"remote_write:\n- url: x\n  azuread:\n    cloud: AzurePublic\n    managed_identity:\n      client_id: " + client + "\n":      "IMDS216 certain " + client,
		"azure_sd_configs:\n- authentication_method: ManagedIdentity\n":                                                              "IMDS216 certain",
		"type: AZURE\nconfig:\n  user_assigned_id: " + client + "\n":                                                                 "IMDS217 certain " + client,
		"type: AZURE\nconfig:\n  user_assigned_id: \"\"\n":                                                                           "",
		"type: S3\nconfig:\n  user_assigned_id: x\n":                                                                                 "",
		"azure:\n  use_managed_identity: true\n  user_assigned_id: " + client + "\n":                                                 "IMDS218 certain " + client,
		"storage:\n  trace:\n    azure:\n      use_managed_identity: true\n":                                                         "IMDS219 certain",
		"blocks_storage:\n  azure:\n    user_assigned_id: " + client + "\n":                                                          "IMDS220 certain " + client,
		"[azure]\nmanaged_identity_enabled = true\nmanaged_identity_client_id = " + client + "\n":                                    "IMDS221 certain " + client,
		"jsonData:\n  azureCredentials:\n    authType: msi\n":                                                                        "IMDS221 certain",
		"fs.azure.account.oauth.provider.type=org.apache.hadoop.fs.azurebfs.oauth2.MsiTokenProvider":                                 "IMDS223 certain",
		"terraform {\n  backend \"azurerm\" {\n    use_msi = true\n  }\n}\n":                                                         "IMDS224 certain",
		"Server=x;Authentication=Active Directory Managed Identity;User Id=" + client + ";":                                          "IMDS227 certain " + client,
		"Server=x;Authentication=ActiveDirectoryMsi;UID=" + client + ";":                                                             "IMDS228 certain " + client,
		"[OUTPUT]\n    name azure_kusto\n    auth_type managed_identity\n    client_id " + client + "\n":                             "IMDS229 certain " + client,
		"output {\n  kusto {\n    managed_identity_client_id => \"" + client + "\"\n  }\n}\n":                                        "IMDS230 certain " + client,
		"extensions:\n  azureauth:\n    managed_identity:\n      client_id: " + client + "\n":                                        "IMDS231 certain " + client,
		"seal \"azurekeyvault\" {\n  client_id = \"" + client + "\"\n}\n":                                                            "IMDS232 certain " + client,
		"seal \"azurekeyvault\" {\n  client_secret = \"x\"\n}\n":                                                                     "",
		"oras:\n  authProviders:\n    azureManagedIdentityEnabled: true\n":                                                           "IMDS234 certain",
		"storage:\n  azure:\n    credentials:\n      type: default_credentials\n":                                                    "IMDS235 certain",
		"artifactRepository:\n  azure:\n    useSDKCreds: true\n":                                                                     "IMDS237 certain",
		"azstorage:\n  mode: msi\n  appid: " + client + "\n":                                                                         "IMDS238 certain " + client,
		"[az]\ntype = azureblob\nuse_msi = true\nmsi_client_id = " + client + "\n":                                                   "IMDS239 certain " + client,
		"spring.cloud.azure.credential.managed-identity-enabled: true":                                                               "setting certain",
		"url = http://169.254.169.254/metadata/identity/oauth2/token?client_id=" + client:                                            "setting certain " + client,
		"# use_managed_identity: true\n// useManagedIdentityExtension: true\n-- Authentication=ActiveDirectoryMsi\n; use_msi = true": "",
		"identity: a person with a name":                                                                                             "",
	} {
		var all []string
		if want != "" {
			all = []string{want}
		}
		check(t, text, signs.Text(text), all...)
	}
	if got := signs.Text(strings.Repeat(" ", 1<<20) + "use_managed_identity: true"); got != nil {
		t.Errorf("a text after the first mebibyte: got %v", got)
	}
}

// TestCommand has command lines and scripts.
func TestCommand(t *testing.T) {
	for line, want := range map[string]string{
		"sh -c az login --identity --client-id " + client: "IMDS226 certain " + client,
		"az login --identity --resource-id " + resource:   "IMDS226 certain " + strings.ToLower(resource),
		"az login -i":                                                                  "IMDS226 certain",
		"az login --service-principal -u x":                                            "",
		"azcopy login --identity":                                                      "IMDS225 certain",
		"kubelogin get-token -l msi --client-id " + client:                             "IMDS211 certain " + client,
		"kubelogin get-token --login workloadidentity":                                 "",
		"pwsh -c Connect-AzAccount -Identity -AccountId " + client:                     "setting certain " + client,
		"curl -H Metadata:true http://169.254.169.254/metadata/instance?api-version=x": "setting certain",
		"echo 169.254.169.254":                                                         "",
	} {
		var all []string
		if want != "" {
			all = []string{want}
		}
		check(t, line, signs.Command(strings.Split(line, " ")), all...)
	}
	if !signs.NeedsInstance("curl http://169.254.169.254/metadata/instance") || signs.NeedsInstance("curl http://169.254.169.254/metadata/identity/oauth2/token") {
		t.Error("NeedsInstance does not tell instance metadata from tokens")
	}
}

// TestEnv has the variables of the tables.
func TestEnv(t *testing.T) {
	for variable, want := range map[string]string{
		"MSI_ENDPOINT=": "other endpoint certain", "IDENTITY_HEADER=x": "other endpoint certain", "AZURE_POD_IDENTITY_AUTHORITY_HOST=http://127.0.0.1:8000": "other host certain",
		"USE_MANAGED_IDENTITY_FOR_POD=true": "IMDS208 certain", "AAD_LOGIN_METHOD=msi": "IMDS211 certain", "AAD_LOGIN_METHOD=workloadidentity": "",
		"ARM_USE_MANAGED_IDENTITY_EXTENSION=true": "IMDS213 certain", "GF_AZURE_MANAGED_IDENTITY_ENABLED=true": "IMDS221 certain",
		"AIRFLOW_CONN_ADLS=wasb://?managed_identity_client_id=x": "IMDS222 certain", "ARM_USE_MSI=true": "IMDS224 certain", "ARM_USE_MSI=false": "",
		"ARM_MSI_ENDPOINT=http://127.0.0.1": "IMDS224 certain", "AZCOPY_AUTO_LOGIN_TYPE=Msi": "IMDS225 certain", "AZCOPY_AUTO_LOGIN_TYPE=WORKLOAD": "",
		"RCLONE_AZUREBLOB_USE_MSI=true": "IMDS239 certain", "USE_MSI=true": "setting certain", "AzureServicesAuthConnectionString=RunAs=App;AppId=x": "setting certain",
		"AZURE_TOKEN_CREDENTIALS=prod": "setting certain", "AZURE_TOKEN_CREDENTIALS=dev": "", "Storage__credential=managedidentity": "setting likely",
		"AzureWebJobsStorage__accountName=shop": "setting likely", "VAULT=https://shop.vault.azure.net": "service hint",
		"DB=Server=x;Authentication=ActiveDirectoryMsi;": "IMDS228 certain", "HOME=/root": "",
	} {
		name, value, _ := strings.Cut(variable, "=")
		var all []string
		if want != "" {
			all = []string{want}
		}
		check(t, variable, signs.Env(name, value), all...)
	}
	for _, s := range signs.Env("AIRFLOW_CONN_ADLS", "wasb://user:secret@host?managed_identity_client_id=x") {
		if strings.Contains(s.Text, "secret") {
			t.Errorf("the evidence contains the value: %q", s.Text)
		}
	}
}

// TestIdentity checks that a sign gets its identity from the variables of its own tool.
func TestIdentity(t *testing.T) {
	env := map[string]string{"ARM_CLIENT_ID": client, "AZCOPY_MSI_OBJECT_ID": client, "RCLONE_AZUREBLOB_MSI_MI_RES_ID": resource}
	for row, want := range map[string]string{
		"IMDS224": "IMDS224 hint " + client, "IMDS225": "IMDS225 hint " + client, "IMDS239": "IMDS239 hint " + strings.ToLower(resource), "IMDS213": "IMDS213 hint",
	} {
		check(t, row, []signs.Sign{signs.Sign{Source: row}.Identity(env)}, want)
	}
	check(t, "AZURE_CLIENT_ID", []signs.Sign{signs.ClientIDOnly(client), signs.ClientIDOnly("$(ID)")}, "client ID likely "+client, "client ID likely")
}

// TestCredentials checks what keeps a program from asking IMDS.
func TestCredentials(t *testing.T) {
	has := func(names ...string) func(string) bool {
		return func(name string) bool { return slices.Contains(names, name) }
	}
	if !signs.HasOtherCredential(has("AZURE_CLIENT_SECRET")) || signs.HasOtherCredential(has("AZURE_CLIENT_ID", "AZURE_TENANT_ID")) {
		t.Error("HasOtherCredential: wrong")
	}
	for variable, want := range map[string]bool{
		"DB_PASSWORD=": true, "CONN=Endpoint=sb://x/;SharedAccessKeyName=a;SharedAccessKey=b": true, "URL=https://x.blob.core.windows.net/c?sv=1&sig=abc": true,
		"DB=Server=x;Password=y": true, "URL=https://shop.vault.azure.net": false,
	} {
		name, value, _ := strings.Cut(variable, "=")
		if got := signs.MaySecret(name, value); got != want {
			t.Errorf("MaySecret(%s): got %t", variable, got)
		}
	}
}

// TestImage has the images of the tools.
func TestImage(t *testing.T) {
	for image, want := range map[string]string{
		"ghcr.io/kedacore/keda:2.14.0": "IMDS201", "ghcr.io/kedacore/keda-metrics-apiserver:2.14.0": "", "registry.example.test:5000/team/external-dns@sha256:00": "IMDS207",
		"ghcr.io/fluxcd/source-controller:v1": "IMDS205", "quay.io/jetstack/cert-manager-controller:v1": "IMDS206", "quay.io/jetstack/cert-manager-webhook:v1": "",
		"velero/velero-plugin-for-microsoft-azure:v1": "IMDS209", "xpkg.upbound.io/upbound/provider-azure-storage:v1": "IMDS212", "quay.io/thanos/thanos": "IMDS217",
		"registry.example.test/my-external-dns-fork:1": "", "mcr.microsoft.com/azure-cli": "IMDS226",
	} {
		if got := signs.Image(image); got != want {
			t.Errorf("%s: got %q, want %q", image, got, want)
		}
	}
	if name, tag := signs.ImageVersion("registry.example.test:5000/App"); name != "registry.example.test:5000/app" || tag != "" {
		t.Errorf("got %q, %q", name, tag)
	}
}
