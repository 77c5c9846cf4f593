package retire_test

import (
	"os"
	"os/exec"
	"path/filepath"
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
	mounting := direct("web")
	mounting.podSpec = ", volumes: [{name: s, csi: {driver: secrets-store.csi.k8s.io, volumeAttributes: {secretProviderClass: vault}}}]"
	night := app{version: "batch/v1", kind: "CronJob", name: "night", labels: []string{bound + "old"}}
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
		"a class of the system": {retire.Options{}, []any{strings.Replace(class, "namespace: ns", "namespace: kube-system", 1), nmi(release), mic},
			[]string{"stays: aad-pod-identity: kube-system secretproviderclass/vault uses it: spec.parameters.usePodIdentity: true"}},
		"a class that an add-on manager restores": {retire.Options{}, []any{strings.Replace(class, "name: vault", "name: vault, labels: {addonmanager.kubernetes.io/mode: Reconcile}", 1), nmi(release), mic},
			[]string{"stays: aad-pod-identity: ns secretproviderclass/vault uses it: spec.parameters.usePodIdentity: true"}},
		"a class that the files do not contain": {retire.Options{}, []any{mounting, bind("web", "web", ""), nmi(release), mic},
			[]string{"stays: aad-pod-identity: not everything that may use it was read: secretproviderclasses.secrets-store.csi.x-k8s.io: the files contain none: add them with kubectl get secretproviderclasses.secrets-store.csi.x-k8s.io --all-namespaces --output=yaml"}},
		"KEDA of an unknown version": {retire.Options{}, []any{nmi(release), mic, strings.Replace(keda, "v1alpha1", "v9", 1)},
			[]string{"stays: aad-pod-identity: not everything that may use it was read: triggerauthentications.keda.sh: version v9 is unknown to this program, which knows v1alpha1"}},
		"NMI with another image": {retire.Options{}, []any{night, bind("old", "old", ""), strings.Replace(nmi(""), "mcr.microsoft.com/oss/azure/aad-pod-identity/nmi", "registry.example.test/infra/podidentity-nmi", 1)},
			[]string{"stays: ns cronjob/night: not migrated yet (pod identity); next: add the sidecar, redirect: forward", "stays: ns AzureIdentityBinding/old-binding: it gives tokens to ns cronjob/night", inUse}},
		"NMI that was not found": {retire.Options{}, []any{night, bind("old", "old", ""), strings.Replace(nmi(""), "mcr.microsoft.com/oss/azure/aad-pod-identity/nmi", "registry.example.test/infra/agent", 1)},
			[]string{"stays: ns cronjob/night: not migrated yet (node identity); next: the identity is not known", "stays: ns AzureIdentityBinding/old-binding: it gives tokens to ns cronjob/night", inUse}},
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
		compare(t, kind, strings.Join(r.None, " "), "statefulsets.apps cronjobs.batch jobs.batch triggerauthentications.keda.sh clustertriggerauthentications.keda.sh secretproviderclasses.secrets-store.csi.x-k8s.io")
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
	const silent = `! { kubectl --namespace=aad logs --selector=app=nmi --since=1h --tail=-1 || echo 'the log cannot be read'; } | grep -q -e 'matched identityType' -e 'the log cannot be read'`
	notUsed := strings.Replace(silent, "matched identityType", " has been matched with azure identity ns/web$", 1)
	present := func(kind string) string {
		return "left=$(kubectl get --ignore-not-found crd/" + kind + ".aadpodidentity.k8s.io --output=name)"
	}
	empty := func(kind string) string {
		return present(kind) + ` && { [ -z "$left" ] || { left=$(kubectl get ` + kind + `.aadpodidentity.k8s.io --all-namespaces --output=name) && [ -z "$left" ]; }; }`
	}
	const exists = `; [ -z "$left" ] || `
	for title, want := range map[string][]string{
		"delete AzureIdentityBinding ns/web-binding": {`left=$(kubectl get pods --all-namespaces --selector=aadpodidbinding=web --output=name) && [ -z "$left" ]`, silent, notUsed,
			present("azureidentitybindings") + exists + "kubectl --namespace=ns delete --ignore-not-found azureidentitybindings.aadpodidentity.k8s.io/web-binding"},
		"odd: delete AzureIdentityBinding ns/web-binding": {silent, notUsed, present("azureidentitybindings") + exists + "kubectl --namespace=ns delete --ignore-not-found azureidentitybindings.aadpodidentity.k8s.io/web-binding"},
		"delete AzureIdentity ns/web": {present("azureassignedidentities") + ` && { [ -z "$left" ] || { left=$(kubectl get azureassignedidentities.aadpodidentity.k8s.io --all-namespaces --output='go-template={{range .items}}{{.spec.azureIdentityRef.metadata.namespace}}/{{.spec.azureIdentityRef.metadata.name}} {{end}}') && case " $left" in *' ns/web '*) false;; esac; }; }`,
			present("azureidentities") + exists + "kubectl --namespace=ns delete --ignore-not-found azureidentities.aadpodidentity.k8s.io/web"},
		"managed: delete AzureIdentity ns/web": {`left=$(kubectl --namespace=ns get pods --selector=aadpodidbinding=web --output=name) && [ -z "$left" ]`,
			`az aks pod-identity delete --resource-group "$CLUSTER_RESOURCE_GROUP" --cluster-name "$CLUSTER" --namespace ns --name web`},
		"uninstall the chart of aad-pod-identity": {
			empty("azureidentitybindings"),
			empty("azureidentities"),
			empty("azureassignedidentities"),
			"helm uninstall --ignore-not-found --namespace=aad pod-identity"},
		"managed: turn off the add-on of AKS": {
			empty("azureidentitybindings"),
			empty("azureidentities"),
			`az aks update --resource-group "$CLUSTER_RESOURCE_GROUP" --name "$CLUSTER" --disable-pod-identity`},
	} {
		compare(t, title, commands(steps[title]), want...)
	}
}

// run runs commands in a shell, with a program in place of kubectl and of helm.
func run(t *testing.T, text, standIn string) error {
	t.Helper()
	dir := t.TempDir()
	for _, program := range []string{"kubectl", "helm"} {
		if err := os.WriteFile(filepath.Join(dir, program), []byte("#!/bin/sh\n"+standIn), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("sh", "-euc", text)
	cmd.Env = []string{"PATH=" + dir + ":" + os.Getenv("PATH")}
	return cmd.Run()
}

// checkOf returns the last check of a step that reads the log of NMI.
func checkOf(t *testing.T, r *retire.Retirement, title string) string {
	t.Helper()
	found := ""
	for _, s := range r.Steps {
		for _, c := range s.Checks {
			if s.Title == title && strings.Contains(c.Command, " logs ") {
				found = c.Command
			}
		}
	}
	if found == "" {
		t.Fatalf("%s does not read the log:\n%s", title, outline(r))
	}
	return found
}

// TestLog checks that a label and a binding stay while NMI's log has their pods or their identity. The lines are those
// of aad-pod-identity v1.8.
func TestLog(t *testing.T) {
	long := strings.Repeat("long-name-", 6) + "x"
	r := retired(t, retire.Options{Report: canGo("side")}, direct("web", bound+"web"), direct(long, bound+"web"), sidecar("side", bound+"web"), bind("web", "web", ""),
		app{name: "old", labels: []string{bound + "old"}}, bind("old", "old", ""), nmi(release), mic)
	label := checkOf(t, r, "remove the label aadpodidbinding of ns deploy/web")
	truncated := checkOf(t, r, "remove the label aadpodidbinding of ns deploy/"+long)
	together := checkOf(t, r, "remove the sidecar of ns deploy/side, and the label aadpodidbinding")
	binding := checkOf(t, r, "delete AzureIdentityBinding ns/web-binding") // another one is in use
	line := func(pod, identity string) string {
		return "echo 'I1201 10:00:00.000000       1 standard.go:76] No clientID in request. " + pod + " has been matched with azure identity " + identity + "'\n"
	}
	for name, c := range map[string]struct {
		check, log string
		want       bool
	}{
		"nothing":            {label, "", true},
		"not readable":       {label, "exit 1", false},
		"partly readable":    {label, line("ns/old-1-a", "ns/old") + "exit 1", false},
		"asks":               {label, line("ns/web-7d9f-abcde", "ns/web"), false},
		"another asks":       {label, line("ns/old-1-a", "ns/old"), true},
		"another namespace":  {label, line("other-ns/web-1-a", "ns/web"), true},
		"cut off":            {truncated, line("ns/"+long[:58]+"abcde", "ns/web"), false},
		"with the sidecar":   {together, line("ns/side-1-a", "ns/web"), false},
		"binding, nothing":   {binding, "", true},
		"binding, asked":     {binding, line("ns/gone-1-a", "ns/web"), false},
		"binding, another":   {binding, line("ns/old-1-a", "ns/old"), true},
		"binding, long name": {binding, line("ns/old-1-a", "ns/web-two"), true},
	} {
		if err := run(t, c.check, c.log); (err == nil) != c.want {
			t.Errorf("%s: %v, want success: %v:\n%s", name, err, c.want, c.check)
		}
	}
}

// TestLogNotFound checks that the removal of a label says that no log of NMI can be checked, if there are bindings.
func TestLogNotFound(t *testing.T) {
	for name, c := range map[string]struct {
		objects []any
		want    string
	}{
		"bindings":            {[]any{direct("web", bound+"web"), bind("web", "web", "")}, "its pods use workload identity; NMI was not found: if it runs under another name, read its log first"},
		"no aad-pod-identity": {[]any{direct("web", bound+"web")}, "its pods use workload identity"},
		"NMI":                 {[]any{direct("web", bound+"web"), bind("web", "web", ""), nmi(release)}, "its pods use workload identity"},
	} {
		compare(t, name, retired(t, retire.Options{}, c.objects...).Steps[0].Reason, c.want)
	}
}

// TestSecondRun checks that the commands and checks succeed when everything was removed before, with its kinds, and
// that they fail when the API server does not answer.
func TestSecondRun(t *testing.T) {
	const gone = `case "$*" in
*logs*|"delete --ignore-not-found clusterrole/"*|*--ignore-not-found*crd/*|"uninstall --ignore-not-found "*|*"get pods"*|*daemonset/nmi*|*deployment/mic*|*" deploy/mic"*) exit 0;; esac
echo "the server does not have a resource type: $*" >&2
exit 1`
	for name, objects := range map[string][]any{
		"chart":     {bind("old", "old", ""), exception("e", "app: gone"), nmi(release), mic},
		"manifests": {bind("old", "old", ""), nmi(""), mic},
		"no NMI":    {bind("old", "old", ""), assigned("ns/old")},
	} {
		for _, s := range retired(t, retire.Options{}, objects...).Steps {
			if s.ByHand != "" {
				continue
			}
			for i, c := range strings.Split(commands(s), "\n") {
				if err := run(t, c, gone); err != nil {
					t.Errorf("%s: %s: %v:\n%s", name, s.Title, err, c)
				}
				if err := run(t, c, "exit 1"); err == nil {
					t.Errorf("%s: %s: command %d succeeds without an API server:\n%s", name, s.Title, i, c)
				}
			}
		}
	}
}
