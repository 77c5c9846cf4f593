package retire_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"imds-oidc-proxy/internal/plan"
	"imds-oidc-proxy/internal/report"
	"imds-oidc-proxy/internal/retire"
	"imds-oidc-proxy/internal/survey"
)

// The objects of a cluster are YAML in brackets.

// namespaces is what every cluster has, and a namespace.
const namespaces = "{apiVersion: apps/v1, kind: DaemonSet, metadata: {namespace: kube-system, name: kube-proxy}, spec: {template: {spec: {containers: [{name: c, image: i}]}}}}\n---\n" +
	"{apiVersion: apps/v1, kind: Deployment, metadata: {namespace: kube-system, name: coredns}, spec: {template: {spec: {containers: [{name: c, image: i}]}}}}\n---\n" +
	"{apiVersion: v1, kind: Namespace, metadata: {name: ns}}\n---\n{apiVersion: v1, kind: ServiceAccount, metadata: {namespace: ns, name: app}}\n---\n{apiVersion: v1, kind: Pod, metadata: {namespace: ns, name: alone}, spec: {serviceAccountName: app, containers: [{name: c, image: c}]}}"

var now = time.Date(2026, 12, 1, 10, 0, 0, 0, time.UTC)

// app is a workload with a pod.
type app struct {
	version, kind, name string
	labels, annotations []string // of the pod template
	object              string   // further fields of the spec
	metadata            string   // further fields of the metadata
	containers          string   // of the pod template, after the first
	pod                 string   // further containers of the pod
	podSpec             string
}

func (a app) String() string {
	if a.kind == "" {
		a.version, a.kind = "apps/v1", "Deployment"
	}
	template := fmt.Sprintf("metadata: {labels: {%s}, annotations: {%s}}, spec: {serviceAccountName: app, containers: [{name: app, image: app}%s]%s}",
		strings.Join(a.labels, ", "), strings.Join(a.annotations, ", "), a.containers, a.podSpec)
	spec := "template: {" + template + "}" + a.object
	if a.kind == "CronJob" {
		spec = "jobTemplate: {spec: {template: {" + template + "}}}"
	}
	pod := fmt.Sprintf("{apiVersion: v1, kind: Pod, metadata: {namespace: ns, name: %s, labels: {%s}, annotations: {%s}, ownerReferences: [{controller: true, apiVersion: %s, kind: %s, name: %[1]s}]}, spec: {serviceAccountName: app, containers: [{name: app, image: app}%[6]s]}}",
		a.name, strings.Join(a.labels, ", "), strings.Join(a.annotations, ", "), a.version, a.kind, a.pod)
	return fmt.Sprintf("{apiVersion: %s, kind: %s, metadata: {namespace: ns, name: %s%s}, spec: {%s}}\n---\n%s", a.version, a.kind, a.name, a.metadata, spec, pod)
}

const (
	use     = "azure.workload.identity/use: 'true'"
	request = "azure.workload.identity/inject-proxy-sidecar: 'true'"
	bound   = "aadpodidbinding: "
)

// sidecar is a workload whose pods have the sidecar.
func sidecar(name string, labels ...string) app {
	return app{name: name, labels: append([]string{use}, labels...), annotations: []string{request, "imds-oidc-proxy/redirect: sealed", "example.test/keep: x"}, pod: ", {name: azwi-proxy, image: proxy}"}
}

// direct is a workload that uses workload identity.
func direct(name string, labels ...string) app {
	return app{name: name, labels: append([]string{use}, labels...), pod: ", {name: t, image: t, env: [{name: AZURE_FEDERATED_TOKEN_FILE, value: /t}]}"}
}

func nmi(metadata string, args ...string) string {
	return "{apiVersion: apps/v1, kind: DaemonSet, metadata: {namespace: aad, name: nmi" + metadata + "}, spec: {selector: {matchLabels: {app: nmi}}, template: {metadata: {labels: {app: nmi}}, spec: {hostNetwork: true, containers: [{name: nmi, image: mcr.microsoft.com/oss/azure/aad-pod-identity/nmi:v1.8.17, args: [" + strings.Join(args, ", ") + "]}]}}}}"
}

const (
	mic     = "{apiVersion: apps/v1, kind: Deployment, metadata: {namespace: aad, name: mic}, spec: {template: {metadata: {labels: {app: mic}}, spec: {containers: [{name: mic, image: mcr.microsoft.com/oss/azure/aad-pod-identity/mic:v1.8.17}]}}}}"
	release = ", annotations: {meta.helm.sh/release-name: pod-identity, meta.helm.sh/release-namespace: aad}"
	addOn   = ", labels: {kubernetes.azure.com/managedby: aks}"
)

// bind is an AzureIdentity with a binding.
func bind(name, selector, metadata string) string {
	return fmt.Sprintf("{apiVersion: aadpodidentity.k8s.io/v1, kind: AzureIdentity, metadata: {namespace: ns, name: %s%s}, spec: {clientID: 00000001-0000-4000-8000-000000000001, resourceID: /subscriptions/99999999-9999-4999-8999-999999999999/resourcegroups/Shop/providers/Microsoft.ManagedIdentity/userAssignedIdentities/%[1]s}}\n---\n", name, metadata) +
		fmt.Sprintf("{apiVersion: aadpodidentity.k8s.io/v1, kind: AzureIdentityBinding, metadata: {namespace: ns, name: %s-binding%s}, spec: {azureIdentity: %[1]s, selector: %[3]q}}", name, metadata, selector)
}

func exception(name, label string) string {
	return fmt.Sprintf("{apiVersion: aadpodidentity.k8s.io/v1, kind: AzurePodIdentityException, metadata: {namespace: ns, name: %s}, spec: {podLabels: {%s}}}", name, label)
}

// verdicts is a report with a verdict for each Deployment.
func verdicts(of map[string]report.Verdict) *report.Report {
	r := &report.Report{Time: now.Add(-time.Hour), Workloads: []report.Workload{}}
	for name, v := range of {
		r.Workloads = append(r.Workloads, report.Workload{Namespace: "ns", Group: "apps", Kind: "Deployment", Name: name, Verdict: v, Text: "because"})
	}
	return r
}

func canGo(names ...string) *report.Report {
	of := map[string]report.Verdict{}
	for _, name := range names {
		of[name] = report.CanGo
	}
	return verdicts(of)
}

func read(t *testing.T, objects ...any) *survey.Survey {
	t.Helper()
	text := namespaces
	for _, o := range objects {
		text += "\n---\n" + fmt.Sprint(o)
	}
	s := survey.New(survey.Config{})
	if err := s.ReadFile("x", strings.NewReader("---\n"+text+"\n")); err != nil {
		t.Fatal(err)
	}
	s.Finish()
	return s
}

func retired(t *testing.T, options retire.Options, objects ...any) *retire.Retirement {
	t.Helper()
	options.Now = now
	s := read(t, objects...)
	r, err := retire.New(s, plan.New(s, plan.Options{}), options)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// outline returns the titles of the steps, and what stays.
func outline(r *retire.Retirement) string {
	var lines []string
	for _, s := range r.Steps {
		line := s.Title
		if s.ByHand != "" {
			line += " (by hand)"
		}
		if s.Azure {
			line += " (Azure)"
		}
		lines = append(lines, line)
	}
	for _, s := range r.Stays {
		lines = append(lines, "stays: "+strings.TrimSpace(s.Namespace+" "+s.Name)+": "+s.Reason)
	}
	return strings.Join(lines, "\n")
}
