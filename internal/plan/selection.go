package plan

import (
	"fmt"
	"slices"
	"strings"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/signs"
)

// selectIdentity sets the identity of a workload. It never chooses between two: a person does, by
// --choose or the annotation of the service account, or the configuration names one.
func (b *builder) selectIdentity(w *Workload) {
	switch {
	case w.migrated():
		b.selectAnnotated(w)
	case !w.needs():
		w.Identity.State = StateNone
	default:
		var candidates []Ref
		if w.Today == ByPodIdentity {
			candidates = b.candidates(w)
		}
		named := b.named(w)
		b.choose(w, candidates, named)
	}
}

// selectAnnotated takes the identity that the service account or a variable names.
func (b *builder) selectAnnotated(w *Workload) {
	w.Identity.State = StateUnknown
	id, annotated := accountClient(b.Accounts[w.Namespace+"/"+w.ServiceAccount])
	if !annotated {
		for _, s := range w.evidence.signs {
			if s.ClientID != "" {
				id, annotated = s.ClientID, true
				break
			}
		}
	}
	if annotated {
		w.settle([]Ref{b.resolver.client(id)})
	}
}

// settle sets the identity, and those that are needed too.
func (w *Workload) settle(list []Ref) {
	w.Identity = Selection{State: StateKnown, Default: &list[0], Others: list[1:]}
}

// candidates returns the identities that aad-pod-identity gives a workload.
func (b *builder) candidates(w *Workload) []Ref {
	var refs []Ref
	for _, i := range w.match.identities {
		w.Findings = append(w.Findings, i.check()...)
		if ref, valid := b.resolver.podIdentity(i); valid {
			refs = append(refs, ref)
		}
	}
	return unique(refs)
}

// named returns the identities that the workload's configuration names.
func (b *builder) named(w *Workload) []Ref {
	var refs []Ref
	for _, s := range w.evidence.signs {
		switch {
		case s.Certainty < signs.Likely:
		case s.ClientID != "":
			refs = append(refs, b.resolver.client(s.ClientID))
		case s.ResourceID != "" || s.ObjectID != "":
			selector := azure.Selector(string(s.ResourceID) + string(s.ObjectID))
			ref, known := b.resolver.selector(selector)
			if !known {
				w.find("IMDS143", s.Text+" names the identity by "+string(selector)+", whose client ID is not known", "set --identity="+string(selector)+"=<CLIENT_ID>")
				continue
			}
			ignored := ""
			if s.ObjectID != "" && w.Today == ByPodIdentity {
				ignored = ", which aad-pod-identity ignores: today the pods may get the token of another identity"
			}
			w.find("IMDS143", s.Text+" names the identity by "+string(selector)+ignored, "the sidecar finds the IDs of its identities in their tokens; the annotation imds-oidc-proxy/identities maps those of others. Without the sidecar, name the client ID "+string(ref.ClientID))
			refs = append(refs, ref)
		}
	}
	return unique(refs)
}

// choose settles the identity or asks.
func (b *builder) choose(w *Workload, candidates, named []Ref) {
	annotated, hasAnnotation := accountClient(b.Accounts[w.Namespace+"/"+w.ServiceAccount])
	explicit, all := b.explicit(w)
	matching := both(candidates, named)
	key := w.choiceKey()
	switch chosen := b.chosen(w); {
	case len(chosen) > 0:
		var refs []Ref
		for _, id := range chosen {
			refs = append(refs, b.resolver.client(id))
		}
		w.settle(refs)
		w.Evidence = append(w.Evidence, "the identity was chosen")
		return
	case w.objectsOnly, len(explicit) > 1 && all && len(named) == 0:
		w.Identity = Selection{State: StateKnown, Others: explicit}
		return
	case len(explicit) == 1 && all && len(named) == 0:
		w.settle(explicit)
	case w.Today == ByPodIdentity && len(candidates) == 1:
		w.settle(candidates)
	case w.Today == ByPodIdentity && len(matching) == 1:
		w.settle(matching)
	case hasAnnotation && (contains(candidates, annotated) || len(candidates) == 0 && (len(named) == 0 || contains(named, annotated))):
		first := b.resolver.client(annotated)
		w.settle(append([]Ref{first}, without(named, annotated)...))
	case w.Today == ByNodeIdentity && len(named) == 1:
		w.settle(named)
	default:
		b.ask(w, key, slices.Concat(candidates, named))
		return
	}
	if hasAnnotation && annotated != w.Identity.Default.ClientID {
		w.find("IMDS141", fmt.Sprintf("ServiceAccount %s names %s, and the pods use %s today", w.ServiceAccount, annotated, w.Identity.Default),
			"decide which one is right, and set --choose="+key+"=<CLIENT_ID>")
	}
}

// choiceKey returns what --choose calls the workload: its service account, unless it shares that of the
// namespace.
func (w *Workload) choiceKey() string {
	if w.ServiceAccount == "default" {
		return w.Namespace + "/" + w.Key()
	}
	return w.Namespace + "/" + w.ServiceAccount
}

func (b *builder) chosen(w *Workload) []azure.ClientID {
	if own := b.options.Choices[w.Namespace+"/"+w.Key()]; len(own) > 0 {
		return own
	}
	return b.options.Choices[w.choiceKey()]
}

// ask leaves the identity open.
func (b *builder) ask(w *Workload, key string, candidates []Ref) {
	candidates = unique(candidates)
	if len(candidates) == 0 {
		w.Identity = Selection{State: StateUnknown}
		if first(w.Findings, Blocked) == nil { // an AzureIdentity that is not valid says why
			w.find("IMDS108", "nothing names the identity: it is the node's system-assigned or only identity",
				"give the workload a user-assigned identity with the same roles, and set --choose="+key+"=<CLIENT_ID>")
		}
		return
	}
	w.Identity = Selection{State: StateAmbiguous, Candidates: candidates}
	w.find("IMDS107", choiceText(candidates), "set --choose="+key+"=<CLIENT_ID>, first the default one; repeat it for others that requests name")
}

func choiceText(candidates []Ref) string {
	var names []string
	for _, c := range candidates {
		names = append(names, c.String())
	}
	return fmt.Sprintf("you choose: %d identities match: %s", len(names), strings.Join(names, ", "))
}

func contains(list []Ref, id azure.ClientID) bool {
	return slices.ContainsFunc(list, func(r Ref) bool { return r.ClientID == id })
}

// both returns the identities of a that are in b.
func both(a, b []Ref) []Ref {
	return slices.DeleteFunc(slices.Clone(a), func(r Ref) bool { return !contains(b, r.ClientID) })
}
