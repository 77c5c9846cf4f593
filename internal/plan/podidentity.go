package plan

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/signs"
	"imds-oidc-proxy/internal/survey"
)

const (
	podIdentityGroup = "aadpodidentity.k8s.io"
	bindingLabel     = "aadpodidbinding"
)

// PodIdentity is aad-pod-identity as it is installed.
type PodIdentity struct {
	Mode       string `json:"mode"` // standard or managed
	Namespaced bool   `json:"namespaced"`
	AddOn      bool   `json:"addOn"`
	// Running is false if its objects exist but its daemon does not: then it has no effect.
	Running        bool `json:"running"`
	BlocksMetadata bool `json:"blocksInstanceMetadata"`
	Identities     int  `json:"identities"`
	Bindings       int  `json:"bindings"`
	Exceptions     int  `json:"exceptions"`
	Assigned       int  `json:"assigned"`
}

// podIdentity answers which identity aad-pod-identity gives a pod.
type podIdentity struct {
	*PodIdentity // nil: it is not installed
	identities   map[string]podAzureIdentity
	bindings     []binding
	exceptions   map[string][]exception
	assigned     []assigned
}

// exception is an AzurePodIdentityException.
type exception struct {
	name   string
	labels map[string]string
}

// podAzureIdentity is an AzureIdentity.
type podAzureIdentity struct {
	survey.Ref
	kind       int64
	clientID   string
	resourceID string
	tenantID   string
	auxiliary  bool
	namespaced bool
	managed    bool
}

// The values of AzureIdentity.spec.type.
const (
	userAssigned = 0
	withSecret   = 1
	withCert     = 2
)

// binding is an AzureIdentityBinding.
type binding struct {
	survey.Ref
	identity, selector string
}

// assigned is an AzureAssignedIdentity.
type assigned struct{ namespace, pod, identity, status string }

func newPodIdentity(s *survey.Survey) *podIdentity {
	p := &podIdentity{identities: map[string]podAzureIdentity{}, exceptions: map[string][]exception{}}
	for _, o := range s.All(podIdentityGroup, "AzureIdentity") {
		i := azureIdentity(o)
		p.identities[o.Namespace+"/"+o.Name] = i
	}
	for _, o := range s.All(podIdentityGroup, "AzureIdentityBinding") {
		p.bindings = append(p.bindings, binding{o.Ref, text(o.Body, "spec", "azureIdentity"), text(o.Body, "spec", "selector")})
	}
	for _, o := range s.All(podIdentityGroup, "AzurePodIdentityException") {
		p.exceptions[o.Namespace] = append(p.exceptions[o.Namespace], exception{o.Name, stringMap(o.Body, "spec", "podLabels")})
	}
	for _, o := range s.All(podIdentityGroup, "AzureAssignedIdentity") {
		p.assigned = append(p.assigned, assigned{text(o.Body, "spec", "podNamespace"), text(o.Body, "spec", "pod"),
			text(o.Body, "spec", "azureIdentityRef", "metadata", "name"), text(o.Body, "status", "status")})
	}
	p.install(s)
	return p
}

func azureIdentity(o *survey.Object) podAzureIdentity {
	kind, _ := at(o.Body, "spec", "type").(int64)
	auxiliary, _ := at(o.Body, "spec", "auxiliaryTenantIDs").([]any)
	return podAzureIdentity{
		Ref: o.Ref, kind: kind, clientID: text(o.Body, "spec", "clientID"), resourceID: text(o.Body, "spec", "resourceID"),
		tenantID: text(o.Body, "spec", "tenantID"), auxiliary: len(auxiliary) > 0,
		namespaced: o.Annotations["aadpodidentity.k8s.io/Behavior"] == "namespaced", managed: isManaged(o.Meta),
	}
}

// install finds the daemon NMI and its settings.
func (p *podIdentity) install(s *survey.Survey) {
	for _, w := range s.AllWorkloads() {
		if w.Kind != "DaemonSet" || !isNMI(w) {
			continue
		}
		p.PodIdentity = &PodIdentity{Mode: "standard", Running: true, AddOn: isManaged(w.Meta)}
		for _, c := range w.Template.Spec.Containers {
			p.configure(c)
		}
		p.Namespaced = p.Namespaced || p.Mode == "managed"
		break
	}
	if p.PodIdentity == nil {
		if len(p.bindings)+len(p.identities) == 0 {
			return
		}
		// Without the DaemonSets it cannot be told whether NMI runs: its objects are believed.
		unread := slices.ContainsFunc(s.Unread, func(u survey.Unread) bool { return u.What == "daemonsets.apps" })
		p.PodIdentity = &PodIdentity{Mode: "standard", Running: unread}
	}
	p.Identities, p.Bindings, p.Assigned = len(p.identities), len(p.bindings), len(p.assigned)
	for _, list := range p.exceptions {
		p.Exceptions += len(list)
	}
}

// isPart reports whether a workload is aad-pod-identity's own: nmi or mic. A mirror may have renamed the image, for
// example to podidentity-nmi.
func isPart(w *survey.Workload, part string) bool {
	return slices.ContainsFunc(w.Template.Spec.Containers, func(c corev1.Container) bool {
		name, _ := signs.ImageVersion(c.Image)
		base := name[strings.LastIndexByte(name, '/')+1:]
		return (base == part || strings.HasSuffix(base, "-"+part)) && (strings.Contains(name, "aad-pod-identity") || w.Labels["app.kubernetes.io/component"] == part || c.Name == part)
	})
}

func isNMI(w *survey.Workload) bool { return isPart(w, "nmi") }

func (p *podIdentity) configure(c corev1.Container) {
	for _, arg := range slices.Concat(c.Command, c.Args) {
		name, value, given := strings.Cut(strings.TrimLeft(arg, "-"), "=")
		on := !given || value == "true"
		switch strings.ToLower(name) {
		case "operation-mode":
			p.Mode = strings.ToLower(value)
		case "forcenamespaced":
			p.Namespaced = on
		case "block-instance-metadata":
			p.BlocksMetadata = on
		}
	}
	for _, e := range c.Env {
		p.Namespaced = p.Namespaced || e.Name == "FORCENAMESPACED" && strings.EqualFold(e.Value, "true")
	}
}

// podMatch is what aad-pod-identity does with the requests of a workload's pods.
type podMatch struct {
	excepted   bool
	label      string
	labelled   bool
	identities []podAzureIdentity
	bindings   []survey.Ref
	findings   []Finding
}

// match returns what aad-pod-identity does with a workload's requests.
func (p *podIdentity) match(w *survey.Workload) podMatch {
	m := podMatch{}
	m.label, m.labelled = w.Template.Labels[bindingLabel]
	if p.PodIdentity == nil || !p.Running || w.Template.Spec.HostNetwork || isWindows(w) {
		return m // NMI never sees the requests
	}
	if pair := p.exception(w); pair != "" {
		m.excepted = true
		m.findings = append(m.findings, finding("IMDS116", "an AzurePodIdentityException matches the label "+pair+": the pods get the node's identity, whatever their label "+bindingLabel+" says",
			"choose an identity for the workload"))
		return m
	}
	names := map[string]survey.Ref{}
	for _, bound := range p.bindings {
		if !p.matches(bound, w, m) {
			continue
		}
		identity, found := p.identities[bound.Namespace+"/"+bound.identity]
		if !found {
			m.findings = append(m.findings, finding("IMDS113", fmt.Sprintf("AzureIdentityBinding %s/%s names AzureIdentity %s, which does not exist in this namespace", bound.Namespace, bound.Name, bound.identity),
				"correct or delete the binding"))
			continue
		}
		if p.limited(identity) && identity.Namespace != w.Namespace {
			continue
		}
		m.bindings = append(m.bindings, bound.Ref)
		if first, taken := names[identity.Name]; taken {
			if first != identity.Ref {
				m.findings = append(m.findings, finding("IMDS117", fmt.Sprintf("AzureIdentity %s is in the namespaces %s and %s: aad-pod-identity uses the first", identity.Name, first.Namespace, identity.Namespace), ""))
			}
			continue
		}
		names[identity.Name] = identity.Ref
		m.identities = append(m.identities, identity)
	}
	slices.SortFunc(m.identities, func(a, b podAzureIdentity) int { return cmp.Or(cmp.Compare(a.Name, b.Name), a.Ref.Compare(b.Ref)) })
	return m
}

// limited reports whether an identity is for pods of its own namespace only.
func (p *podIdentity) limited(i podAzureIdentity) bool { return p.Namespaced || i.namespaced }

// matches compares a pod's label with a binding's selector. In managed mode an empty selector
// matches pods without the label.
func (p *podIdentity) matches(b binding, w *survey.Workload, m podMatch) bool {
	if p.Mode == "managed" {
		return b.Namespace == w.Namespace && b.selector == m.label
	}
	return m.label != "" && b.selector == m.label
}

// exception returns the label with which an exception matches: one equal pair is enough, and
// values are compared without case.
func (p *podIdentity) exception(w *survey.Workload) string {
	for _, e := range p.exceptions[w.Namespace] {
		if pair := e.matches(w); pair != "" {
			return pair
		}
	}
	return ""
}

func (e exception) matches(w *survey.Workload) string {
	for _, name := range sorted(e.labels) {
		if value, has := w.Template.Labels[name]; has && strings.EqualFold(value, e.labels[name]) {
			return name + "=" + value
		}
	}
	return ""
}

// check returns findings about an AzureIdentity.
func (i podAzureIdentity) check() []Finding {
	name := "AzureIdentity " + i.Namespace + "/" + i.Name
	if _, err := azure.ParseClientID(i.clientID); err != nil {
		return []Finding{finding("IMDS119", name+": spec.clientID "+err.Error(), "correct it")}
	}
	switch i.kind {
	case userAssigned:
		if _, err := azure.ParseResourceID(i.resourceID); err != nil {
			return []Finding{finding("IMDS119", name+": spec.resourceID "+err.Error(), "correct it, or set --identity=RESOURCE_ID=CLIENT_ID")}
		}
	case withSecret, withCert:
		found := []Finding{finding("IMDS111", name+" has type "+fmt.Sprint(i.kind)+": an app registration with a "+map[int64]string{withSecret: "secret", withCert: "certificate"}[i.kind],
			"the federated credential goes to the application; remove the credential of the Secret afterwards")}
		if i.auxiliary {
			found = append(found, finding("IMDS112", name+" has auxiliaryTenantIDs: aad-pod-identity returns a list of tokens, which neither the sidecar nor workload identity does",
				"change the application: one request for each tenant"))
		}
		return found
	default:
		return []Finding{finding("IMDS119", fmt.Sprintf("%s: spec.type %d: must be 0, 1 or 2", name, i.kind), "correct it")}
	}
	return nil
}
