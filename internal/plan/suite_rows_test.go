package plan_test

import (
	"slices"
	"strings"
	"testing"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/plan"
)

// row is a case: what the plan says about workload deploy/app of namespace ns.
type row struct {
	name     string
	objects  []string
	options  plan.Options
	key      string // another workload
	today    plan.Today
	identity string
	step     string
	redirect string
	codes    string
}

func (r row) check(t *testing.T) {
	t.Helper()
	w := workload(t, planOf(t, r.options, r.objects...), or(r.key, "ns deploy/app"))
	got := []string{string(w.Today), picked(w.Identity), w.Next.Step, w.Next.Redirect, codes(w.Findings)}
	want := []string{string(r.today), r.identity, r.step, r.redirect, r.codes}
	if strings.Join(got, "|") != strings.Join(want, "|") {
		t.Errorf("%s:\ngot  %q\nwant %q\n%+v", r.name, got, want, w.Findings)
	}
}

const (
	pod, node, wi, sidecar = plan.ByPodIdentity, plan.ByNodeIdentity, plan.ByWorkloadIdentity, plan.BySidecar
	one                    = "known app-identity"
)

func exception(labels string) string {
	return "{apiVersion: aadpodidentity.k8s.io/v1, kind: AzurePodIdentityException, metadata: {namespace: ns, name: x}, spec: {podLabels: {" + labels + "}}}"
}

// TestPodIdentity has the settings of aad-pod-identity.
func TestPodIdentity(t *testing.T) {
	two := docs(labelled(app{}), identity("web-identity", 2), binding("web-identity", "app"))
	managed := docs(account("sa"), identity("app-identity", 1), binding("app-identity", "app"), nmi("--operation-mode=managed"))
	for _, r := range []row{
		{name: "not installed", objects: docs(account("sa"), app{account: "sa"}), today: plan.Unknown, identity: "none", step: "nothing"},
		{name: "user-assigned", objects: labelled(app{}), today: pod, identity: one, step: "sidecar", redirect: "forward"},
		{name: "an application with a secret", objects: docs(account("sa"), app{account: "sa", labels: []string{"aadpodidbinding: app"}}, identity("app-identity", 1, "type: 1", "tenantID: "+client(9)), binding("app-identity", "app"), nmi()),
			today: pod, identity: one, step: "sidecar", redirect: "forward", codes: "IMDS111"},
		{name: "an application with a certificate", objects: docs(account("sa"), app{account: "sa", labels: []string{"aadpodidbinding: app"}}, identity("app-identity", 1, "type: 2"), binding("app-identity", "app"), nmi()),
			today: pod, identity: one, step: "sidecar", redirect: "forward", codes: "IMDS111"},
		{name: "several tenants", objects: docs(account("sa"), app{account: "sa", labels: []string{"aadpodidbinding: app"}}, identity("app-identity", 1, "type: 1", "auxiliaryTenantIDs: ["+client(8)+"]"), binding("app-identity", "app"), nmi()),
			today: pod, identity: one, step: "blocked", codes: "IMDS111 IMDS112"},
		{name: "an unknown type", objects: docs(account("sa"), app{account: "sa", labels: []string{"aadpodidbinding: app"}}, identity("app-identity", 1, "type: 3"), binding("app-identity", "app"), nmi()),
			today: pod, identity: one, step: "blocked", codes: "IMDS119"},
		{name: "a binding without its identity", objects: docs(account("sa"), app{account: "sa", labels: []string{"aadpodidbinding: app"}}, binding("gone", "app"), nmi()),
			today: plan.ByNothing, identity: "none", step: "nothing", codes: "IMDS113"},
		{name: "the identity is in another namespace", objects: docs(account("sa"), app{account: "sa", labels: []string{"aadpodidbinding: app"}}, identityIn("other", "app-identity", 1), binding("app-identity", "app"), nmi()),
			today: plan.ByNothing, identity: "none", step: "nothing", codes: "IMDS113"},
		{name: "case matters", objects: docs(labelled(app{}), app{name: "b", account: "sa", labels: []string{"aadpodidbinding: App"}}), key: "ns deploy/b", today: plan.ByNothing, identity: "none", step: "nothing", codes: "IMDS114"},
		{name: "bindings of all namespaces match", objects: docs(account("sa"), app{account: "sa", labels: []string{"aadpodidbinding: app"}}, identityIn("other", "app-identity", 1), bindingIn("other", "app-identity", "app"), nmi()),
			today: pod, identity: one, step: "sidecar", redirect: "forward"},
		{name: "an empty label matches nothing", objects: docs(account("sa"), app{account: "sa", labels: []string{`aadpodidbinding: ""`}}, identity("app-identity", 1), binding("app-identity", ""), nmi()),
			today: plan.ByNothing, identity: "none", step: "nothing", codes: "IMDS114"},
		{name: "an empty selector in managed mode matches pods without the label", objects: docs(account("sa"), app{account: "sa"}, identity("app-identity", 1), binding("app-identity", ""), nmi("--operation-mode=managed")),
			today: pod, identity: one, step: "sidecar", redirect: "forward"},
		{name: "managed mode matches in one namespace", objects: docs(account("sa"), app{account: "sa", labels: []string{"aadpodidbinding: app"}}, identityIn("other", "app-identity", 1), bindingIn("other", "app-identity", "app"), nmi("--operation-mode=managed")),
			today: plan.ByNothing, identity: "none", step: "nothing", codes: "IMDS114"},
		{name: "managed mode", objects: docs(managed, app{account: "sa", labels: []string{"aadpodidbinding: app"}}), today: pod, identity: one, step: "sidecar", redirect: "forward"},
		{name: "forceNamespaced", objects: docs(account("sa"), app{account: "sa", labels: []string{"aadpodidbinding: app"}}, identityIn("other", "app-identity", 1), bindingIn("other", "app-identity", "app"), nmi("--forceNamespaced=true")),
			today: plan.ByNothing, identity: "none", step: "nothing", codes: "IMDS114"},
		{name: "FORCENAMESPACED", objects: docs(account("sa"), app{account: "sa", labels: []string{"aadpodidbinding: app"}}, identityIn("other", "app-identity", 1), bindingIn("other", "app-identity", "app"),
			strings.Replace(nmi(), "args: []", "env: [{name: FORCENAMESPACED, value: 'true'}]", 1)), today: plan.ByNothing, identity: "none", step: "nothing", codes: "IMDS114"},
		{name: "Behavior", objects: docs(account("sa"), app{account: "sa", labels: []string{"aadpodidbinding: app"}}, bindingIn("other", "app-identity", "app"), nmi(),
			strings.Replace(identityIn("other", "app-identity", 1), "name: app-identity}", "name: app-identity, annotations: {aadpodidentity.k8s.io/Behavior: namespaced}}", 1)),
			today: plan.ByNothing, identity: "none", step: "nothing", codes: "IMDS114"},
		{name: "two identities", objects: two, today: pod, identity: "ambiguous app-identity,web-identity", step: "choose", codes: "IMDS107"},
		{name: "a variable names one", objects: docs(two, app{account: "sa", labels: []string{"aadpodidbinding: app"}, container: "env: [{name: AZURE_CLIENT_ID, value: " + client(2) + "}]"}),
			today: pod, identity: "known web-identity", step: "sidecar", redirect: "forward"},
		{name: "the account names one", objects: docs(two, annotated("sa", 2)), today: pod, identity: "known web-identity", step: "sidecar", redirect: "forward"},
		{name: "a variable names another", objects: docs(two, app{account: "sa", labels: []string{"aadpodidbinding: app"}, container: "env: [{name: AZURE_CLIENT_ID, value: " + client(3) + "}]"}),
			today: pod, identity: "ambiguous " + client(3) + ",app-identity,web-identity", step: "choose", codes: "IMDS107"},
		{name: "a person chooses", objects: two, options: plan.Options{Choices: map[string][]azure.ClientID{"ns/sa": {azure.ClientID(client(2)), azure.ClientID(client(1))}}},
			today: pod, identity: "known web-identity,app-identity", step: "sidecar", redirect: "forward"},
		{name: "a person chooses for a workload", objects: two, options: plan.Options{Choices: map[string][]azure.ClientID{"ns/deploy/app": {azure.ClientID(client(1))}}},
			today: pod, identity: one, step: "sidecar", redirect: "forward"},
		{name: "one name in two namespaces", objects: docs(labelled(app{}), identityIn("a", "app-identity", 5), bindingIn("a", "app-identity", "app")),
			today: pod, identity: "known app-identity", step: "sidecar", redirect: "forward", codes: "IMDS117"},
		{name: "an exception", objects: docs(labelled(app{labels: []string{"tier: Ops", "team: a"}}), exception("tier: ops, team: b")),
			today: node, identity: "unknown", step: "choose", codes: "IMDS108 IMDS114 IMDS116"},
		{name: "no pair is equal", objects: docs(labelled(app{labels: []string{"tier: ops"}}), exception("tier: dev")), today: pod, identity: one, step: "sidecar", redirect: "forward"},
		{name: "host network", objects: labelled(app{pod: "hostNetwork: true"}), today: node, identity: "unknown", step: "blocked", codes: "IMDS108 IMDS114 IMDS120"},
		{name: "no label", objects: docs(labelled(app{}), app{name: "b", account: "sa"}), key: "ns deploy/b", today: plan.ByNothing, identity: "none", step: "nothing"},
		{name: "no label, and configured", objects: docs(labelled(app{}), app{name: "b", account: "sa", container: "env: [{name: ARM_USE_MSI, value: 'true'}]"}), key: "ns deploy/b",
			today: plan.ByNothing, identity: "none", step: "nothing", codes: "IMDS154"},
		{name: "instance metadata is blocked", objects: docs(labelled(app{}), nmi("--block-instance-metadata=true")), today: pod, identity: one, step: "sidecar", redirect: "sealed"},
		{name: "and the program reads it", objects: docs(labelled(app{container: "command: [curl, 'http://169.254.169.254/metadata/instance']"}), nmi("--block-instance-metadata=true")),
			today: pod, identity: one, step: "sidecar", redirect: "forward", codes: "IMDS148"},
		{name: "NMI does not run", objects: docs(account("sa"), app{account: "sa", labels: []string{"aadpodidbinding: app"}}, identity("app-identity", 1), binding("app-identity", "app"), app{kind: "DaemonSet", name: "other", account: "sa"}),
			today: node, identity: "unknown", step: "choose", codes: "IMDS108 IMDS114"},
	} {
		r.check(t)
	}
}

// TestAssigned has a running pod with an AzureAssignedIdentity, and one whose pod is gone.
func TestAssigned(t *testing.T) {
	assigned := func(pod string) string {
		return "{apiVersion: aadpodidentity.k8s.io/v1, kind: AzureAssignedIdentity, metadata: {namespace: default, name: " + pod + "}, spec: {pod: " + pod + ", podNamespace: ns, azureIdentityRef: {metadata: {name: app-identity}}}, status: {status: Assigned}}"
	}
	p := planOf(t, plan.Options{}, docs(labelled(app{kind: "Pod"}), assigned("app"), assigned("gone"))...)
	w := workload(t, p, "ns pod/app")
	if w.Certainty != "certain" || !strings.Contains(strings.Join(w.Evidence, "|"), "AzureAssignedIdentity of app-identity") {
		t.Errorf("certainty %s, evidence %q", w.Certainty, w.Evidence)
	}
	if codes(p.Findings) != "IMDS146 IMDS151" || p.Cluster.PodIdentity.Assigned != 2 {
		t.Errorf("findings %v, %+v", p.Findings, p.Cluster.PodIdentity)
	}
}

// TestAddOn checks the add-on of AKS.
func TestAddOn(t *testing.T) {
	addOn := strings.Replace(nmi("--operation-mode=managed"), "name: nmi}", "name: nmi, labels: {addonmanager.kubernetes.io/mode: Reconcile}}", 1)
	p := planOf(t, plan.Options{}, docs(identity("app-identity", 1), addOn)...)
	if got := p.Cluster.PodIdentity; got == nil || !got.AddOn || got.Mode != "managed" || !got.Namespaced || !got.Running {
		t.Errorf("got %+v", got)
	}
}

// TestMigrated has workloads that have workload identity.
func TestMigrated(t *testing.T) {
	const use, inject = `azure.workload.identity/use: "true"`, `azure.workload.identity/inject-proxy-sidecar: "true"`
	const file = "env: [{name: AZURE_FEDERATED_TOKEN_FILE, value: /var/run/secrets/azure/wi/token/azure-identity-token}"
	proxyOf := func(image string) string { return "initContainers: [{name: azwi-proxy, image: " + image + "}]" }
	for _, r := range []row{
		{name: "the label", objects: docs(annotated("sa", 1), app{account: "sa", labels: []string{use}}), today: wi, identity: "known " + client(1), step: "nothing"},
		{name: "the variables", objects: docs(account("sa"), app{account: "sa", labels: []string{use}, container: file + ", {name: AZURE_CLIENT_ID, value: " + client(1) + "}]"}), today: wi, identity: "unknown", step: "nothing"},
		{name: "the sidecar", objects: docs(annotated("sa", 1), app{account: "sa", labels: []string{use}, annotation: []string{inject}, pod: proxyOf("registry.example.test/imds-oidc-proxy:v0.1.0")}), today: sidecar, identity: "known " + client(1), step: "remove"},
		{name: "the sidecar is requested", objects: docs(annotated("sa", 1), app{account: "sa", labels: []string{use}, annotation: []string{inject}}), today: sidecar, identity: "known " + client(1), step: "remove"},
		{name: "the sidecar without a redirect", objects: docs(annotated("sa", 1), app{account: "sa", labels: []string{use}, container: "env: [{name: AZURE_POD_IDENTITY_AUTHORITY_HOST, value: 'http://127.0.0.1:8000'}]"}), today: sidecar, identity: "known " + client(1), step: "remove"},
		{name: "the sidecar of azure-workload-identity", objects: docs(annotated("sa", 1), app{account: "sa", labels: []string{use}, pod: proxyOf("mcr.microsoft.com/oss/v2/azure/workload-identity/proxy:v1.6.0")}), today: sidecar, identity: "known " + client(1), step: "remove", codes: "IMDS149"},
		{name: "a label of aad-pod-identity is left", objects: docs(labelled(app{labels: []string{use}}), annotated("sa", 1)), today: wi, identity: one, step: "nothing", codes: "IMDS115"},
		{name: "the label is on the account only", objects: docs(labelled(app{}), strings.Replace(account("sa"), "name: sa", "name: sa, labels: {"+use+"}", 1)), today: pod, identity: one, step: "sidecar", redirect: "forward", codes: "IMDS118"},
		{name: "a tool that asks IMDS all the same", objects: docs(annotated("sa", 1), app{account: "sa", labels: []string{use}, container: file + ", {name: AZCOPY_AUTO_LOGIN_TYPE, value: MSI}]"}), today: wi, identity: "known " + client(1), step: "change", codes: "IMDS150"},
		{name: "a tool that prefers the variables", objects: docs(annotated("sa", 1), app{account: "sa", labels: []string{use}, container: file + "]", annotation: []string{"x: 'useSDKCreds: true'"}}), today: wi, identity: "known " + client(1), step: "nothing"},
		{name: "requested, and not injected", objects: docs(labelled(app{kind: "Pod", labels: []string{use}, annotation: []string{inject}})), key: "ns pod/app", today: pod, identity: one, step: "sidecar", redirect: "forward", codes: "IMDS125"},
	} {
		r.check(t)
	}
}

// TestSigns has workloads of a cluster without aad-pod-identity.
func TestSigns(t *testing.T) {
	env := func(variables string) app { return app{account: "sa", container: "env: [" + variables + "]"} }
	configMap := "{apiVersion: v1, kind: ConfigMap, metadata: {namespace: ns, name: c}, data: {AZURE_CLIENT_ID: " + client(4) + ", ARM_USE_MSI: 'true', app.properties: 'managed-identity-enabled: true'}}"
	secret := "{apiVersion: v1, kind: Secret, metadata: {namespace: ns, name: s}, stringData: {azure.json: '{\"useManagedIdentityExtension\": true, \"userAssignedIdentityID\": \"" + client(5) + "\"}', password: geheim}}"
	for _, r := range []row{
		{name: "a client ID", objects: docs(account("sa"), env("{name: AZURE_CLIENT_ID, value: "+client(4)+"}")), today: node, identity: "known " + client(4), step: "sidecar", redirect: "forward"},
		{name: "a client ID: with a secret", objects: docs(account("sa"), env("{name: AZURE_CLIENT_ID, value: "+client(4)+"}, {name: AZURE_CLIENT_SECRET, valueFrom: {secretKeyRef: {name: s, key: k}}}")), today: plan.Unknown, identity: "none", step: "nothing"},
		{name: "a client ID: from a ConfigMap", objects: docs(account("sa"), configMap, env("{name: AZURE_CLIENT_ID, valueFrom: {configMapKeyRef: {name: c, key: AZURE_CLIENT_ID}}}")), today: node, identity: "known " + client(4), step: "sidecar", redirect: "forward"},
		{name: "a client ID: from a Secret", objects: docs(account("sa"), secretOf("s", "AZURE_CLIENT_ID: "+client(4)), env("{name: AZURE_CLIENT_ID, valueFrom: {secretKeyRef: {name: s, key: AZURE_CLIENT_ID}}}")), today: node, identity: "known " + client(4), step: "sidecar", redirect: "forward"},
		{name: "envFrom", objects: docs(account("sa"), configMap, app{account: "sa", container: "envFrom: [{configMapRef: {name: c}}]"}), today: node, identity: "known " + client(4), step: "change", codes: "IMDS224"},
		{name: "a variable", objects: docs(account("sa"), env("{name: USE_MSI, value: 'true'}")), today: node, identity: "unknown", step: "choose", codes: "IMDS108"},
		{name: "a mounted file", objects: docs(account("sa"), configMap, app{account: "sa", pod: "volumes: [{name: c, configMap: {name: c, items: [{key: app.properties, path: p}]}}]"}), today: node, identity: "unknown", step: "choose", codes: "IMDS108"},
		{name: "a projected file", objects: docs(account("sa"), configMap, app{account: "sa", pod: "volumes: [{name: c, projected: {sources: [{configMap: {name: c}}, {secret: {name: s}}]}}]"}), today: node, identity: "unknown", step: "choose", codes: "IMDS108"},
		{name: "another key of the ConfigMap is mounted", objects: docs(account("sa"), configMap, app{account: "sa", pod: "volumes: [{name: c, configMap: {name: c, items: [{key: ARM_USE_MSI, path: p}]}}]"}), today: plan.Unknown, identity: "none", step: "nothing"},
		{name: "ExternalDNS: a mounted Secret", objects: docs(account("sa"), secret, app{account: "sa", pod: "volumes: [{name: s, secret: {secretName: s}}]"}), today: node, identity: "known " + client(5), step: "change", codes: "IMDS207"},
		{name: "a command line", objects: docs(account("sa"), app{account: "sa", container: "args: [sh, -c, 'curl -H Metadata:true http://169.254.169.254/metadata/identity/oauth2/token?client_id=" + client(6) + "']"}), today: node, identity: "known " + client(6), step: "sidecar", redirect: "forward"},
		{name: "azcopy: by resource ID", objects: docs(account("sa"), env("{name: AZCOPY_AUTO_LOGIN_TYPE, value: MSI}, {name: AZCOPY_MSI_RESOURCE_STRING, value: "+resource("copy")+"}")),
			today: node, identity: "unknown", step: "choose", codes: "IMDS108 IMDS143 IMDS225"},
		{name: "azcopy: by object ID, which a person maps", objects: docs(account("sa"), env("{name: AZCOPY_AUTO_LOGIN_TYPE, value: MSI}, {name: AZCOPY_MSI_OBJECT_ID, value: "+client(77)+"}")),
			options: plan.Options{Identities: []plan.Known{known(client(77) + "=" + client(7))}}, today: node, identity: "known " + client(7), step: "change", codes: "IMDS143 IMDS225"},
		{name: "a setting of Functions", objects: docs(account("sa"), env("{name: Queue__credential, value: managedidentity}")), today: node, identity: "unknown", step: "choose", codes: "IMDS108"},
		{name: "a hint is no verdict", objects: docs(account("sa"), env("{name: VAULT, value: 'https://shop.vault.azure.net'}")), today: plan.Unknown, identity: "none", step: "nothing"},
		{name: "nothing", objects: docs(account("sa"), app{account: "sa"}), today: plan.Unknown, identity: "none", step: "nothing"},
		{name: "the account names the identity", objects: docs(annotated("sa", 8), env("{name: USE_MSI, value: 'true'}")), today: node, identity: "known " + client(8), step: "sidecar", redirect: "forward"},
		{name: "the account names another identity", objects: docs(annotated("sa", 8), env("{name: AZURE_CLIENT_ID, value: "+client(4)+"}")), today: node, identity: "known " + client(4), step: "choose", codes: "IMDS141"},
	} {
		r.check(t)
	}
	ignored := workload(t, planOf(t, plan.Options{Identities: []plan.Known{known(client(77) + "=" + client(1))}}, labelled(app{container: "env: [{name: AZCOPY_AUTO_LOGIN_TYPE, value: MSI}, {name: AZCOPY_MSI_OBJECT_ID, value: " + client(77) + "}]"})...), "ns deploy/app")
	if i := slices.IndexFunc(ignored.Findings, func(f plan.Finding) bool { return f.Code == "IMDS143" }); i < 0 || !strings.Contains(ignored.Findings[i].Text, "which aad-pod-identity ignores") {
		t.Errorf("an object ID, which aad-pod-identity ignores: %+v", ignored.Findings)
	}
	p := planOf(t, plan.Options{}, docs(account("sa"), env("{name: VAULT, value: 'https://shop.vault.azure.net'}"))...)
	if w := workload(t, p, "ns deploy/app"); len(w.Hints) != 1 || w.Hints[0] != "VAULT" {
		t.Errorf("hints: %q", w.Hints)
	}
}

// known parses an identity that a person maps.
func known(text string) plan.Known {
	k, _ := plan.ParseKnown(text) // a row that uses it fails if it is not valid
	return k
}
