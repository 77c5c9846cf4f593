package plan

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/signs"
)

// operator is where a tool's pods run.
type operator struct {
	namespace, account string
	workload           string // NAMESPACE/KIND/NAME; empty: not found, but assumed
}

func (o operator) subject() string {
	if o.account == "" {
		return ""
	}
	return o.namespace + ":" + o.account
}

// findOperators finds the tools by the images of the workloads, also those of the system's namespaces.
func (b *builder) findOperators() {
	b.operators = map[string]operator{}
	for _, w := range b.AllWorkloads() {
		for _, c := range slices.Concat(w.Template.Spec.InitContainers, w.Template.Spec.Containers) {
			code := operatorKey(c.Image)
			if _, known := b.operators[code]; code != "" && !known {
				b.operators[code] = operator{w.Namespace, cmp.Or(w.Template.Spec.ServiceAccountName, "default"), w.Namespace + "/" + short(w.Kind, w.Name)}
			}
		}
	}
}

// operatorKey returns the key of an image in builder.operators: the code of its tool, and for Flux, which
// has several controllers, the name of the controller.
func operatorKey(image string) string {
	code := signs.Image(image)
	if code == "IMDS205" {
		name, _ := signs.ImageVersion(image)
		code += " " + name[strings.LastIndexByte(name, '/')+1:]
	}
	return code
}

// operatorOf returns the operator that acts on the objects of a rule. If its pods were not found, it is
// that of a usual installation.
func (b *builder) operatorOf(r rule) operator {
	code, usual := r.code, tools[r.code].account
	if code == "IMDS205" {
		controller := "source-controller"
		if r.kind == "ImageRepository" {
			controller = "image-reflector-controller"
		}
		code, usual = code+" "+controller, "flux-system:"+controller
	}
	if found, ok := b.operators[code]; ok {
		return found
	}
	namespace, account, _ := strings.Cut(usual, ":")
	return operator{namespace: namespace, account: account}
}

// reference says that the pods of a workload use an object, with the identity that the object names.
type reference struct {
	code, kind, text string
	clientID         azure.ClientID
	// system means that the object uses the system-assigned identity, and elsewhere that the plan gives it
	// a service account of its own.
	system, elsewhere bool
}

// refer records that the pods of a workload use an object.
func (b *builder) refer(workload string, o *Object) {
	r := reference{code: o.rule.code, kind: o.Kind, text: o.Key() + " " + o.Field, system: o.rule.system, elsewhere: o.rule.code == "IMDS203"}
	if o.Identity.Default != nil {
		r.clientID = o.Identity.Default.ClientID
	}
	b.references[workload] = append(b.references[workload], r)
}

// configured counts the objects of other tools as evidence for the workload that uses them.
func (b *builder) configured(w *Workload) {
	w.references = b.references[w.Namespace+"/"+w.Key()]
	if len(w.references) == 0 || w.migrated() {
		return
	}
	own, any := w.evidence.certainty()
	w.csiOnly = !w.match.labelled && (!any || own == signs.Hint)
	w.objectsOnly = w.csiOnly
	for _, r := range w.references {
		w.csiOnly, w.objectsOnly = w.csiOnly && r.code == "IMDS202", w.objectsOnly && r.elsewhere
		w.evidence.signs = append(w.evidence.signs, signs.Sign{Source: r.code, Text: r.text, Certainty: signs.Certain})
	}
	w.evidence.signs = signs.Sort(w.evidence.signs)
	// The daemon of the Secrets Store CSI driver is on the host's network, where aad-pod-identity sees no
	// requests. Those of other pods without a binding it refuses.
	if w.Today == Unknown || w.Today == ByNothing && w.csiOnly {
		w.Today, w.Certainty = ByNodeIdentity, signs.Certain.String()
		w.Evidence = []string{}
	}
	b.countReferences(w)
}

// countReferences adds a finding for each tool, with the numbers of its objects by kind.
func (b *builder) countReferences(w *Workload) {
	numbers := map[string]map[string]int{}
	for _, r := range w.references {
		if numbers[r.code] == nil {
			numbers[r.code] = map[string]int{}
		}
		numbers[r.code][r.kind]++
	}
	for _, code := range sorted(numbers) {
		var parts []string
		for _, kind := range sorted(numbers[code]) {
			parts = append(parts, fmt.Sprintf("%d %s", numbers[code][kind], kind))
		}
		w.find(code, tools[code].name+" is configured by "+sentence(parts), tools[code].change)
	}
}

// explicit returns the identities that the objects name which a workload uses. All reports whether each of
// them names one: then the service account needs no default.
func (b *builder) explicit(w *Workload) (list []Ref, all bool) {
	all = len(w.references) > 0
	for _, r := range w.references {
		switch {
		case r.clientID != "":
			list = append(list, b.resolver.client(r.clientID))
		case !r.system:
			all = false
		}
	}
	return unique(list), all
}
