package plan

// rule says how an object of another tool is configured for a managed identity, and which of its fields
// to change.
type rule struct {
	code        string
	group, kind string
	// where is the path of a mapping; * stands for all items of a list. field is the key in it that has one
	// of values; no values: that exists. only is a further condition: a path from the object and its value.
	where  string
	field  string
	values []string
	only   [2]string
	// client and resource are the keys, or paths, of the identity's IDs in the mapping.
	client, resource string
	// system means that the value stands for the system-assigned identity, and emptyIsSystem that an
	// empty client does.
	system, emptyIsSystem bool
	// set and remove are the changes, by path in the mapping. A value may be $CLIENT, $TENANT or $ACCOUNT.
	set    map[string]string
	remove []string
	// immutable means that the API server refuses the change.
	immutable bool
	// subject says whose service account the credential is for: the constants below.
	subject string
}

// The values of rule.subject.
const (
	ofOperator  = "operator"  // the tool's own pods
	ofMounting  = "mounting"  // the pods that mount the object
	ofReference = "reference" // the account that the object names, or else the operator's
	ofApps      = "apps"      // the application's pods
)

const kedaGroup, esoGroup, fluxSource, fluxImage = "keda.sh", "external-secrets.io", "source.toolkit.fluxcd.io", "image.toolkit.fluxcd.io"

// yes is how tools write true.
var yes = []string{"true", "True", "TRUE"}

// rules is the table of the fields. A rule without set and
// remove is for an object that stays as it is, or whose change depends on the rest of it.
var rules = []rule{
	{code: "IMDS201", group: kedaGroup, kind: "TriggerAuthentication", where: "spec.podIdentity", field: "provider", values: []string{"azure"}, client: "identityId", set: map[string]string{"provider": "azure-workload"}, subject: ofOperator},
	{code: "IMDS201", group: kedaGroup, kind: "TriggerAuthentication", where: "spec.azureKeyVault.podIdentity", field: "provider", values: []string{"azure"}, client: "identityId", set: map[string]string{"provider": "azure-workload"}, subject: ofOperator},
	{code: "IMDS201", group: kedaGroup, kind: "ClusterTriggerAuthentication", where: "spec.podIdentity", field: "provider", values: []string{"azure"}, client: "identityId", set: map[string]string{"provider": "azure-workload"}, subject: ofOperator},
	{code: "IMDS201", group: kedaGroup, kind: "ClusterTriggerAuthentication", where: "spec.azureKeyVault.podIdentity", field: "provider", values: []string{"azure"}, client: "identityId", set: map[string]string{"provider": "azure-workload"}, subject: ofOperator},

	{code: "IMDS202", group: "secrets-store.csi.x-k8s.io", kind: "SecretProviderClass", where: "spec.parameters", field: "usePodIdentity", values: yes, only: [2]string{"spec.provider", "azure"},
		set: map[string]string{"usePodIdentity": "false", "clientID": "$CLIENT"}, subject: ofMounting},
	{code: "IMDS202", group: "secrets-store.csi.x-k8s.io", kind: "SecretProviderClass", where: "spec.parameters", field: "useVMManagedIdentity", values: yes, only: [2]string{"spec.provider", "azure"}, client: "userAssignedIdentityID", emptyIsSystem: true,
		set: map[string]string{"useVMManagedIdentity": "false", "clientID": "$CLIENT"}, remove: []string{"userAssignedIdentityID"}, subject: ofMounting},

	{code: "IMDS203", group: esoGroup, kind: "SecretStore", where: "spec.provider.azurekv", field: "authType", values: []string{"ManagedIdentity"}, client: "identityId",
		set: map[string]string{"authType": "WorkloadIdentity"}, remove: []string{"identityId"}, subject: ofReference},
	{code: "IMDS203", group: esoGroup, kind: "ClusterSecretStore", where: "spec.provider.azurekv", field: "authType", values: []string{"ManagedIdentity"}, client: "identityId",
		set: map[string]string{"authType": "WorkloadIdentity"}, remove: []string{"identityId"}, subject: ofReference},

	{code: "IMDS205", group: fluxSource, kind: "Bucket", where: "spec", field: "provider", values: []string{"azure"}, subject: ofReference},
	{code: "IMDS205", group: fluxSource, kind: "OCIRepository", where: "spec", field: "provider", values: []string{"azure"}, subject: ofReference},
	{code: "IMDS205", group: fluxSource, kind: "GitRepository", where: "spec", field: "provider", values: []string{"azure"}, subject: ofReference},
	{code: "IMDS205", group: fluxSource, kind: "HelmRepository", where: "spec", field: "provider", values: []string{"azure"}, subject: ofReference},
	{code: "IMDS205", group: fluxImage, kind: "ImageRepository", where: "spec", field: "provider", values: []string{"azure"}, subject: ofReference},

	{code: "IMDS206", group: "cert-manager.io", kind: "Issuer", where: "spec.acme.solvers.*.dns01.azureDNS.managedIdentity", client: "clientID", resource: "resourceID", set: map[string]string{"clientID": "$CLIENT", "tenantID": "$TENANT"}, remove: []string{"resourceID"}, subject: ofOperator},
	{code: "IMDS206", group: "cert-manager.io", kind: "ClusterIssuer", where: "spec.acme.solvers.*.dns01.azureDNS.managedIdentity", client: "clientID", resource: "resourceID", set: map[string]string{"clientID": "$CLIENT", "tenantID": "$TENANT"}, remove: []string{"resourceID"}, subject: ofOperator},

	{code: "IMDS212", group: "azure.upbound.io", kind: "ProviderConfig", where: "spec", field: "credentials.source", values: []string{"UserAssignedManagedIdentity"}, client: "clientID",
		set: map[string]string{"credentials.source": "OIDCTokenFile", "oidcTokenFilePath": tokenPath}, remove: []string{"msiEndpoint"}, subject: ofOperator},
	{code: "IMDS212", group: "azure.upbound.io", kind: "ProviderConfig", where: "spec", field: "credentials.source", values: []string{"SystemAssignedManagedIdentity"}, system: true, subject: ofOperator},
	{code: "IMDS212", group: "azure.m.upbound.io", kind: "ProviderConfig", where: "spec", field: "credentials.source", values: []string{"UserAssignedManagedIdentity"}, client: "clientID",
		set: map[string]string{"credentials.source": "OIDCTokenFile", "oidcTokenFilePath": tokenPath}, remove: []string{"msiEndpoint"}, subject: ofOperator},
	{code: "IMDS212", group: "azure.m.upbound.io", kind: "ProviderConfig", where: "spec", field: "credentials.source", values: []string{"SystemAssignedManagedIdentity"}, system: true, subject: ofOperator},
	{code: "IMDS212", group: "azure.m.upbound.io", kind: "ClusterProviderConfig", where: "spec", field: "credentials.source", values: []string{"UserAssignedManagedIdentity"}, client: "clientID",
		set: map[string]string{"credentials.source": "OIDCTokenFile", "oidcTokenFilePath": tokenPath}, remove: []string{"msiEndpoint"}, subject: ofOperator},

	{code: "IMDS214", group: "storage.k8s.io", kind: "StorageClass", where: "parameters", field: "AzureStorageAuthType", values: []string{"MSI", "msi"}, client: "AzureStorageIdentityClientID", resource: "AzureStorageIdentityResourceID",
		set: map[string]string{"clientID": "$CLIENT", "mountWithWorkloadIdentityToken": "true"}, remove: []string{"AzureStorageAuthType", "AzureStorageIdentityClientID", "AzureStorageIdentityResourceID"}, immutable: true, subject: ofApps},
	{code: "IMDS214", kind: "PersistentVolume", where: "spec.csi.volumeAttributes", field: "AzureStorageAuthType", values: []string{"MSI", "msi"}, client: "AzureStorageIdentityClientID", resource: "AzureStorageIdentityResourceID",
		set: map[string]string{"clientID": "$CLIENT", "mountWithWorkloadIdentityToken": "true"}, remove: []string{"AzureStorageAuthType", "AzureStorageIdentityClientID", "AzureStorageIdentityResourceID"}, immutable: true, subject: ofApps},
	{code: "IMDS214", group: "storage.k8s.io", kind: "StorageClass", where: "parameters", field: "mountWithManagedIdentity", values: yes, client: "clientID", set: map[string]string{"mountWithWorkloadIdentityToken": "true"}, remove: []string{"mountWithManagedIdentity"}, immutable: true, subject: ofApps},

	{code: "IMDS216", group: "monitoring.coreos.com", kind: "Prometheus", where: "spec.remoteWrite.*.azureAd.managedIdentity", client: "clientId", subject: ofReference},
}
