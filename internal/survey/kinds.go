package survey

import "strings"

// Kind is a kind that the survey reads.
type Kind struct {
	Group string
	// Versions are the known versions, the newest first. Their fields that are read are the same.
	Versions  []string
	Resource  string // in plural, as kubectl writes it
	Kind      string
	Namespace bool // the kind is in namespaces
	// Everywhere means that the kind is read from all namespaces even if one was requested: bindings of
	// other namespaces match too, and operators use the service account of their own.
	Everywhere bool
	// Template is the path of the pod template, separated by dots. "-" means the object itself.
	Template string
}

// String returns the name of the kind as kubectl accepts it, such as rollouts.argoproj.io.
func (k Kind) String() string { return strings.TrimSuffix(k.Resource+"."+k.Group, ".") }

const (
	inSpec = "spec.template"
	none   = "-"

	aadPodIdentity = "aadpodidentity.k8s.io"
	gatekeeper     = "constraints.gatekeeper.sh"
)

var (
	v1       = []string{"v1"}
	v1alpha1 = []string{"v1alpha1"}
	fluxV    = []string{"v1", "v1beta2", "v1beta1"}
	asoV     = []string{"v1api20230131", "v1api20220131preview", "v1api20181130"}
	upjetV   = []string{"v1beta2", "v1beta1"}
)

// Kinds is the table of the kinds that are read, in the order in which a cluster is read. Kinds of the
// group constraints.gatekeeper.sh are read too: a cluster defines them itself.
var Kinds = []Kind{
	{"", v1, "namespaces", "Namespace", false, false, ""},
	{"", v1, "serviceaccounts", "ServiceAccount", true, false, ""},
	{"", v1, "configmaps", "ConfigMap", true, false, ""},
	{"", v1, "secrets", "Secret", true, false, ""},
	{"", v1, "limitranges", "LimitRange", true, false, ""},
	{"", v1, "resourcequotas", "ResourceQuota", true, false, ""},
	{"", v1, "persistentvolumes", "PersistentVolume", false, false, ""},
	{"rbac.authorization.k8s.io", v1, "rolebindings", "RoleBinding", true, false, ""},
	{"rbac.authorization.k8s.io", v1, "clusterrolebindings", "ClusterRoleBinding", false, false, ""},
	{"storage.k8s.io", v1, "storageclasses", "StorageClass", false, false, ""},
	{"admissionregistration.k8s.io", v1, "mutatingwebhookconfigurations", "MutatingWebhookConfiguration", false, false, ""},

	{aadPodIdentity, v1, "azureidentities", "AzureIdentity", true, true, ""},
	{aadPodIdentity, v1, "azureidentitybindings", "AzureIdentityBinding", true, true, ""},
	{aadPodIdentity, v1, "azureassignedidentities", "AzureAssignedIdentity", true, true, ""},
	{aadPodIdentity, v1, "azurepodidentityexceptions", "AzurePodIdentityException", true, false, ""},

	{"keda.sh", v1alpha1, "triggerauthentications", "TriggerAuthentication", true, false, ""},
	{"keda.sh", v1alpha1, "clustertriggerauthentications", "ClusterTriggerAuthentication", false, false, ""},
	{"secrets-store.csi.x-k8s.io", []string{"v1", "v1alpha1"}, "secretproviderclasses", "SecretProviderClass", true, false, ""},
	{"external-secrets.io", []string{"v1", "v1beta1", "v1alpha1"}, "secretstores", "SecretStore", true, false, ""},
	{"external-secrets.io", []string{"v1", "v1beta1", "v1alpha1"}, "clustersecretstores", "ClusterSecretStore", false, false, ""},
	{"source.toolkit.fluxcd.io", fluxV, "buckets", "Bucket", true, false, ""},
	{"source.toolkit.fluxcd.io", fluxV, "ocirepositories", "OCIRepository", true, false, ""},
	{"source.toolkit.fluxcd.io", fluxV, "gitrepositories", "GitRepository", true, false, ""},
	{"source.toolkit.fluxcd.io", fluxV, "helmrepositories", "HelmRepository", true, false, ""},
	{"image.toolkit.fluxcd.io", fluxV, "imagerepositories", "ImageRepository", true, false, ""},
	{"cert-manager.io", v1, "issuers", "Issuer", true, false, ""},
	{"cert-manager.io", v1, "clusterissuers", "ClusterIssuer", false, false, ""},
	{"dapr.io", v1alpha1, "components", "Component", true, false, ""},
	{"azure.upbound.io", []string{"v1beta1"}, "providerconfigs", "ProviderConfig", false, false, ""},
	{"azure.m.upbound.io", []string{"v1beta1"}, "providerconfigs", "ProviderConfig", true, false, ""},
	{"azure.m.upbound.io", []string{"v1beta1"}, "clusterproviderconfigs", "ClusterProviderConfig", false, false, ""},
	{"monitoring.coreos.com", v1, "prometheuses", "Prometheus", true, false, ""},

	{"managedidentity.azure.com", asoV, "userassignedidentities", "UserAssignedIdentity", true, true, ""},
	{"managedidentity.azure.com", asoV, "federatedidentitycredentials", "FederatedIdentityCredential", true, true, ""},
	{"managedidentity.azure.upbound.io", upjetV, "federatedidentitycredentials", "FederatedIdentityCredential", false, false, ""},
	{"managedidentity.azure.m.upbound.io", upjetV, "federatedidentitycredentials", "FederatedIdentityCredential", true, true, ""},
	{"security.openshift.io", v1, "securitycontextconstraints", "SecurityContextConstraints", false, false, ""},

	{"apps", v1, "deployments", "Deployment", true, true, inSpec},
	{"apps", v1, "statefulsets", "StatefulSet", true, true, inSpec},
	{"apps", v1, "daemonsets", "DaemonSet", true, true, inSpec},
	{"apps", v1, "replicasets", "ReplicaSet", true, false, inSpec},
	{"", v1, "replicationcontrollers", "ReplicationController", true, false, inSpec},
	{"batch", v1, "cronjobs", "CronJob", true, false, "spec.jobTemplate.spec.template"},
	{"batch", v1, "jobs", "Job", true, false, inSpec},
	{"argoproj.io", v1alpha1, "rollouts", "Rollout", true, false, inSpec},
	{"argoproj.io", v1alpha1, "workflows", "Workflow", true, false, none},
	{"argoproj.io", v1alpha1, "cronworkflows", "CronWorkflow", true, false, none},
	{"argoproj.io", v1alpha1, "workflowtemplates", "WorkflowTemplate", true, false, none},
	{"apps.kruise.io", v1alpha1, "clonesets", "CloneSet", true, false, inSpec},
	{"apps.kruise.io", []string{"v1beta1", "v1alpha1"}, "statefulsets", "StatefulSet", true, false, inSpec},
	{"apps.kruise.io", v1alpha1, "daemonsets", "DaemonSet", true, false, inSpec},
	{"apps.kruise.io", v1alpha1, "broadcastjobs", "BroadcastJob", true, false, inSpec},
	{"apps.openshift.io", v1, "deploymentconfigs", "DeploymentConfig", true, false, inSpec},
	{"keda.sh", v1alpha1, "scaledjobs", "ScaledJob", true, false, "spec.jobTargetRef.template"},
	{"sparkoperator.k8s.io", []string{"v1beta2"}, "sparkapplications", "SparkApplication", true, false, none},
	{"sparkoperator.k8s.io", []string{"v1beta2"}, "scheduledsparkapplications", "ScheduledSparkApplication", true, false, none},
	{"jobset.x-k8s.io", []string{"v1alpha2"}, "jobsets", "JobSet", true, false, none},
	{"leaderworkerset.x-k8s.io", v1, "leaderworkersets", "LeaderWorkerSet", true, false, none},
	{"serving.knative.dev", v1, "services", "Service", true, false, inSpec},
	{"kafka.strimzi.io", []string{"v1", "v1beta2"}, "kafkas", "Kafka", true, false, none},
	{"postgresql.cnpg.io", v1, "clusters", "Cluster", true, false, none},
	{"", v1, "pods", "Pod", true, false, ""},
}

// PodKinds returns the names of the kinds with an ordinary pod template, and of pods: all that is needed to know
// the workloads and the owners of their pods.
func PodKinds() []string {
	var names []string
	for _, k := range Kinds {
		if k.Template != "" && k.Template != none || k.Kind == "Pod" {
			names = append(names, k.String())
		}
	}
	return names
}

// kindOf returns the row of a kind.
func kindOf(group, kind string) (Kind, bool) {
	for _, k := range Kinds {
		if k.Group == group && k.Kind == kind {
			return k, true
		}
	}
	if group == gatekeeper {
		return Kind{Group: group, Kind: kind, Resource: strings.ToLower(kind)}, true
	}
	return Kind{}, false
}

// TemplateField says in which field of a kind without an ordinary pod template the labels and the
// annotations of its pods are, and in which the service account is.
type TemplateField struct{ Labels, Account string }

// TemplateFields is the table of these kinds, by GROUP/KIND.
var TemplateFields = map[string]TemplateField{
	"argoproj.io/Workflow":                           {"spec.podMetadata", "spec.serviceAccountName"},
	"argoproj.io/WorkflowTemplate":                   {"spec.podMetadata", "spec.serviceAccountName"},
	"argoproj.io/CronWorkflow":                       {"spec.workflowSpec.podMetadata", "spec.workflowSpec.serviceAccountName"},
	"sparkoperator.k8s.io/SparkApplication":          {"spec.driver.labels and spec.executor.labels (annotations likewise)", "spec.driver.serviceAccount and spec.executor.serviceAccount"},
	"sparkoperator.k8s.io/ScheduledSparkApplication": {"spec.template.driver.labels and spec.template.executor.labels (annotations likewise)", "spec.template.driver.serviceAccount and spec.template.executor.serviceAccount"},
	"jobset.x-k8s.io/JobSet":                         {"the metadata of each spec.replicatedJobs[].template.spec.template", "the spec of each of these templates"},
	"leaderworkerset.x-k8s.io/LeaderWorkerSet":       {"the metadata of spec.leaderWorkerTemplate.leaderTemplate and workerTemplate", "the spec of both templates"},
	"kafka.strimzi.io/Kafka":                         {"spec.kafka.template.pod.metadata", "the operator's own: annotate it through spec.kafka.template.serviceAccount.metadata"},
	"postgresql.cnpg.io/Cluster":                     {"spec.inheritedMetadata", "the operator's own: annotate it through spec.serviceAccountTemplate.metadata"},
}
