package plan_test

import (
	"strings"
	"testing"

	"imds-oidc-proxy/internal/plan"
)

func constraint(kind, name, spec string) string {
	return "{apiVersion: constraints.gatekeeper.sh/v1beta1, kind: " + kind + ", metadata: {name: azurepolicy-" + name + "}, spec: {" + spec + "}}"
}

// TestObstacles has what is in the way of a workload.
func TestObstacles(t *testing.T) {
	level := func(labels string) []string { return docs(labelled(app{}), namespace("ns", labels)) }
	capabilities := func(spec string) []string {
		return docs(labelled(app{}), constraint("K8sAzureV3AllowedCapabilities", "caps", spec))
	}
	for _, r := range []row{
		{name: "baseline", objects: level("pod-security.kubernetes.io/enforce: baseline"), step: "sidecar", redirect: "none", codes: "IMDS130"},
		{name: "restricted", objects: level("pod-security.kubernetes.io/enforce: restricted"), step: "sidecar", redirect: "none", codes: "IMDS131"},
		{name: "baseline with the CNI plugin", objects: append(level("pod-security.kubernetes.io/enforce: baseline"), plugin("install")), step: "sidecar", redirect: "cni-forward", codes: "IMDS130"},
		{name: "restricted with the CNI plugin, sealed today", objects: append(level("pod-security.kubernetes.io/enforce: restricted"), plugin("install"), nmi("--block-instance-metadata=true")), step: "sidecar", redirect: "cni-sealed", codes: "IMDS131"},
		{name: "baseline, the CNI plugin is being removed", objects: append(level("pod-security.kubernetes.io/enforce: baseline"), plugin("uninstall")), step: "sidecar", redirect: "none", codes: "IMDS130"},
		{name: "privileged with the CNI plugin", objects: append(level("pod-security.kubernetes.io/enforce: privileged"), plugin("install")), step: "sidecar", redirect: "forward"},
		{name: "capabilities with the CNI plugin", objects: append(capabilities("enforcementAction: deny"), plugin("install")), step: "sidecar", redirect: "cni-forward", codes: "IMDS155"},
		{name: "warn", objects: level("pod-security.kubernetes.io/warn: restricted"), step: "sidecar", redirect: "forward", codes: "IMDS132"},
		{name: "audit", objects: level("pod-security.kubernetes.io/audit: baseline"), step: "sidecar", redirect: "forward", codes: "IMDS132"},
		{name: "privileged", objects: level("pod-security.kubernetes.io/enforce: privileged"), step: "sidecar", redirect: "forward"},
		{name: "capabilities", objects: capabilities("enforcementAction: deny"), step: "sidecar", redirect: "none", codes: "IMDS155"},
		{name: "the action is deny by default", objects: capabilities("parameters: {}"), step: "sidecar", redirect: "none", codes: "IMDS155"},
		{name: "dryrun", objects: capabilities("enforcementAction: dryrun"), step: "sidecar", redirect: "forward"},
		{name: "NET_ADMIN is allowed", objects: capabilities("parameters: {allowedCapabilities: [NET_ADMIN]}"), step: "sidecar", redirect: "forward"},
		{name: "the container is exempt", objects: capabilities("parameters: {excludedContainers: [azwi-proxy-init]}"), step: "sidecar", redirect: "forward"},
		{name: "the namespace is excluded", objects: capabilities("match: {excludedNamespaces: ['n*']}"), step: "sidecar", redirect: "forward"},
		{name: "another namespace is meant", objects: capabilities("match: {namespaces: [shop]}"), step: "sidecar", redirect: "forward"},
		{name: "images", objects: docs(labelled(app{}), constraint("K8sAzureContainerAllowedImages", "images", "parameters: {imageRegex: '^shop/'}")), step: "blocked", codes: "IMDS133"},
		{name: "all images", objects: docs(labelled(app{}), constraint("K8sAzureContainerAllowedImages", "images", "parameters: {imageRegex: '.*'}")), step: "sidecar", redirect: "forward"},
		{name: "users", objects: docs(labelled(app{}), constraint("K8sAzureV3AllowedUsersGroups", "users", "parameters: {}")), step: "blocked", codes: "IMDS133"},
		{name: "limits", objects: docs(labelled(app{}), constraint("K8sAzureV4ContainerLimits", "limits", "parameters: {}")), step: "blocked", codes: "IMDS133"},
		{name: "what the sidecar passes", objects: docs(labelled(app{}), constraint("K8sAzureV2NoPrivilege", "privileged", ""), constraint("K8sAzureV3NoPrivilegeEscalation", "escalation", ""),
			constraint("K8sAzureV3ReadOnlyRootFilesystem", "root", ""), constraint("K8sRequiredLabels", "labels", "")), step: "sidecar", redirect: "forward"},
		{name: "Windows by selector", objects: docs(account("sa"), app{account: "sa", pod: "nodeSelector: {kubernetes.io/os: windows}", container: "env: [{name: AZURE_CLIENT_ID, value: " + client(1) + "}]"}),
			today: node, identity: "known " + client(1), step: "blocked", codes: "IMDS121"},
		{name: "Windows by os", objects: docs(labelled(app{pod: "os: {name: windows}", container: "env: [{name: AZURE_CLIENT_ID, value: " + client(1) + "}]"})),
			today: node, identity: one, step: "blocked", codes: "IMDS114 IMDS121"},
		{name: "virtual nodes", objects: labelled(app{pod: "nodeSelector: {type: virtual-kubelet}"}), step: "blocked", codes: "IMDS122"},
		{name: "a toleration alone", objects: labelled(app{pod: "tolerations: [{key: virtual-kubelet.io/provider, operator: Exists}]"}), step: "sidecar", redirect: "forward"},
		{name: "Kata", objects: labelled(app{pod: "runtimeClassName: kata-mshv-vm-isolation"}), step: "sidecar", redirect: "forward", codes: "IMDS123"},
		{name: "LimitRange", objects: docs(labelled(app{}), "{apiVersion: v1, kind: LimitRange, metadata: {namespace: ns, name: l}, spec: {limits: [{type: Container, min: {memory: 17Mi}}]}}"), step: "sidecar", redirect: "forward", codes: "IMDS135"},
		{name: "a LimitRange with room", objects: docs(labelled(app{}), "{apiVersion: v1, kind: LimitRange, metadata: {namespace: ns, name: l}, spec: {limits: [{type: Container, min: {memory: 16Mi, cpu: 5m}}, {type: Pod, min: {memory: 1Gi}}]}}"), step: "sidecar", redirect: "forward"},
		{name: "a LimitRange of another namespace", objects: docs(labelled(app{}), "{apiVersion: v1, kind: LimitRange, metadata: {namespace: other, name: l}, spec: {limits: [{type: Container, min: {memory: 1Gi}}]}}"), step: "sidecar", redirect: "forward"},
		{name: "ResourceQuota", objects: docs(labelled(app{}), "{apiVersion: v1, kind: ResourceQuota, metadata: {namespace: ns, name: q}, spec: {hard: {limits.cpu: 4}}}"), step: "sidecar", redirect: "forward", codes: "IMDS136"},
		{name: "a LimitRange, and the sidecar is Guaranteed", objects: docs(labelled(app{container: "resources: {limits: {cpu: 1, memory: 1Gi}}"}), "{apiVersion: v1, kind: LimitRange, metadata: {namespace: ns, name: l}, spec: {limits: [{type: Container, min: {cpu: 50m, memory: 32Mi}}]}}"), step: "sidecar", redirect: "forward"},
		{name: "ResourceQuota, and the sidecar is Guaranteed", objects: docs(labelled(app{container: "resources: {limits: {cpu: 1, memory: 1Gi}}"}), "{apiVersion: v1, kind: ResourceQuota, metadata: {namespace: ns, name: q}, spec: {hard: {limits.cpu: 4}}}"), step: "sidecar", redirect: "forward"},
		{name: "pod-level resources", objects: labelled(app{pod: "resources: {limits: {memory: 1Gi}}"}), step: "sidecar", redirect: "forward", codes: "IMDS137"},
		{name: "the port", objects: labelled(app{container: "ports: [{containerPort: 8000}]"}), step: "blocked", codes: "IMDS127"},
		{name: "the user", objects: labelled(app{pod: "securityContext: {runAsUser: 1501}"}), step: "blocked", codes: "IMDS127"},
		{name: "an annotation that is not known", objects: labelled(app{annotation: []string{"imds-oidc-proxy/redirct: sealed"}}), step: "blocked", codes: "IMDS127"},
		{name: "Istio", objects: level("istio-injection: enabled"), step: "sidecar", redirect: "forward", codes: "IMDS140"},
		{name: "ambient", objects: level("istio.io/dataplane-mode: ambient"), step: "sidecar", redirect: "forward", codes: "IMDS140"},
		{name: "Linkerd", objects: labelled(app{annotation: []string{"linkerd.io/inject: enabled"}}), step: "sidecar", redirect: "forward", codes: "IMDS140"},
		{name: "OpenShift", objects: docs(labelled(app{}), "{apiVersion: security.openshift.io/v1, kind: SecurityContextConstraints, metadata: {name: restricted-v2}}"), step: "blocked", codes: "IMDS138"},
		{name: "a pod without controller", objects: labelled(app{kind: "Pod"}), key: "ns pod/app", step: "sidecar", redirect: "forward", codes: "IMDS125"},
		{name: "a static pod", objects: labelled(app{kind: "Pod", annotation: []string{"kubernetes.io/config.mirror: x"}}), key: "ns pod/app", step: "blocked", codes: "IMDS124"},
		{name: "an operator creates it", objects: docs(labelled(app{}), strings.Replace(app{name: "db", account: "sa", labels: []string{"aadpodidbinding: app"}}.String(), "name: db,", "name: db, ownerReferences: [{apiVersion: example.test/v1, kind: Database, name: main, controller: true}],", 1)),
			key: "ns deploy/db", step: "sidecar", redirect: "forward", codes: "IMDS126"},
		{name: "a Workflow", objects: docs(labelled(app{}), "{apiVersion: argoproj.io/v1alpha1, kind: Workflow, metadata: {namespace: ns, name: w}, spec: {serviceAccountName: sa, podMetadata: {labels: {aadpodidbinding: app}}}}"),
			key: "ns workflow/w", step: "sidecar", redirect: "forward", codes: "IMDS126"},
		{name: "another cloud", objects: labelled(app{container: "env: [{name: AZURE_AUTHORITY_HOST, value: 'https://login.microsoftonline.us/'}]"}), step: "sidecar", redirect: "forward", codes: "IMDS144"},
		{name: "the public cloud", objects: labelled(app{container: "env: [{name: AZURE_AUTHORITY_HOST, value: 'https://login.microsoftonline.com'}]"}), step: "sidecar", redirect: "forward"},
		{name: "another endpoint", objects: labelled(app{container: "env: [{name: IDENTITY_ENDPOINT, value: x}]"}), step: "blocked", codes: "IMDS129"},
		{name: "another host", objects: labelled(app{container: "env: [{name: AZURE_POD_IDENTITY_AUTHORITY_HOST, value: 'http://imds.example.test'}]"}), step: "blocked", codes: "IMDS129"},
		{name: "an HTTP proxy", objects: labelled(app{container: "env: [{name: HTTP_PROXY, value: 'http://proxy.example.test'}]"}), step: "sidecar", redirect: "forward", codes: "IMDS147"},
		{name: "an HTTP proxy with an exception", objects: labelled(app{container: "env: [{name: HTTP_PROXY, value: 'http://proxy.example.test'}, {name: NO_PROXY, value: 169.254.169.254}]"}), step: "sidecar", redirect: "forward"},
		{name: "an old Kubernetes", objects: labelled(app{}), options: plan.Options{ServerVersion: "v1.28.9"}, step: "sidecar", redirect: "forward", codes: "IMDS128"},
		{name: "Kubernetes 1.29", objects: labelled(app{}), options: plan.Options{ServerVersion: "v1.29.0-eks-1"}, step: "sidecar", redirect: "forward"},
	} {
		if r.today == "" {
			r.today, r.identity = pod, one
		}
		r.check(t)
	}
}

// TestSystem checks that what belongs to Kubernetes or AKS is left out and counted.
func TestSystem(t *testing.T) {
	inNamespace := func(name, namespace string) string {
		return strings.Replace(app{name: name, account: "sa"}.String(), "namespace: ns", "namespace: "+namespace, 1)
	}
	objects := docs(namespace("kube-system"), namespace("aks-istio", "kubernetes.azure.com/managedby: aks"), namespace("gatekeeper-system", "control-plane: controller-manager"), namespace("ns"), account("sa"),
		inNamespace("a", "kube-system"), inNamespace("b", "aks-istio"), inNamespace("c", "gatekeeper-system"), app{account: "sa"}, app{name: "managed", account: "sa", own: []string{"addonmanager.kubernetes.io/mode: Reconcile"}}, nmi())
	p := planOf(t, plan.Options{}, objects...)
	if len(p.Workloads) != 1 || p.Cluster.Managed != 5 || p.Cluster.Namespaces != 2 || strings.Join(p.Cluster.SystemNamespaces, " ") != "aks-istio gatekeeper-system kube-system" {
		t.Errorf("%d workloads, %+v", len(p.Workloads), p.Cluster)
	}
	p = planOf(t, plan.Options{Namespace: "kube-system"}, objects...)
	if len(p.Workloads) != 1 || p.Workloads[0].Namespace != "kube-system" || codes(p.Workloads[0].Findings) != "IMDS152" {
		t.Errorf("a person who names the namespace: got %v", p.Workloads)
	}
}

// TestCluster has the findings about a cluster as a whole.
func TestCluster(t *testing.T) {
	webhook := func(name string) string {
		return "{apiVersion: admissionregistration.k8s.io/v1, kind: MutatingWebhookConfiguration, metadata: {name: w}, webhooks: [{name: " + name + "}]}"
	}
	system := func(name, image, env string) string {
		return strings.Replace(app{name: name, account: "sa", image: image, container: env}.String(), "namespace: ns", "namespace: kube-system", 1)
	}
	for name, c := range map[string]struct {
		options plan.Options
		objects []string
		codes   string
		webhook string
	}{
		"no webhook":                 {plan.Options{}, docs(app{}), "IMDS146", ""},
		"ours":                       {plan.Options{}, docs(webhook("pods.imds-oidc-proxy.webhook")), "", "imds-oidc-proxy"},
		"azwi's":                     {plan.Options{}, docs(webhook("mutation.azure-workload-identity.io")), "", "azure-workload-identity"},
		"another":                    {plan.Options{}, docs(webhook("injector.example.test")), "IMDS146", ""},
		"an issuer that is too long": {plan.Options{Issuer: "https://" + strings.Repeat("x", 593)}, docs(webhook("pods.imds-oidc-proxy.webhook")), "IMDS145", "imds-oidc-proxy"},
		"the longest issuer":         {plan.Options{Issuer: "https://" + strings.Repeat("x", 592)}, docs(webhook("pods.imds-oidc-proxy.webhook")), "", "imds-oidc-proxy"},
		"a private issuer":           {plan.Options{Issuer: "https://kubernetes.default.svc.cluster.local"}, docs(webhook("pods.imds-oidc-proxy.webhook")), "IMDS145", "imds-oidc-proxy"},
		"Azure Policy":               {plan.Options{}, docs(webhook("pods.imds-oidc-proxy.webhook"), constraint("K8sAzureV3AllowedCapabilities", "caps", "enforcementAction: dryrun")), "IMDS134 IMDS139", "imds-oidc-proxy"},
		"cluster-autoscaler by hand": {plan.Options{}, docs(webhook("pods.imds-oidc-proxy.webhook"), system("ca", "registry.k8s.io/autoscaling/cluster-autoscaler:v1", "env: [{name: ARM_USE_MANAGED_IDENTITY_EXTENSION, value: 'true'}]")), "IMDS213", "imds-oidc-proxy"},
		"CSI controller by hand":     {plan.Options{}, docs(webhook("pods.imds-oidc-proxy.webhook"), system("csi", "mcr.microsoft.com/oss/kubernetes-csi/azurefile-csi:v1", "")), "IMDS215", "imds-oidc-proxy"},
		"another system tool":        {plan.Options{}, docs(webhook("pods.imds-oidc-proxy.webhook"), system("dns", "registry.k8s.io/coredns:1", "")), "", "imds-oidc-proxy"},
	} {
		p := planOf(t, c.options, c.objects...)
		if codes(p.Findings) != c.codes || strings.Join(p.Cluster.Webhooks, " ") != c.webhook {
			t.Errorf("%s: findings %v, webhooks %q", name, p.Findings, p.Cluster.Webhooks)
		}
	}
}
