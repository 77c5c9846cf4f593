package plan_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/plan"
)

// object is a custom resource.
func object(apiVersion, kind, name, spec string) string {
	return fmt.Sprintf("{apiVersion: %s, kind: %s, metadata: {namespace: ns, name: %s}, %s}", apiVersion, kind, name, spec)
}

// operator is a tool's Deployment in its own namespace.
func operator(name, image string, labels ...string) []string {
	return docs(strings.ReplaceAll(app{name: name, image: image, account: name, labels: labels}.String(), "namespace: ns", "namespace: "+name+"-ns"),
		strings.Replace(account(name), "namespace: ns", "namespace: "+name+"-ns", 1))
}

// secretOf is a Secret with labels.
func secretOf(name, data string, labels ...string) string {
	return fmt.Sprintf("{apiVersion: v1, kind: Secret, metadata: {namespace: ns, name: %s, labels: {%s}}, stringData: {%s}}", name, strings.Join(labels, ", "), data)
}

// changesOf returns the changes of an object, such as spec.podIdentity.provider=azure-workload.
func changesOf(o plan.Object) string {
	var all []string
	for _, c := range o.Changes {
		path := strings.Join(c.Path, ".")
		if c.Remove {
			all = append(all, "-"+path)
		} else {
			all = append(all, path+"="+c.Value)
		}
	}
	return strings.Join(all, " ")
}

const (
	keda  = "keda.sh/v1alpha1"
	csi   = "secrets-store.csi.x-k8s.io/v1"
	eso   = "external-secrets.io/v1"
	flux  = "source.toolkit.fluxcd.io/v1"
	upjet = "azure.upbound.io/v1beta1"
)

// TestObjects has the objects of tools: identity, subject, changes.
func TestObjects(t *testing.T) {
	id := client(1)
	mounting := app{name: "app", account: "sa", pod: "volumes: [{name: v, csi: {driver: secrets-store.csi.k8s.io, volumeAttributes: {secretProviderClass: c}}}]"}
	acme := func(managed string) string {
		return "spec: {acme: {solvers: [{http01: {}}, {dns01: {azureDNS: {managedIdentity: {" + managed + "}}}}]}}"
	}
	for _, c := range []struct {
		name     string
		object   string
		more     []string
		identity string
		subjects string
		changes  string
		codes    string
	}{
		{"KEDA", object(keda, "TriggerAuthentication", "c", "spec: {podIdentity: {provider: azure, identityId: "+id+"}}"), nil, "known " + id, "keda:keda-operator", "spec.podIdentity.provider=azure-workload", "IMDS201"},
		{"KEDA: Key Vault, with the operator", object(keda, "ClusterTriggerAuthentication", "c", "spec: {azureKeyVault: {podIdentity: {provider: azure, identityId: "+id+"}}}"), operator("keda-operator", "ghcr.io/kedacore/keda:2.14.0"),
			"known " + id, "keda-operator-ns:keda-operator", "spec.azureKeyVault.podIdentity.provider=azure-workload", "IMDS201"},
		{"KEDA: the operator's identity", object(keda, "TriggerAuthentication", "c", "spec: {podIdentity: {provider: azure}}"), docs(operator("keda-operator", "ghcr.io/kedacore/keda:2.14.0", "aadpodidbinding: keda"), identity("keda-identity", 2), binding("keda-identity", "keda"), nmi()),
			"known keda-identity", "keda-operator-ns:keda-operator", "spec.podIdentity.provider=azure-workload", "IMDS201"},
		{"CSI driver: pod identity", object(csi, "SecretProviderClass", "c", "spec: {provider: azure, parameters: {usePodIdentity: 'true'}}"), docs(account("sa"), mountingPod(mounting), identity("app-identity", 1), binding("app-identity", "app"), nmi()),
			one, "ns:sa", "spec.parameters.clientID=" + id + " spec.parameters.usePodIdentity=false", "IMDS202"},
		{"CSI driver: the node's identity", object(csi, "SecretProviderClass", "c", "spec: {provider: azure, parameters: {useVMManagedIdentity: 'true', userAssignedIdentityID: "+id+"}}"), docs(account("sa"), mounting), "known " + id, "ns:sa",
			"spec.parameters.clientID=" + id + " spec.parameters.useVMManagedIdentity=false -spec.parameters.userAssignedIdentityID", "IMDS202"},
		{"CSI driver: the system-assigned identity", object(csi, "SecretProviderClass", "c", "spec: {provider: azure, parameters: {useVMManagedIdentity: 'true', userAssignedIdentityID: ''}}"), docs(account("sa"), mounting), "unknown", "ns:sa",
			"spec.parameters.clientID=<CLIENT_ID> spec.parameters.useVMManagedIdentity=false -spec.parameters.userAssignedIdentityID", "IMDS110 IMDS202"},
		{"CSI driver: nothing mounts it", object(csi, "SecretProviderClass", "c", "spec: {provider: azure, parameters: {useVMManagedIdentity: 'true', userAssignedIdentityID: "+id+"}}"), nil, "known " + id, "",
			"spec.parameters.clientID=" + id + " spec.parameters.useVMManagedIdentity=false -spec.parameters.userAssignedIdentityID", "IMDS108 IMDS202"},
		{"External Secrets: without an account", object(eso, "SecretStore", "c", "spec: {provider: {azurekv: {authType: ManagedIdentity, identityId: "+id+"}}}"), nil, "known " + id, "ns:c",
			"spec.provider.azurekv.authType=WorkloadIdentity spec.provider.azurekv.serviceAccountRef.name=c -spec.provider.azurekv.identityId", "IMDS203"},
		{"External Secrets: with an account", object(eso, "SecretStore", "c", "spec: {provider: {azurekv: {authType: ManagedIdentity, identityId: "+id+", serviceAccountRef: {name: store}}}}"), nil, "known " + id, "ns:store",
			"spec.provider.azurekv.authType=WorkloadIdentity -spec.provider.azurekv.identityId", "IMDS203"},
		{"External Secrets: of the cluster", strings.Replace(object(eso, "ClusterSecretStore", "c", "spec: {provider: {azurekv: {authType: ManagedIdentity, identityId: "+id+"}}}"), "namespace: ns, ", "", 1), nil, "known " + id, "external-secrets:c",
			"spec.provider.azurekv.authType=WorkloadIdentity spec.provider.azurekv.serviceAccountRef.name=c spec.provider.azurekv.serviceAccountRef.namespace=external-secrets -spec.provider.azurekv.identityId", "IMDS203"},
		{"Azure Service Operator: its settings", secretOf("aso-controller-settings", "AZURE_CLIENT_ID: "+id+", AZURE_TENANT_ID: x"), operator("aso", "mcr.microsoft.com/k8s/azureserviceoperator:v2.9.0"), "known " + id, "aso-ns:aso", "", "IMDS204"},
		{"Azure Service Operator: the settings of a namespace", secretOf("aso-credential", "AZURE_CLIENT_ID: "+id), nil, "known " + id, "azureserviceoperator-system:azureserviceoperator-default", "", "IMDS204"},
		{"Argo CD: a cluster", secretOf("prod", `config: '{"execProviderConfig": {"env": {"AAD_LOGIN_METHOD": "msi", "AZURE_CLIENT_ID": "`+id+`"}}}'`, "argocd.argoproj.io/secret-type: cluster"), nil, "known " + id, "ns:argocd-application-controller ns:argocd-server", "", "IMDS211"},
		{"Argo CD: a cluster, without a client ID", secretOf("prod", `config: '{"execProviderConfig": {"env": {"AAD_LOGIN_METHOD": "msi"}}}'`, "argocd.argoproj.io/secret-type: cluster"), nil, "unknown", "ns:argocd-application-controller ns:argocd-server", "", "IMDS108 IMDS211"},
		{"Flux: the controller", object(flux, "Bucket", "c", "spec: {provider: azure}"), nil, "unknown", "flux-system:source-controller", "", "IMDS108 IMDS205"},
		{"Flux: images", object("image.toolkit.fluxcd.io/v1", "ImageRepository", "c", "spec: {provider: azure}"), operator("reflector", "ghcr.io/fluxcd/image-reflector-controller:v1"), "unknown", "reflector-ns:reflector", "", "IMDS108 IMDS205"},
		{"Flux: an account", object(flux, "OCIRepository", "c", "spec: {provider: azure, serviceAccountName: puller}"), docs(annotated("puller", 3)), "known " + client(3), "ns:puller", "", "IMDS205"},
		{"Flux: an account without annotation", object(flux, "GitRepository", "c", "spec: {provider: azure, serviceAccountName: puller}"), docs(account("puller")), "unknown", "ns:puller", "", "IMDS108 IMDS205"},
		{"cert-manager: by client ID", object("cert-manager.io/v1", "Issuer", "c", acme("clientID: "+id)), nil, "known " + id, "cert-manager:cert-manager",
			"", ""},
		{"cert-manager: by resource ID", object("cert-manager.io/v1", "ClusterIssuer", "c", acme("resourceID: "+resource("app-identity"))), docs(identity("app-identity", 1)), one, "cert-manager:cert-manager",
			"spec.acme.solvers.1.dns01.azureDNS.managedIdentity.clientID=" + id + " -spec.acme.solvers.1.dns01.azureDNS.managedIdentity.resourceID", "IMDS206"},
		{"cert-manager: an unknown resource ID", object("cert-manager.io/v1", "Issuer", "c", acme("resourceID: "+resource("gone"))), nil, "unknown", "cert-manager:cert-manager",
			"spec.acme.solvers.1.dns01.azureDNS.managedIdentity.clientID=<CLIENT_ID> -spec.acme.solvers.1.dns01.azureDNS.managedIdentity.resourceID", "IMDS108 IMDS143 IMDS206"},
		{"Crossplane: user-assigned", object(upjet, "ProviderConfig", "c", "spec: {credentials: {source: UserAssignedManagedIdentity}, clientID: "+id+"}"), operator("provider-azure", "xpkg.upbound.io/upbound/provider-azure-storage:v1"), "known " + id, "provider-azure-ns:provider-azure",
			"spec.credentials.source=OIDCTokenFile spec.oidcTokenFilePath=/var/run/secrets/azure/wi/token/azure-identity-token", "IMDS212"},
		{"Crossplane: without the provider", object("azure.m.upbound.io/v1beta1", "ClusterProviderConfig", "c", "spec: {credentials: {source: UserAssignedManagedIdentity}, clientID: "+id+", msiEndpoint: x}"), nil, "known " + id, "",
			"spec.credentials.source=OIDCTokenFile spec.oidcTokenFilePath=/var/run/secrets/azure/wi/token/azure-identity-token -spec.msiEndpoint", "IMDS108 IMDS212"},
		{"Crossplane: system-assigned", object(upjet, "ProviderConfig", "c", "spec: {credentials: {source: SystemAssignedManagedIdentity}}"), operator("provider-azure", "xpkg.upbound.io/upbound/provider-azure:v1"), "unknown", "provider-azure-ns:provider-azure", "", "IMDS110 IMDS212"},
		{"storage: a class", object("storage.k8s.io/v1", "StorageClass", "c", "parameters: {AzureStorageAuthType: MSI, AzureStorageIdentityClientID: "+id+"}"), nil, "known " + id, "", "", "IMDS108 IMDS214"},
		{"storage: a volume", object("v1", "PersistentVolume", "c", "spec: {csi: {volumeAttributes: {AzureStorageAuthType: MSI, AzureStorageIdentityResourceID: "+resource("app-identity")+"}}}"), docs(identity("app-identity", 1)), one, "", "", "IMDS108 IMDS214"},
		{"storage: Azure Files", object("storage.k8s.io/v1", "StorageClass", "c", "parameters: {mountWithManagedIdentity: 'true', clientID: "+id+"}"), nil, "known " + id, "", "", "IMDS108 IMDS214"},
		{"Prometheus: Prometheus operator", object("monitoring.coreos.com/v1", "Prometheus", "c", "spec: {serviceAccountName: metrics, remoteWrite: [{azureAd: {managedIdentity: {clientId: "+id+"}}}]}"), nil, "known " + id, "ns:metrics", "", "IMDS216"},
	} {
		p := planOf(t, plan.Options{}, docs(c.object, c.more)...)
		if len(p.Objects) != 1 {
			t.Errorf("%s: %d objects", c.name, len(p.Objects))
			continue
		}
		o := p.Objects[0]
		got := []string{picked(o.Identity), strings.Join(o.Subjects, " "), changesOf(o), codes(o.Findings)}
		if want := []string{c.identity, c.subjects, c.changes, c.codes}; !slices.Equal(got, want) {
			t.Errorf("%s:\ngot  %q\nwant %q", c.name, got, want)
		}
	}
	if p := planOf(t, plan.Options{}, strings.Replace(object(keda, "TriggerAuthentication", "c", "spec: {podIdentity: {provider: azure}}"), "name: c}", "name: c, labels: {kubernetes.azure.com/managedby: aks}}", 1)); p.Cluster.Managed != 1 {
		t.Errorf("an object of AKS is not counted: %+v", p.Cluster)
	}
	chosen := planOf(t, plan.Options{Choices: map[string][]azure.ClientID{"flux-system/source-controller": {azure.ClientID(id)}}}, object(flux, "Bucket", "c", "spec: {provider: azure}"))
	if o := chosen.Objects[0]; picked(o.Identity) != "known "+id || codes(o.Findings) != "IMDS205" {
		t.Errorf("a person chooses for an operator that was not found: %s, %v", picked(o.Identity), o.Findings)
	}
	for name, done := range map[string]string{
		"Azure Service Operator":                    secretOf("aso-controller-settings", "AZURE_CLIENT_ID: "+id+", USE_WORKLOAD_IDENTITY_AUTH: 'true'"),
		"Azure Service Operator with a secret":      secretOf("aso-credential", "AZURE_CLIENT_ID: "+id+", AZURE_CLIENT_SECRET: x"),
		"Argo CD":                                   secretOf("prod", `config: '{"execProviderConfig": {"env": {"AAD_LOGIN_METHOD": "workloadidentity"}}}'`, "argocd.argoproj.io/secret-type: cluster"),
		"a Secret of another program":               secretOf("prod", `config: '{"execProviderConfig": {"env": {"AAD_LOGIN_METHOD": "msi"}}}'`),
		"an object that an add-on manager restores": strings.Replace(object(keda, "TriggerAuthentication", "c", "spec: {podIdentity: {provider: azure, identityId: "+id+"}}"), "name: c}", "name: c, labels: {addonmanager.kubernetes.io/mode: Reconcile}}", 1),
		"an object of kube-system":                  strings.Replace(object(csi, "SecretProviderClass", "c", "spec: {provider: azure, parameters: {usePodIdentity: 'true'}}"), "namespace: ns", "namespace: kube-system", 1) + "\n---\n" + namespace("kube-system"),
		"KEDA":                                      object(keda, "TriggerAuthentication", "c", "spec: {podIdentity: {provider: azure-workload}}"),
		"CSI driver":                                object(csi, "SecretProviderClass", "c", "spec: {provider: azure, parameters: {usePodIdentity: 'false', clientID: "+id+"}}"),
		"CSI driver, of another provider":           object(csi, "SecretProviderClass", "c", "spec: {provider: vault, parameters: {usePodIdentity: 'true'}}"),
		"External Secrets":                          object(eso, "SecretStore", "c", "spec: {provider: {azurekv: {authType: WorkloadIdentity}}}"),
		"Flux":                                      object(flux, "Bucket", "c", "spec: {provider: aws}"),
		"cert-manager":                              object("cert-manager.io/v1", "Issuer", "c", "spec: {acme: {solvers: [{dns01: {azureDNS: {clientID: x}}}]}}"),
	} {
		if p := planOf(t, plan.Options{}, done); len(p.Objects) != 0 {
			t.Errorf("%s: nothing is to be changed, got %v", name, p.Objects)
		}
	}
}

// mountingPod is a workload that aad-pod-identity serves.
func mountingPod(a app) string {
	a.labels = []string{"aadpodidbinding: app"}
	return a.String()
}

// TestTools has what the plan says about the workloads of tools.
func TestTools(t *testing.T) {
	trigger := func(name string, n int) string {
		return object(keda, "TriggerAuthentication", name, "spec: {podIdentity: {provider: azure, identityId: "+client(n)+"}}")
	}
	component := func(name string, n int, scopes string) string {
		return strings.Replace(object("dapr.io/v1alpha1", "Component", name, "spec: {metadata: [{name: azureClientId, value: "+client(n)+"}]}, scopes: ["+scopes+"]"), "}, scopes", "}, scopes", 1)
	}
	dapr := app{account: "sa", annotation: []string{"dapr.io/enabled: 'true'", "dapr.io/app-id: app"}}
	mounting := app{account: "sa", pod: "volumes: [{name: v, csi: {driver: secrets-store.csi.k8s.io, volumeAttributes: {secretProviderClass: c}}}]"}
	class := object(csi, "SecretProviderClass", "c", "spec: {provider: azure, parameters: {useVMManagedIdentity: 'true', userAssignedIdentityID: "+client(1)+"}}")
	for _, r := range []row{
		{name: "KEDA: each object names its identity", objects: docs(operator("keda", "ghcr.io/kedacore/keda:2.14.0", "aadpodidbinding: app"), identity("a", 1), identity("b", 2), binding("a", "app"), binding("b", "app"), nmi(), trigger("x", 1), trigger("z", 2)),
			key: "keda-ns deploy/keda", today: pod, identity: "known a,b", step: "change", codes: "IMDS201"},
		{name: "KEDA: one of them names none", objects: docs(operator("keda", "ghcr.io/kedacore/keda:2.14.0", "aadpodidbinding: app"), identity("a", 1), identity("b", 2), binding("a", "app"), binding("b", "app"), nmi(), trigger("x", 1), object(keda, "TriggerAuthentication", "z", "spec: {podIdentity: {provider: azure}}")),
			key: "keda-ns deploy/keda", today: pod, identity: "ambiguous a,b", step: "choose", codes: "IMDS107 IMDS201"},
		{name: "KEDA: without aad-pod-identity", objects: docs(operator("keda", "ghcr.io/kedacore/keda:2.14.0"), trigger("x", 1)), key: "keda-ns deploy/keda", today: node, identity: "known " + client(1), step: "change", codes: "IMDS201"},
		{name: "CSI driver: only the driver asks", objects: docs(account("sa"), mounting, class), today: node, identity: "known " + client(1), step: "change", codes: "IMDS202"},
		{name: "CSI driver: with the account default", objects: docs(account("default"), app{pod: mounting.pod}, class), today: node, identity: "known " + client(1), step: "change", codes: "IMDS101 IMDS202"},
		{name: "External Secrets: the stores get accounts", objects: docs(operator("eso", "ghcr.io/external-secrets/external-secrets:v1"), object(eso, "SecretStore", "c", "spec: {provider: {azurekv: {authType: ManagedIdentity, identityId: "+client(1)+"}}}")),
			key: "eso-ns deploy/eso", today: node, identity: "known " + client(1), step: "change", codes: "IMDS203"},
		{name: "Azure Service Operator", objects: labelled(app{image: "mcr.microsoft.com/k8s/azureserviceoperator:v2.9.0"}), today: pod, identity: one, step: "change", codes: "IMDS204"},
		{name: "cert-manager", objects: docs(operator("cm", "quay.io/jetstack/cert-manager-controller:v1.15.0"), object("cert-manager.io/v1", "Issuer", "c", "spec: {acme: {solvers: [{dns01: {azureDNS: {managedIdentity: {clientID: "+client(1)+"}}}}]}}")),
			key: "cm-ns deploy/cm", today: node, identity: "known " + client(1), step: "direct", codes: "IMDS206"},
		{name: "cert-manager before workload identity", objects: docs(operator("cm", "quay.io/jetstack/cert-manager-controller:v1.10.2"), object("cert-manager.io/v1", "Issuer", "c", "spec: {acme: {solvers: [{dns01: {azureDNS: {managedIdentity: {clientID: "+client(1)+"}}}}]}}")),
			key: "cm-ns deploy/cm", today: node, identity: "known " + client(1), step: "sidecar", redirect: "forward", codes: "IMDS206"},
		{name: "Velero, whose server has another version than its plugin", objects: labelled(app{image: "velero/velero:v1.7.0", pod: "initContainers: [{name: azure, image: 'velero/velero-plugin-for-microsoft-azure:v1.8.0'}]"}), today: pod, identity: one, step: "direct", codes: "IMDS209"},
		{name: "Application Gateway", objects: labelled(app{container: "env: [{name: USE_MANAGED_IDENTITY_FOR_POD, value: 'true'}]"}), today: pod, identity: one, step: "change", codes: "IMDS208"},
		{name: "Velero", objects: labelled(app{pod: "initContainers: [{name: azure, image: 'velero/velero-plugin-for-microsoft-azure:v1'}]"}), today: pod, identity: one, step: "direct", codes: "IMDS209"},
		{name: "Dapr: one identity", objects: docs(account("sa"), dapr, component("a", 1, "app")), today: node, identity: "known " + client(1), step: "direct", codes: "IMDS210"},
		{name: "Dapr: two identities", objects: docs(account("sa"), dapr, component("a", 1, "app"), component("b", 2, "")), today: node, identity: "known " + client(1) + "," + client(2), step: "sidecar", redirect: "forward", codes: "IMDS210"},
		{name: "Dapr: another application's", objects: docs(account("sa"), dapr, component("a", 1, "other")), today: plan.Unknown, identity: "none", step: "nothing"},
		{name: "Argo CD", objects: labelled(app{container: "env: [{name: AAD_LOGIN_METHOD, value: msi}]"}), today: pod, identity: one, step: "change", codes: "IMDS211"},
		{name: "cluster-autoscaler outside of kube-system", objects: labelled(app{container: "env: [{name: ARM_USE_MANAGED_IDENTITY_EXTENSION, value: 'true'}]"}), today: pod, identity: one, step: "change", codes: "IMDS213"},
		{name: "Hadoop", objects: docs(labelled(app{}), "{apiVersion: sparkoperator.k8s.io/v1beta2, kind: SparkApplication, metadata: {namespace: ns, name: s}, spec: {sparkConf: {x: org.apache.hadoop.fs.azurebfs.oauth2.MsiTokenProvider}, driver: {serviceAccount: sa, labels: {aadpodidbinding: app}}}}"),
			key: "ns sparkapplication/s", today: pod, identity: one, step: "change", codes: "IMDS126 IMDS223"},
		{name: "Terraform", objects: labelled(app{container: "env: [{name: ARM_USE_MSI, value: 'true'}]"}), today: pod, identity: one, step: "change", codes: "IMDS224"},
		{name: "Azure CLI", objects: labelled(app{container: "command: [az, login, --identity]"}), today: pod, identity: one, step: "change", codes: "IMDS226"},
	} {
		r.check(t)
	}
	old := workload(t, planOf(t, plan.Options{}, docs(operator("keda", "ghcr.io/kedacore/keda:2.7.1", "aadpodidbinding: app"), identity("a", 1), binding("a", "app"), nmi())...), "keda-ns deploy/keda")
	if !strings.Contains(old.Next.Text, "; version 2.7.1 has no workload identity: upgrade it to 2.8 or later first") {
		t.Errorf("an old KEDA: got %q", old.Next.Text)
	}
	p := planOf(t, plan.Options{}, docs(operator("eso", "ghcr.io/external-secrets/external-secrets:v1"), object(eso, "SecretStore", "c", "spec: {provider: {azurekv: {authType: ManagedIdentity, identityId: "+client(1)+"}}}"))...)
	if len(p.Credentials) != 1 || p.Credentials[0].Subject != "system:serviceaccount:ns:c" || len(p.Accounts) != 1 || p.Accounts[0].Name != "c" || !p.Accounts[0].New {
		t.Errorf("the account of a store: %+v, %+v", p.Credentials, p.Accounts)
	}
}

// TestTokenPath checks that the path of the token is given for programs with another one built in.
func TestTokenPath(t *testing.T) {
	for _, code := range plan.Codes() {
		if !slices.Contains([]string{"IMDS212", "IMDS216", "IMDS223", "IMDS229"}, code.Code) {
			continue
		}
		if !strings.Contains(plan.ToolChange(code.Code), "/var/run/secrets/azure/wi/token/azure-identity-token") {
			t.Errorf("%s does not say where the token is", code.Code)
		}
	}
}
