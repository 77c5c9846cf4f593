package plan

import (
	"strings"

	"k8s.io/apimachinery/pkg/util/version"
)

// tool is another project's program that is configured for a managed identity in a field of its own.
type tool struct {
	name string
	// change is what to change in its configuration, and since the first version that has it.
	change, since string
	// image is the name of the image whose tag is the version that since is about, without its registry.
	image string
	// account is the service account that its federated credential is for, where it is not that of the
	// pod with the setting: NAMESPACE:NAME of a usual installation, which the image's pod replaces.
	account string
	// sidecar says whether its pods can use the sidecar until it is changed.
	sidecar string
	// labelled means that it uses workload identity by itself as soon as its pods have the variables.
	labelled bool
	// stays means that it asks IMDS even if its pods have the variables, until it is changed.
	stays bool
}

// The values of tool.sidecar.
const (
	sidecarYes      = "yes"
	sidecarNo       = "no"
	sidecarUnproven = "not tried"
)

// outdated reports whether a version of a tool is older than the first one with workload identity.
func (t tool) outdated(tag string) bool {
	words := strings.Fields(t.since)
	if len(words) == 0 {
		return false
	}
	first, err := version.ParseGeneric(words[len(words)-1])
	runs, errTag := version.ParseGeneric(tag)
	return err == nil && errTag == nil && runs.LessThan(first)
}

// tokenPath is where both webhooks mount the token today. Some programs have the former path of
// azure-workload-identity (up to v1.5.1) built in.
const (
	tokenPath  = "/var/run/secrets/azure/wi/token/azure-identity-token"
	formerPath = "/var/run/secrets/azure/tokens/azure-identity-token"
)

// tools is the table of the tools, by the code of their findings.
var tools = map[string]tool{
	"IMDS201": {name: "KEDA", image: "keda", change: "podIdentity.provider: azure-workload in place of azure; identityId stays. Restart the operator after its service account is annotated", since: "2.8", account: "keda:keda-operator", sidecar: sidecarYes, stays: true},
	"IMDS202": {name: "Secrets Store CSI driver", change: `parameters usePodIdentity: "false", useVMManagedIdentity: "false", clientID: CLIENT_ID in place of userAssignedIdentityID; change it before aad-pod-identity is removed`, since: "1.1.0", sidecar: sidecarNo, stays: true},
	"IMDS203": {name: "External Secrets Operator", image: "external-secrets", change: "authType: WorkloadIdentity with serviceAccountRef in place of ManagedIdentity and identityId; the account needs the annotations client-id and tenant-id", since: "0.5.0", account: "external-secrets:external-secrets", sidecar: sidecarYes, stays: true},
	"IMDS204": {name: "Azure Service Operator", change: `USE_WORKLOAD_IDENTITY_AUTH: "true" in Secret aso-controller-settings, with AZURE_CLIENT_ID, AZURE_TENANT_ID and AZURE_SUBSCRIPTION_ID`, since: "2", account: "azureserviceoperator-system:azureserviceoperator-default", sidecar: sidecarUnproven, stays: true},
	"IMDS205": {name: "Flux", image: "source-controller", change: "provider: azure stays; label the pods of the controller and annotate its service account, or set serviceAccountName of the object with the feature gate ObjectLevelWorkloadIdentity", since: "source-controller 1.0.0", account: "flux-system:source-controller", sidecar: sidecarYes, labelled: true},
	"IMDS206": {name: "cert-manager", image: "cert-manager-controller", change: "azureDNS.managedIdentity.clientID (and tenantID) in place of resourceID, which workload identity ignores; chart value podLabels", since: "1.11.0", account: "cert-manager:cert-manager", sidecar: sidecarYes, labelled: true},
	"IMDS207": {name: "ExternalDNS", image: "external-dns", change: "useWorkloadIdentityExtension: true in azure.json, without useManagedIdentityExtension and userAssignedIdentityID", since: "0.13.6", sidecar: sidecarYes, stays: true},
	"IMDS208": {name: "Application Gateway Ingress Controller", change: "chart values armAuth.type: workloadIdentity and armAuth.identityClientID; the chart's AzureIdentity goes with it", since: "chart 1.7.0", sidecar: sidecarYes, stays: true},
	"IMDS209": {name: "Velero", image: "velero-plugin-for-microsoft-azure", change: "label the pods of server and node-agent, annotate their service account, and remove aadpodidbinding; BackupStorageLocation config useAAD: \"true\"", since: "plugin 1.8.0", account: "velero:velero", sidecar: sidecarUnproven, labelled: true},
	"IMDS210": {name: "Dapr", change: "label the application's pods; azureClientId of the component is ignored then: the service account's client ID counts for all components", since: "1.11.0", sidecar: sidecarYes, labelled: true},
	"IMDS211": {name: "Argo CD", change: "AAD_LOGIN_METHOD: workloadidentity with AZURE_CLIENT_ID in execProviderConfig.env; useAzureWorkloadIdentity: \"true\" in repository Secrets (3.0.0)", account: "argocd:argocd-application-controller", sidecar: sidecarYes, stays: true},
	"IMDS212": {name: "Crossplane provider", change: "spec.credentials.source: OIDCTokenFile with clientID, tenantID, subscriptionID, and oidcTokenFilePath: " + tokenPath + "; give the provider a service account of its own in a DeploymentRuntimeConfig, since the name of the default one ends in a hash that changes", since: "0.30.0", sidecar: sidecarYes, stays: true},
	"IMDS213": {name: "cluster-autoscaler", change: "ARM_USE_WORKLOAD_IDENTITY_EXTENSION: \"true\" in place of ARM_USE_MANAGED_IDENTITY_EXTENSION and ARM_USER_ASSIGNED_IDENTITY_ID; it also reads instance metadata, so do not use redirect: sealed", sidecar: sidecarYes, stays: true},
	"IMDS214": {name: "Azure Storage CSI driver", change: "clientID (and mountWithWorkloadIdentityToken: \"true\") in place of AzureStorageAuthType: MSI; the fields of a PersistentVolume are immutable, so create a new one", since: "blob 1.24.0", sidecar: sidecarNo, stays: true},
	"IMDS215": {name: "Azure disk and file CSI controllers", change: "chart values workloadIdentity.clientID and workloadIdentity.tenantID", sidecar: sidecarNo, stays: true},
	"IMDS216": {name: "Prometheus", change: "remote_write azuread.workload_identity with client_id, tenant_id and token_file_path: " + tokenPath + " in place of managed_identity (3.7.0); azure_sd_configs authentication_method: WorkloadIdentity (3.11.0) or SDK", since: "3.7.0", sidecar: sidecarYes, stays: true},
	"IMDS217": {name: "Thanos", change: "remove user_assigned_id and msi_resource: without them DefaultAzureCredential is used; label the pods of each component", since: "objstore of November 2023", sidecar: sidecarYes, stays: true},
	"IMDS218": {name: "Loki", image: "loki", change: "use_federated_token: true in place of use_managed_identity and user_assigned_id", since: "2.8.0", sidecar: sidecarYes, stays: true},
	"IMDS219": {name: "Tempo", image: "tempo", change: "use_federated_token: true in place of use_managed_identity and user_assigned_id", since: "2.1.0", sidecar: sidecarYes, stays: true},
	"IMDS220": {name: "Mimir or Cortex", change: "remove user_assigned_id, as for Thanos", sidecar: sidecarYes, stays: true},
	"IMDS221": {name: "Grafana", change: "[azure] workload_identity_enabled = true in place of managed_identity_enabled; authType: workloadidentity in data sources", since: "10.1.4", sidecar: sidecarYes, stays: true},
	"IMDS222": {name: "Airflow", change: "the connection stays (DefaultAzureCredential); annotate the accounts of scheduler, worker and triggerer", since: "provider 8.2.0", sidecar: sidecarYes, labelled: true},
	"IMDS223": {name: "Hadoop ABFS (Spark)", change: "…azurebfs.oauth2.WorkloadIdentityTokenProvider in place of MsiTokenProvider, with fs.azure.account.oauth2.token.file: " + tokenPath, since: "hadoop-azure 3.4.1", sidecar: sidecarYes, stays: true},
	"IMDS224": {name: "Terraform azurerm", change: "ARM_USE_AKS_WORKLOAD_IDENTITY=true and ARM_USE_CLI=false in place of ARM_USE_MSI and ARM_MSI_ENDPOINT; in the backend use_aks_workload_identity", since: "3.85.0", sidecar: sidecarYes, stays: true},
	"IMDS225": {name: "azcopy", change: "AZCOPY_AUTO_LOGIN_TYPE=WORKLOAD in place of MSI and AZCOPY_MSI_…", since: "10.25.0", sidecar: sidecarYes, stays: true},
	"IMDS226": {name: "Azure CLI", change: `az login --service-principal -u "$AZURE_CLIENT_ID" -t "$AZURE_TENANT_ID" --federated-token "$(cat "$AZURE_FEDERATED_TOKEN_FILE")" in place of az login --identity`, sidecar: sidecarYes, stays: true},
	"IMDS227": {name: "SqlClient (.NET)", change: "Authentication=Active Directory Workload Identity with User Id=CLIENT_ID, or Active Directory Default", since: "5.2.0", sidecar: sidecarYes, stays: true},
	"IMDS228": {name: "ODBC or JDBC driver for SQL Server", change: "the ODBC driver knows IMDS only: use an access token of an SDK; mssql-jdbc 12.4 or later: ActiveDirectoryDefault", sidecar: sidecarYes, stays: true},
	"IMDS229": {name: "Fluent Bit (Azure Data Explorer)", change: "auth_type workload_identity with tenant_id, and workload_identity_token_file " + tokenPath, since: "4.1.0", sidecar: sidecarYes, stays: true},
	"IMDS230": {name: "Fluentd or Logstash (Azure Data Explorer)", change: "workload_identity_client_id and workload_identity_tenant_id in place of managed_identity_client_id; the token has to be at " + formerPath + " for Logstash", sidecar: sidecarUnproven, stays: true},
	"IMDS231": {name: "OpenTelemetry collector", change: "azureauth.workload_identity with client_id, tenant_id and federated_token_file: " + tokenPath + " in place of managed_identity", sidecar: sidecarYes, stays: true},
	"IMDS232": {name: "Vault", change: "the seal stays (default chain): label the pods; the auth method azure needs instance metadata, so do not use redirect: sealed", account: "vault:vault", sidecar: sidecarYes, labelled: true},
	"IMDS234": {name: "Ratify", change: "chart values azureWorkloadIdentity.clientId and oras.authProviders.azureWorkloadIdentityEnabled in place of azureManagedIdentity", sidecar: sidecarUnproven, stays: true},
	"IMDS235": {name: "distribution (container registry)", change: "credentials.type: default_credentials stays: label the pods", since: "3.0.0", sidecar: sidecarYes, labelled: true},
	"IMDS237": {name: "Argo Workflows artifacts", change: "useSDKCreds stays: label the pods of the workflow (podMetadata) and annotate the workflow's service account", since: "3.5.0", sidecar: sidecarYes, labelled: true},
	"IMDS238": {name: "blobfuse2", change: "azstorage mode: spn with oauth-token-path in place of msi; its mode workloadidentity still asks IMDS", sidecar: sidecarYes, stays: true},
	"IMDS239": {name: "rclone", change: "env_auth = true in place of use_msi and msi_…", since: "1.63.0", sidecar: sidecarYes, stays: true},
}

// isTool reports whether the source of a sign is a tool.
func isTool(source string) bool {
	_, known := tools[source]
	return known
}

// ToolChange returns what to change in the configuration of the tool with a code, or "".
func ToolChange(code string) string {
	return tools[code].change
}
