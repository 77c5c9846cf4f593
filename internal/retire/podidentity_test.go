package retire_test

import (
	"strings"
	"testing"

	"imds-oidc-proxy/internal/plan"
	"imds-oidc-proxy/internal/retire"
	"imds-oidc-proxy/internal/survey"
)

const kinds = "delete the kinds of aad-pod-identity"

// TestInstallations checks the order of the removal of each installation, when no workload uses
// aad-pod-identity any more.
func TestInstallations(t *testing.T) {
	finished := []any{direct("web", bound+"web"), bind("web", "web", "")}
	label := "remove the label aadpodidbinding of ns deploy/web"
	bindings := "delete AzureIdentityBinding ns/web-binding"
	identity := "delete AzureIdentity ns/web"
	roles := "delete the role assignments for aad-pod-identity (by hand) (Azure)"
	for name, c := range map[string]struct {
		objects []any
		want    []string
	}{
		"chart": {append(finished, nmi(release), mic), []string{label, bindings, identity, "uninstall the chart of aad-pod-identity", kinds, roles}},
		"chart of an unknown release": {append(finished, nmi(", labels: {app.kubernetes.io/managed-by: Helm}"), mic),
			[]string{label, bindings, identity, "delete the workloads of aad-pod-identity (by hand)", kinds, roles}},
		"manifests":    {append(finished, nmi(""), mic), []string{label, bindings, identity, "delete the workloads of aad-pod-identity", kinds, roles}},
		"managed mode": {append(finished, nmi(release, "--operation-mode=managed")), []string{label, bindings, identity, "uninstall the chart of aad-pod-identity", kinds, "remove the identities from the scale sets of the nodes (by hand) (Azure)", roles}},
		"add-on": {[]any{direct("web", bound+"web"), bind("web", "web", addOn), nmi(addOn, "--operation-mode=managed")},
			[]string{label, "delete AzureIdentity ns/web (Azure)", "turn off the add-on of AKS (Azure)", kinds, roles}},
		"objects without a program": {append(finished, assigned("ns/web")), []string{label, bindings, identity, "delete AzureAssignedIdentity ns/x", kinds, roles}},
		"unused exception":          {[]any{exception("e", "app: gone"), nmi(release), mic}, []string{"delete AzurePodIdentityException ns/e", "uninstall the chart of aad-pod-identity", kinds, roles}},
		"used exception":            {[]any{exception("e", "app: batch"), app{name: "batch", labels: []string{"app: batch"}}, nmi(release), mic}, []string{"uninstall the chart of aad-pod-identity", kinds, "stays: ns deploy/batch: not migrated yet (node identity); next: the identity is not known", "stays: identities and roles of the nodes: workloads use the node's identity: 1"}},
		"no aad-pod-identity":       {[]any{direct("web")}, nil},
	} {
		compare(t, name, outline(retired(t, retire.Options{}, c.objects...)), c.want...)
	}
}

func assigned(identity string) string {
	namespace, name, _ := strings.Cut(identity, "/")
	return "{apiVersion: aadpodidentity.k8s.io/v1, kind: AzureAssignedIdentity, metadata: {namespace: ns, name: x}, spec: {azureIdentityRef: {metadata: {namespace: " + namespace + ", name: " + name + "}}}}"
}

// TestInUse checks that what a workload still uses stays, and that the rest of it goes.
func TestInUse(t *testing.T) {
	old := app{name: "old", labels: []string{bound + "old"}}
	const system = "{apiVersion: apps/v1, kind: Deployment, metadata: {namespace: kube-system, name: agic}, spec: {template: {metadata: {labels: {aadpodidbinding: old}}, spec: {containers: [{name: c, image: i}]}}}}"
	const class = "{apiVersion: secrets-store.csi.x-k8s.io/v1, kind: SecretProviderClass, metadata: {namespace: ns, name: vault}, spec: {provider: azure, parameters: {usePodIdentity: 'true'}}}"
	const keda = "{apiVersion: keda.sh/v1alpha1, kind: TriggerAuthentication, metadata: {namespace: ns, name: t}, spec: {podIdentity: {provider: azure, identityId: 00000001-0000-4000-8000-000000000001}}}"
	notMigrated := "stays: ns deploy/old: not migrated yet (pod identity); next: add the sidecar, redirect: forward"
	inUse := "stays: aad-pod-identity: bindings are in use"
	for name, c := range map[string]struct {
		options retire.Options
		objects []any
		want    []string
	}{
		"one of two": {retire.Options{}, []any{old, direct("web"), bind("web", "web", ""), bind("old", "old", ""), nmi(release), mic},
			[]string{"delete AzureIdentityBinding ns/web-binding", "delete AzureIdentity ns/web", notMigrated, "stays: ns AzureIdentityBinding/old-binding: it gives tokens to ns deploy/old", inUse}},
		"in the system": {retire.Options{}, []any{system, bind("old", "old", ""), nmi(release), mic},
			[]string{"stays: ns AzureIdentityBinding/old-binding: it gives tokens to kube-system deployment/agic", inUse}},
		"a class": {retire.Options{}, []any{class, nmi(release), mic},
			[]string{"stays: aad-pod-identity: ns secretproviderclass/vault uses it: spec.parameters.usePodIdentity: true"}},
		"KEDA": {retire.Options{}, []any{keda, nmi(release), mic},
			[]string{"stays: aad-pod-identity: ns triggerauthentication/t uses it: spec.podIdentity.provider: azure"}},
		"one namespace": {retire.Options{Namespace: "ns"}, []any{direct("web"), bind("web", "web", ""), nmi(release), mic},
			[]string{"stays: aad-pod-identity: it is for the whole cluster, and only namespace ns was read"}},
		"not all was read": {retire.Options{}, []any{direct("web"), bind("web", "web", ""), nmi(release), mic, "{apiVersion: argoproj.io/v9, kind: Rollout, metadata: {namespace: ns, name: r}}"},
			[]string{"stays: aad-pod-identity: not everything that may use it was read: rollouts.argoproj.io: version v9 is unknown to this program, which knows v1alpha1"}},
	} {
		compare(t, name, outline(retired(t, c.options, c.objects...)), c.want...)
	}
}

// TestIncompleteFiles checks that files without Deployments or DaemonSets do not look like a cluster in which
// aad-pod-identity does not run.
func TestIncompleteFiles(t *testing.T) {
	for kind, want := range map[string]string{
		"DaemonSet":  "stays: aad-pod-identity: not everything that may use it was read: daemonsets.apps: the files contain none: add them with kubectl get daemonsets.apps --all-namespaces --output=yaml",
		"Deployment": "stays: aad-pod-identity: not everything that may use it was read: deployments.apps: the files contain none: add them with kubectl get deployments.apps --all-namespaces --output=yaml",
	} {
		text := strings.ReplaceAll(namespaces+"\n---\n"+bind("web", "web", ""), "kind: "+kind, "kind: Event")
		s := survey.New(survey.Config{})
		if err := s.ReadFile("x", strings.NewReader("---\n"+text+"\n")); err != nil {
			t.Fatal(err)
		}
		s.Finish()
		r, err := retire.New(s, plan.New(s, plan.Options{}), retire.Options{Now: now})
		if err != nil {
			t.Fatal(err)
		}
		compare(t, kind, outline(r), want)
		compare(t, kind, strings.Join(r.None, " "), "statefulsets.apps cronjobs.batch jobs.batch")
	}
}

// TestChecks checks the checks of each step, for the cluster and for namespaced identities.
func TestChecks(t *testing.T) {
	steps := map[string]retire.Step{}
	add := func(prefix string, r *retire.Retirement) {
		for _, s := range r.Steps {
			steps[prefix+s.Title] = s
		}
	}
	add("", retired(t, retire.Options{}, bind("web", "web", ""), nmi(release), mic))
	add("managed: ", retired(t, retire.Options{}, bind("web", "web", addOn), nmi(addOn, "--operation-mode=managed")))
	add("odd: ", retired(t, retire.Options{}, bind("web", "not a label", ""), nmi(""), mic))
	const silent = `log=$(kubectl --namespace=aad logs --selector=app=nmi --since=1h --tail=-1) && case $log in *"matched identityType"*) false;; esac`
	for title, want := range map[string][]string{
		"delete AzureIdentityBinding ns/web-binding": {`left=$(kubectl get pods --all-namespaces --selector=aadpodidbinding=web --output=name) && [ -z "$left" ]`, silent,
			"kubectl --namespace=ns delete --ignore-not-found azureidentitybindings.aadpodidentity.k8s.io/web-binding"},
		"odd: delete AzureIdentityBinding ns/web-binding": {silent, "kubectl --namespace=ns delete --ignore-not-found azureidentitybindings.aadpodidentity.k8s.io/web-binding"},
		"delete AzureIdentity ns/web": {`left=$(kubectl get azureassignedidentities.aadpodidentity.k8s.io --all-namespaces --output='go-template={{range .items}}{{.spec.azureIdentityRef.metadata.namespace}}/{{.spec.azureIdentityRef.metadata.name}} {{end}}') && case " $left" in *' ns/web '*) false;; esac`,
			"kubectl --namespace=ns delete --ignore-not-found azureidentities.aadpodidentity.k8s.io/web"},
		"managed: delete AzureIdentity ns/web": {`left=$(kubectl --namespace=ns get pods --selector=aadpodidbinding=web --output=name) && [ -z "$left" ]`,
			`az aks pod-identity delete --resource-group "$CLUSTER_RESOURCE_GROUP" --cluster-name "$CLUSTER" --namespace ns --name web`},
		"uninstall the chart of aad-pod-identity": {
			`left=$(kubectl get azureidentitybindings.aadpodidentity.k8s.io --all-namespaces --output=name) && [ -z "$left" ]`,
			`left=$(kubectl get azureidentities.aadpodidentity.k8s.io --all-namespaces --output=name) && [ -z "$left" ]`,
			`left=$(kubectl get azureassignedidentities.aadpodidentity.k8s.io --all-namespaces --output=name) && [ -z "$left" ]`,
			"helm uninstall --namespace=aad pod-identity"},
		"managed: turn off the add-on of AKS": {
			`left=$(kubectl get azureidentitybindings.aadpodidentity.k8s.io --all-namespaces --output=name) && [ -z "$left" ]`,
			`left=$(kubectl get azureidentities.aadpodidentity.k8s.io --all-namespaces --output=name) && [ -z "$left" ]`,
			`az aks update --resource-group "$CLUSTER_RESOURCE_GROUP" --name "$CLUSTER" --disable-pod-identity`},
	} {
		compare(t, title, commands(steps[title]), want...)
	}
}
