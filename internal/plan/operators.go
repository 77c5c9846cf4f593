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
			row := operatorRow(c.Image)
			if _, known := b.operators[row]; row != "" && !known {
				b.operators[row] = operator{w.Namespace, cmp.Or(w.Template.Spec.ServiceAccountName, "default"), w.Namespace + "/" + short(w.Kind, w.Name)}
			}
		}
	}
}

// operatorRow returns the row of an image. Flux has several controllers, whose names are part of it.
func operatorRow(image string) string {
	row := signs.Image(image)
	if row == "C5" {
		name, _ := signs.ImageVersion(image)
		row += " " + name[strings.LastIndexByte(name, '/')+1:]
	}
	return row
}

// operatorOf returns the operator that acts on the objects of a rule. If its pods were not found, it is
// that of a usual installation.
func (b *builder) operatorOf(r rule) operator {
	row, usual := r.row, tools[r.row].account
	if row == "C5" {
		controller := "source-controller"
		if r.kind == "ImageRepository" {
			controller = "image-reflector-controller"
		}
		row, usual = row+" "+controller, "flux-system:"+controller
	}
	if found, ok := b.operators[row]; ok {
		return found
	}
	namespace, account, _ := strings.Cut(usual, ":")
	return operator{namespace: namespace, account: account}
}

// reference says that the pods of a workload use an object, with the identity that the object names.
type reference struct {
	row, kind, text string
	clientID        azure.ClientID
	// system means that the object uses the system-assigned identity, and elsewhere that the plan gives it
	// a service account of its own.
	system, elsewhere bool
}

// refer records that the pods of a workload use an object.
func (b *builder) refer(workload string, o *Object) {
	r := reference{row: o.rule.row, kind: o.Kind, text: o.Key() + " " + o.Field, system: o.rule.system, elsewhere: o.rule.row == "C3"}
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
		w.csiOnly, w.objectsOnly = w.csiOnly && r.row == "C2", w.objectsOnly && r.elsewhere
		w.evidence.signs = append(w.evidence.signs, signs.Sign{Row: r.row, Text: r.text, Certainty: signs.Certain})
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
		if numbers[r.row] == nil {
			numbers[r.row] = map[string]int{}
		}
		numbers[r.row][r.kind]++
	}
	for _, row := range sorted(numbers) {
		var parts []string
		for _, kind := range sorted(numbers[row]) {
			parts = append(parts, fmt.Sprintf("%d %s", numbers[row][kind], kind))
		}
		w.find(toolCode(row), tools[row].name+" is configured by "+sentence(parts), tools[row].change)
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
