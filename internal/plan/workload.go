package plan

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/inject"
	"imds-oidc-proxy/internal/signs"
	"imds-oidc-proxy/internal/survey"
)

const (
	annotationClientID = inject.ClientIDAnnotation
	annotationTenantID = inject.TenantIDAnnotation
)

// Today is how a workload gets tokens.
type Today string

// The values of [Today].
const (
	ByPodIdentity      Today = "pod identity"
	ByNodeIdentity     Today = "node identity"
	ByWorkloadIdentity Today = "workload identity"
	BySidecar          Today = "sidecar"
	ByNothing          Today = "none"
	Unknown            Today = "unknown"
)

// Workload is one workload of the plan.
type Workload struct {
	Namespace string `json:"namespace"`
	Kind      string `json:"kind"`
	Name      string `json:"name"`
	Group     string `json:"group,omitempty"`
	// Pods is the number of pods that run now.
	Pods      int      `json:"pods"`
	Today     Today    `json:"today"`
	Certainty string   `json:"certainty"`
	Evidence  []string `json:"evidence"`
	// Hints are signs that are not enough for a verdict.
	Hints          []string  `json:"hints,omitempty"`
	Identity       Selection `json:"identity"`
	ServiceAccount string    `json:"serviceAccount"`
	// NewServiceAccount is set if the plan has another service account for it.
	NewServiceAccount string    `json:"newServiceAccount,omitempty"`
	Next              Next      `json:"next"`
	Severity          Severity  `json:"severity"`
	Findings          []Finding `json:"findings"`
	// TemplateField is where the labels and annotations of the pods are.
	TemplateField string `json:"templateField"`

	source   *survey.Workload
	evidence evidence
	match    podMatch
	sidecar  *corev1.ResourceRequirements // nil: it has it already, or cannot have it
	// references are the objects of other tools that the pods use. csiOnly means that only the Secrets
	// Store CSI driver uses the identity: it needs neither label nor annotation.
	references []reference
	csiOnly    bool
	// objectsOnly means that the accounts that the objects name are used in place of the pods' own.
	objectsOnly bool
}

// Key returns KIND/NAME for a person.
func (w *Workload) Key() string { return short(w.Kind, w.Name) }

// account returns the name of the service account that the plan uses.
func (w *Workload) account() string { return cmp.Or(w.NewServiceAccount, w.ServiceAccount) }

// validNames reports whether commands and credentials can have the names of its namespace and account.
func (w *Workload) validNames() bool { return validNames(w.Namespace, w.account()) }

// needs reports whether the workload has to be migrated.
func (w *Workload) needs() bool { return w.Today == ByPodIdentity || w.Today == ByNodeIdentity }

// migrated reports whether the workload uses federated credentials already.
func (w *Workload) migrated() bool { return w.Today == ByWorkloadIdentity || w.Today == BySidecar }

func (w *Workload) find(code, text, fix string) {
	w.Findings = append(w.Findings, finding(code, text, fix))
}

// workloads adds all workloads that are not the system's.
func (b *builder) workloads() {
	for _, source := range b.AllWorkloads() {
		switch {
		case b.options.Namespace != "" && source.Namespace != b.options.Namespace:
		case b.options.Namespace == "" && b.owned[source.Namespace]:
			b.plan.Cluster.Managed++
		case isManaged(source.Meta) || isNMI(source) || isPart(source, "mic"):
			b.plan.Cluster.Managed++
		case b.options.Selector != nil && !b.options.Selector.Matches(labels.Set(source.Labels)):
		default:
			b.plan.Workloads = append(b.plan.Workloads, b.workload(source))
		}
	}
	b.shareAccounts()
	for i := range b.plan.Workloads {
		b.finish(&b.plan.Workloads[i])
	}
}

// workload judges one workload.
func (b *builder) workload(source *survey.Workload) Workload {
	w := Workload{
		Namespace: oneLine(source.Namespace), Kind: source.Kind, Name: source.Name, Group: source.Group, Pods: source.Pods,
		Evidence: []string{}, Findings: []Finding{}, source: source, evidence: b.evidenceOf(source), match: b.pods.match(source),
		ServiceAccount: oneLine(cmp.Or(source.Template.Spec.ServiceAccountName, source.Template.Spec.DeprecatedServiceAccount, "default")),
	}
	w.TemplateField = templateField(source)
	b.today(&w)
	b.configured(&w)
	b.selectIdentity(&w)
	w.Evidence = append(w.Evidence, w.evidence.texts(signs.Likely)...)
	for _, s := range w.evidence.signs {
		if s.Certainty == signs.Hint {
			w.Hints = append(w.Hints, evidenceText(s))
		}
	}
	b.leftovers(&w)
	b.toolFindings(&w)
	switch {
	case !w.needs() || w.objectsOnly:
	case w.csiOnly:
		b.accountOf(&w)
	default:
		b.obstacles(&w)
		b.missing(&w)
	}
	if w.needs() && !w.validNames() {
		w.find("IMDS156", fmt.Sprintf("%s is not valid as the name of a service account in a namespace", w.Namespace+"/"+w.account()), "correct the name: nothing is written for it")
	}
	return w
}

// templateField returns the path of the metadata of a workload's pods.
func templateField(w *survey.Workload) string {
	if f, known := survey.TemplateFields[w.Group+"/"+w.Kind]; known {
		return f.Labels
	}
	return strings.TrimPrefix(w.Path+".metadata", ".")
}

// asks reports whether the template requests the proxy.
func asks(w *survey.Workload) bool {
	wanted, err := strconv.ParseBool(w.Template.Annotations[inject.InjectProxyAnnotation])
	return w.Template.Labels[inject.UseLabel] == "true" && wanted && err == nil
}

// today finds out how a workload gets tokens. The first case that applies counts.
func (b *builder) today(w *Workload) {
	source, e, m := w.source, w.evidence, w.match
	certainty, any := e.certainty()
	set := func(today Today, c signs.Certainty, evidence ...string) {
		w.Today, w.Certainty = today, c.String()
		w.Evidence = append(w.Evidence, evidence...)
	}
	labelled := source.Template.Labels[inject.UseLabel] == "true"
	idle := source.Pods == 0
	host := source.Template.Spec.HostNetwork
	running := b.pods.PodIdentity != nil && b.pods.Running && !isWindows(source)
	switch {
	case e.proxy || asks(source) && idle:
		set(BySidecar, signs.Certain, "the pods have the container "+inject.ProxyName)
		if !e.proxy {
			w.Evidence = []string{"the pod template requests the container " + inject.ProxyName}
		}
	case strings.HasPrefix(e.host, "http://127.0.0.1:"):
		set(BySidecar, signs.Certain, azure.EnvIMDSHost+"="+e.host)
	case e.tokenFile:
		set(ByWorkloadIdentity, signs.Certain, "the pods have "+azure.EnvFederatedTokenFile)
	case labelled && idle:
		set(ByWorkloadIdentity, signs.Likely, "the pod template has the label "+inject.UseLabel)
	case host && (m.labelled || any && certainty > signs.Hint):
		set(ByNodeIdentity, max(certainty, signs.Likely), "hostNetwork: aad-pod-identity never sees the requests")
	case host:
		set(Unknown, signs.Hint)
	case running && m.excepted:
		set(ByNodeIdentity, max(certainty, signs.Likely), "an AzurePodIdentityException matches")
	case running && len(m.identities) > 0:
		c, evidence := b.assignment(w)
		set(ByPodIdentity, max(certainty, c), evidence...)
	case running:
		set(ByNothing, signs.Certain, "aad-pod-identity refuses token requests of pods without a binding")
	case any && certainty > signs.Hint:
		set(ByNodeIdentity, certainty)
	case m.labelled:
		set(ByNodeIdentity, signs.Likely, "the label "+bindingLabel+", and aad-pod-identity is not running")
	default:
		set(Unknown, signs.Hint)
	}
}

// assignment returns the evidence for pod identity: an AzureAssignedIdentity of a running pod is the
// best one.
func (b *builder) assignment(w *Workload) (signs.Certainty, []string) {
	evidence := []string{"label " + bindingLabel + "=" + oneLine(w.match.label)}
	if !w.match.labelled {
		evidence = []string{"a binding with an empty selector, in managed mode"}
	}
	var names []string
	for _, a := range b.pods.assigned {
		if a.namespace == w.Namespace && a.status == "Assigned" && b.Owners[a.namespace+"/"+a.pod] == w.source.Ref {
			names = append(names, a.identity)
		}
	}
	if len(names) == 0 {
		return signs.Likely, evidence
	}
	slices.Sort(names)
	return signs.Certain, append(evidence, "AzureAssignedIdentity of "+oneLine(sentence(slices.Compact(names))))
}

func isWindows(w *survey.Workload) bool {
	spec := w.Template.Spec
	return spec.NodeSelector[corev1.LabelOSStable] == "windows" || spec.OS != nil && spec.OS.Name == corev1.Windows
}

// leftovers adds findings about what has no effect, or no longer one.
func (b *builder) leftovers(w *Workload) {
	source, m := w.source, w.match
	switch {
	case m.labelled && w.migrated():
		w.find("IMDS115", "label "+bindingLabel+"="+m.label+" is still on the pod template", "remove it when the workload is verified: docs/migration.md, step 9")
	case m.labelled && w.Today == ByNodeIdentity && source.Template.Spec.HostNetwork:
		w.find("IMDS114", "label "+bindingLabel+"="+m.label+": the pods use the host's network, so aad-pod-identity never sees their requests", "remove the label")
	case m.labelled && m.excepted:
		w.find("IMDS114", "label "+bindingLabel+"="+m.label+": an exception takes precedence", "remove the label or the exception")
	case m.labelled && len(m.identities) == 0 && len(m.findings) == 0:
		w.find("IMDS114", "no AzureIdentityBinding selects label "+bindingLabel+"="+m.label, "remove the label, or correct the binding: values are compared exactly")
	}
	w.Findings = append(w.Findings, m.findings...)
	if certainty, any := w.evidence.certainty(); w.Today == ByNothing && any && certainty > signs.Hint {
		w.find("IMDS154", "the pods are configured for a managed identity, and aad-pod-identity refuses their requests", "find out whether the workload works; then plan it with an identity")
	}
	account := b.Accounts[w.Namespace+"/"+w.ServiceAccount]
	if account != nil && account.Labels[inject.UseLabel] == "true" && source.Template.Labels[inject.UseLabel] != "true" {
		w.find("IMDS118", "ServiceAccount "+w.ServiceAccount+" has the label "+inject.UseLabel+", which counts on pods only", "write it into "+w.TemplateField+".labels")
	}
	b.migratedFindings(w)
	if b.isSystem(w.Namespace) {
		w.find("IMDS152", "namespace "+w.Namespace+" belongs to Kubernetes or AKS: webhooks do not see it, and changes come back", "use the command or the chart that installed the workload")
	}
	if w.Today == Unknown {
		w.find("IMDS153", "nothing says whether the pods ask IMDS, and nothing keeps them from it", "add the sidecar to one replica and look at its callers, or turn on the IMDS restriction of a test node pool: az aks update --enable-imds-restriction")
	}
}

// migratedFindings adds findings about workloads that have workload identity.
func (b *builder) migratedFindings(w *Workload) {
	if w.Today == BySidecar && strings.Contains(w.evidence.proxyImage, "azure/workload-identity/proxy") {
		w.find("IMDS149", "the sidecar is "+w.evidence.proxyImage, "its differences are in docs/images.md")
	}
	if w.Today != ByWorkloadIdentity {
		return
	}
	for _, code := range w.evidence.sources() {
		if t := tools[code]; t.stays {
			w.find("IMDS150", t.name+" is configured for a managed identity, and asks IMDS in spite of the variables", t.change)
		}
	}
}

// toolFindings adds a finding for each tool in the pods whose own configuration has to be changed.
func (b *builder) toolFindings(w *Workload) {
	if !w.needs() {
		return
	}
	found := map[string]bool{}
	for _, r := range w.references {
		found[r.code] = true // countReferences has added it
	}
	for _, code := range slices.Concat(w.evidence.sources(), w.evidence.tools) {
		if t, known := tools[code]; known && !found[code] {
			found[code] = true
			w.find(code, t.name+" requests the tokens"+w.upgrade(code), t.change)
		}
	}
}

// finish sets the next step and the severity, when all findings are known.
func (b *builder) finish(w *Workload) {
	slices.SortStableFunc(w.Findings, func(x, y Finding) int { return cmp.Or(cmp.Compare(x.Code, y.Code), cmp.Compare(x.Text, y.Text)) })
	w.Findings = slices.Compact(w.Findings)
	w.Severity = worst(w.Findings)
	if w.needs() && w.Severity == Note {
		w.Severity = Work
	}
	if w.Today == ByNothing || w.Today == Unknown {
		if w.Severity.rank() > Work.rank() {
			w.Severity = Work
		}
	}
	w.Next = b.next(w)
}
