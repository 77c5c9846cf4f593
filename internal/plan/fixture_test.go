package plan_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"imds-oidc-proxy/internal/plan"
	"imds-oidc-proxy/internal/survey"
)

const issuer = "https://oidc.example.test/shop/"

// client returns the client ID of a made-up identity.
func client(n int) string { return fmt.Sprintf("%08d-0000-4000-8000-%012[1]d", n) }

func resource(name string) string {
	return "/subscriptions/99999999-9999-4999-8999-999999999999/resourcegroups/Shop/providers/Microsoft.ManagedIdentity/userAssignedIdentities/" + name
}

// The objects of a cluster, as YAML in brackets. Every field is written as in a manifest.

func namespace(name string, labels ...string) string {
	return fmt.Sprintf("{apiVersion: v1, kind: Namespace, metadata: {name: %s, labels: {%s}}}", name, strings.Join(labels, ", "))
}

func account(name string, annotations ...string) string {
	return fmt.Sprintf("{apiVersion: v1, kind: ServiceAccount, metadata: {namespace: ns, name: %s, annotations: {%s}}}", name, strings.Join(annotations, ", "))
}

func annotated(name string, n int) string {
	return account(name, "azure.workload.identity/client-id: "+client(n))
}

// nmi is the daemon of aad-pod-identity.
func nmi(args ...string) string {
	return "{apiVersion: apps/v1, kind: DaemonSet, metadata: {namespace: aad, name: nmi}, spec: {template: {spec: {hostNetwork: true, containers: [{name: nmi, image: mcr.microsoft.com/oss/azure/aad-pod-identity/nmi:v1.8.17, args: [" + strings.Join(args, ", ") + "]}]}}}}"
}

// plugin is the DaemonSet of the CNI plugin.
func plugin(command string) string {
	return "{apiVersion: apps/v1, kind: DaemonSet, metadata: {namespace: proxy, name: cni}, spec: {template: {spec: {containers: [{name: imds-cni, args: [" + command + "]}]}}}}"
}

func identity(name string, n int, more ...string) string {
	return identityIn("ns", name, n, more...)
}

func identityIn(namespace, name string, n int, more ...string) string {
	return fmt.Sprintf("{apiVersion: aadpodidentity.k8s.io/v1, kind: AzureIdentity, metadata: {namespace: %s, name: %s}, spec: {%s}}",
		namespace, name, strings.Join(append([]string{"clientID: " + client(n), "resourceID: " + resource(name)}, more...), ", "))
}

func binding(identity, selector string) string { return bindingIn("ns", identity, selector) }

func bindingIn(namespace, identity, selector string) string {
	return fmt.Sprintf("{apiVersion: aadpodidentity.k8s.io/v1, kind: AzureIdentityBinding, metadata: {namespace: %s, name: %s-%s}, spec: {azureIdentity: %[2]s, selector: %q}}", namespace, identity, strings.ToLower(selector), selector)
}

// app is a workload.
type app struct {
	kind, name         string
	labels, annotation []string // of the pod template
	own                []string // labels of the object
	account            string
	pod                string // further fields of the pod
	container          string // further fields of the container
	image              string
}

func (a app) String() string {
	kind := or(a.kind, "Deployment")
	version, path := "apps/v1", "spec: {template: %s}"
	switch kind {
	case "CronJob":
		version, path = "batch/v1", "spec: {jobTemplate: {spec: {template: %s}}}"
	case "Job":
		version = "batch/v1"
	case "Pod":
		version = "v1"
	}
	spec := "containers: [{name: app, image: " + or(a.image, "registry.example.test/app:1") + comma(a.container) + "}]" + comma(a.pod)
	if a.account != "" {
		spec += ", serviceAccountName: " + a.account
	}
	metadata := fmt.Sprintf("labels: {%s}, annotations: {%s}", strings.Join(a.labels, ", "), strings.Join(a.annotation, ", "))
	if kind == "Pod" {
		return fmt.Sprintf("{apiVersion: v1, kind: Pod, metadata: {namespace: ns, name: %s, %s}, spec: {%s}}", or(a.name, "app"), metadata, spec)
	}
	return fmt.Sprintf("{apiVersion: %s, kind: %s, metadata: {namespace: ns, name: %s, labels: {%s}}, %s}", version, kind, or(a.name, "app"), strings.Join(a.own, ", "),
		fmt.Sprintf(path, "{metadata: {"+metadata+"}, spec: {"+spec+"}}"))
}

func comma(text string) string {
	if text == "" {
		return ""
	}
	return ", " + text
}

func or(text, otherwise string) string {
	if text == "" {
		return otherwise
	}
	return text
}

// labelled is a workload with a label of aad-pod-identity and an account of its own.
func labelled(a app) []string {
	a.labels, a.account = append(a.labels, "aadpodidbinding: app"), or(a.account, "sa")
	return []string{account("sa"), a.String(), identity("app-identity", 1), binding("app-identity", "app"), nmi()}
}

func docs(lists ...any) []string {
	var all []string
	for _, l := range lists {
		switch l := l.(type) {
		case []string:
			all = append(all, l...)
		default:
			all = append(all, fmt.Sprint(l))
		}
	}
	return all
}

// read returns the survey of objects.
func read(t *testing.T, objects []string) *survey.Survey {
	t.Helper()
	s := survey.New(survey.Config{Secrets: true})
	if err := s.ReadFile("x", strings.NewReader("---\n"+strings.Join(objects, "\n---\n")+"\n")); err != nil {
		t.Fatal(err)
	}
	s.Finish()
	return s
}

func planOf(t *testing.T, o plan.Options, objects ...string) *plan.Plan {
	t.Helper()
	o.Issuer = or(o.Issuer, issuer)
	return plan.New(read(t, objects), o)
}

func workload(t *testing.T, p *plan.Plan, key string) plan.Workload {
	t.Helper()
	for _, w := range p.Workloads {
		if w.Namespace+" "+w.Key() == key {
			return w
		}
	}
	t.Fatalf("no workload %s in %v", key, p.Workloads)
	return plan.Workload{}
}

// codes returns the codes of findings, without those that every workload has that is to be migrated.
func codes(findings []plan.Finding) string {
	var all []string
	for _, f := range findings {
		if !slices.Contains([]string{"IMDS103", "IMDS104", "IMDS105", "IMDS153"}, f.Code) && !slices.Contains(all, f.Code) {
			all = append(all, f.Code)
		}
	}
	return strings.Join(all, " ")
}

// picked returns the identity of a workload.
func picked(s plan.Selection) string {
	var names []string
	for _, r := range append(slices.Clone(s.Candidates), s.Others...) {
		names = append(names, r.String())
	}
	if s.Default != nil {
		names = append([]string{s.Default.String()}, names...)
	}
	return strings.TrimSpace(s.State + " " + strings.Join(names, ","))
}
