package plan

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"imds-oidc-proxy/internal/survey"
)

// The names of the webhooks that add tokens to pods.
const (
	ownWebhook  = "pods.imds-oidc-proxy.webhook"
	azwiWebhook = "mutation.azure-workload-identity.io"
)

// maxIssuer is the length of the longest issuer and the longest subject of a federated credential. A subject
// has at most 339 characters.
const maxIssuer = 600

func (b *builder) find(code, text, fix string) {
	b.plan.Findings = append(b.plan.Findings, finding(code, text, fix))
}

// clusterFindings adds findings about the cluster as a whole.
func (b *builder) clusterFindings() {
	b.plan.Cluster.PodIdentity = b.pods.PodIdentity
	b.findWebhooks()
	if issuer := b.plan.Cluster.Issuer; strings.HasPrefix(issuer, "https://kubernetes.default.svc") || issuer != "" && !strings.HasPrefix(issuer, "https://") {
		b.find("IMDS145", "the issuer "+issuer+" is not public: Entra cannot read its keys", "turn on the OIDC issuer: az aks update --enable-oidc-issuer")
	} else if len(issuer) > maxIssuer {
		b.find("IMDS145", fmt.Sprintf("the issuer has %d characters: a federated credential takes at most %d", len(issuer), maxIssuer), "choose a shorter --service-account-issuer of the API server")
	}
	if slices.ContainsFunc(b.policies.constraints, func(c constraint) bool { return strings.HasPrefix(c.Name, "azurepolicy-") }) {
		b.find("IMDS139", "Azure Policy is active: deployment safeguards raise requests and limits below 100m CPU and 100Mi for each container of the sidecar, and AKS Automatic enforces baseline whatever the labels of a namespace say",
			"ask: az aks show --query '{sku: sku.name, safeguards: safeguardsProfile}'")
	}
	b.policies.reporting()
	b.leftAssigned()
	b.systemTools()
}

// findWebhooks finds the webhooks that add tokens.
func (b *builder) findWebhooks() {
	for _, o := range b.All("admissionregistration.k8s.io", "MutatingWebhookConfiguration") {
		list, _ := at(o.Body, "webhooks").([]any)
		for _, webhook := range list {
			switch name := text(webhook, "name"); {
			case name == ownWebhook:
				b.plan.Cluster.Webhooks = append(b.plan.Cluster.Webhooks, "imds-oidc-proxy")
			case name == azwiWebhook:
				b.plan.Cluster.Webhooks = append(b.plan.Cluster.Webhooks, "azure-workload-identity")
			}
		}
	}
	slices.Sort(b.plan.Cluster.Webhooks)
	b.plan.Cluster.Webhooks = slices.Compact(b.plan.Cluster.Webhooks)
	if len(b.plan.Cluster.Webhooks) == 0 {
		b.find("IMDS146", "no webhook adds tokens to labelled pods", "install the webhook (docs/webhook.md) or turn on az aks update --enable-workload-identity, or use imds-migrate inject")
	}
}

// isCNIPlugin reports whether a workload installs this project's CNI plugin on the nodes.
func isCNIPlugin(w *survey.Workload) bool {
	return w.Kind == "DaemonSet" && slices.ContainsFunc(w.Template.Spec.Containers, func(c corev1.Container) bool {
		return c.Name == "imds-cni" && slices.Contains(c.Args, "install")
	})
}

// leftAssigned notes AzureAssignedIdentities whose pods are gone: MIC removes them, and they stay for ever
// once it is gone.
func (b *builder) leftAssigned() {
	left := 0
	for _, a := range b.pods.assigned {
		if _, exists := b.Owners[a.namespace+"/"+a.pod]; !exists && b.Found["pods"] > 0 && (b.options.Namespace == "" || a.namespace == b.options.Namespace) {
			left++
		}
	}
	if left > 0 {
		b.find("IMDS151", fmt.Sprintf("AzureAssignedIdentities of pods that do not exist: %d", left), "MIC removes them; once it is gone, remove their finalizers by hand")
	}
}

// systemTools notes tools in the system's namespaces that are installed by hand. Nothing
// is proposed there: webhooks do not see these namespaces.
func (b *builder) systemTools() {
	for _, w := range b.AllWorkloads() {
		if !b.owned[w.Namespace] || isManaged(w.Meta) {
			continue
		}
		e := b.evidenceOf(w)
		for _, code := range slices.Concat(e.sources(), e.tools) {
			if code != "IMDS213" && code != "IMDS215" {
				continue
			}
			f := finding(code, w.Namespace+" "+short(w.Kind, w.Name)+": "+tools[code].name+" in a namespace that webhooks do not see", tools[code].change)
			f.Severity = Note
			b.plan.Findings = append(b.plan.Findings, f)
			break
		}
	}
}

// unreadCodes has the code of each reason for which the survey lacks something.
var unreadCodes = map[string]string{survey.Forbidden: "IMDS301", survey.Version: "IMDS302", survey.Malformed: "IMDS303", survey.Missing: "IMDS304"}

// notLookedAt lists what the plan does not know.
func (b *builder) notLookedAt() {
	add := func(code, text, fix string) {
		b.plan.NotLookedAt = append(b.plan.NotLookedAt, finding(code, text, fix))
	}
	for _, u := range b.Unread {
		add(unreadCodes[u.Code], u.What, u.Why)
		b.plan.Summary.Incomplete = true
	}
	if !b.options.Secrets {
		add("IMDS306", "Secrets", "--read-secrets reads them, and prints no value")
	}
	if !b.options.Azure {
		add("IMDS305", "federated credentials in Azure: their numbers are those of this plan alone", "--azure asks az, which only reads")
	}
	for _, what := range sorted(b.options.Uncounted) {
		add("IMDS305", what, b.options.Uncounted[what])
		b.plan.Summary.Incomplete = true
	}
	if b.plan.Cluster.Issuer == "" {
		add("IMDS307", "the issuer of service account tokens", cmp.Or(b.NoIssuer, "set --issuer"))
	}
	if b.plan.Cluster.ServerVersion == "" {
		add("IMDS308", "the version of Kubernetes", cmp.Or(b.NoVersion, "set --kubernetes-version"))
	}
	add("IMDS309", "the IMDS restriction of node pools, and whether AKS Automatic enforces a Pod Security level", "az aks show --query '{sku: sku.name, restriction: networkProfile.podLinkLocalAccess}'")
	slices.SortStableFunc(b.plan.NotLookedAt, func(x, y Finding) int {
		return strings.Compare(x.Code+x.Text, y.Code+y.Text)
	})
}

// summarize counts.
func (b *builder) summarize() {
	p := b.plan
	s := &p.Summary
	s.Workloads, s.ByToday, s.ChangedObjects = len(p.Workloads), map[Today]int{}, map[string]int{}
	for i := range p.Workloads {
		w := &p.Workloads[i]
		s.ByToday[w.Today]++
		s.count(w.Severity)
		for _, f := range w.Findings {
			if f.Code == "IMDS104" {
				s.Labels++
			}
		}
	}
	for _, o := range p.Objects {
		s.count(o.Severity)
		s.ChangedObjects[o.Kind]++
	}
	for _, f := range p.Findings {
		if f.Severity == Blocked {
			s.Blocked++
		}
	}
	for _, a := range p.Accounts {
		s.Annotations++
		if a.New {
			s.NewAccounts++
		}
	}
	s.NewCredentials = len(p.Credentials)
	s.CredentialsCounted = b.options.Azure
	p.None = nonNil(p.None)
	slices.SortStableFunc(p.Findings, func(x, y Finding) int { return strings.Compare(x.Code+x.Text, y.Code+y.Text) })
}

func (s *Summary) count(severity Severity) {
	switch severity {
	case Blocked:
		s.Blocked++
	case Choice:
		s.Choices++
	case Work:
		s.Work++
	}
}

func nonNil(list []string) []string {
	if list == nil {
		return []string{}
	}
	return list
}
