package plan

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/inject"
	"imds-oidc-proxy/internal/survey"
)

// The rest of this package says what to create and change. This file answers the questions of package
// retire, which says what can be removed afterwards.

// Uses reports how the whole cluster uses aad-pod-identity, also the workloads of the system, which the
// plan leaves out.
type Uses struct {
	// Bindings has the workloads that get tokens through each AzureIdentityBinding, and Finished those of
	// them that use workload identity.
	Bindings map[survey.Ref][]survey.Ref
	Finished map[survey.Ref]bool
	// Exceptions has the workloads that get the node's identity because of each AzurePodIdentityException.
	Exceptions map[survey.Ref][]survey.Ref
	// Needs are the objects that work with aad-pod-identity only, in all namespaces: also those that the plan
	// leaves out, and those that it cannot change.
	Needs []*Object
	// NMI and MIC are aad-pod-identity's own workloads. Nil: there is none.
	NMI, MIC *survey.Workload
}

func (b *builder) uses() Uses {
	u := Uses{Needs: b.needs, Bindings: map[survey.Ref][]survey.Ref{}, Exceptions: map[survey.Ref][]survey.Ref{}, Finished: map[survey.Ref]bool{}}
	for i := range b.plan.Workloads {
		if w := &b.plan.Workloads[i]; w.migrated() {
			u.Finished[w.source.Ref] = true
		}
	}
	for _, w := range b.AllWorkloads() {
		switch {
		case isNMI(w):
			u.NMI = w
		case isPart(w, "mic"):
			u.MIC = w
		}
		m := b.pods.match(w)
		for _, ref := range m.bindings {
			u.Bindings[ref] = append(u.Bindings[ref], w.Ref)
		}
		for _, e := range b.pods.exceptions[w.Namespace] {
			if m.excepted && e.matches(w) != "" {
				ref := survey.Ref{Group: podIdentityGroup, Kind: "AzurePodIdentityException", Namespace: w.Namespace, Name: e.name}
				u.Exceptions[ref] = append(u.Exceptions[ref], w.Ref)
			}
		}
	}
	return u
}

// Uses returns how the cluster uses aad-pod-identity.
func (p *Plan) Uses() Uses { return p.uses }

// Ref returns the reference of a workload in the survey.
func (w *Workload) Ref() survey.Ref { return w.source.Ref }

// Held returns OnDelete or paused if a change of the pod template does not replace the pods, or "".
func (w *Workload) Held() string { return w.source.Held }

// Label returns the value of the label of aad-pod-identity on the pods of a workload. Selected means that
// the label cannot be removed, because the workload finds its pods by it.
func (w *Workload) Label() (value string, labelled, selected bool) {
	_, selected = w.source.Selector[bindingLabel]
	return w.match.label, w.match.labelled, selected
}

// Written says why the sidecar is a part of the pod template, so that no annotation removes it, or "".
func (w *Workload) Written() string {
	spec := w.source.Template.Spec
	if w.source.Path == "" && !w.source.Foreign {
		return "" // the template is the pod, which the webhook has changed
	}
	for _, c := range slices.Concat(spec.InitContainers, spec.Containers) {
		if c.Name == inject.ProxyName {
			return "the pod template has the container " + inject.ProxyName
		}
		if slices.ContainsFunc(c.Env, func(e corev1.EnvVar) bool { return e.Name == azure.EnvIMDSHost }) {
			return "container " + oneLine(c.Name) + " has the variable " + azure.EnvIMDSHost
		}
	}
	return ""
}

// Removal returns the patch that removes the label of aad-pod-identity, the annotations of the sidecar, or
// both from a pod template. The reason says why there is no such patch.
func (w *Workload) Removal(label, sidecar bool) (patch Patch, reason string) {
	if reason := w.uneditable(); reason != "" {
		return Patch{}, reason
	}
	patch = Patch{Group: w.Group, Version: w.source.Version, Kind: w.Kind, Namespace: w.Namespace, Name: w.Name}
	remove := func(part, name string) {
		patch.Changes = append(patch.Changes, Change{Path: append(slices.Clone(w.metadataPath()), part, name), Remove: true})
	}
	if label {
		remove("labels", bindingLabel)
	}
	for _, name := range sorted(w.source.Template.Annotations) {
		if sidecar && inject.IsProxyAnnotation(name) {
			remove("annotations", name)
		}
	}
	return patch, ""
}

// needsPodIdentity reports whether an object works with aad-pod-identity only: a SecretProviderClass or a
// TriggerAuthentication that names it.
func (o *Object) needsPodIdentity() bool {
	return o.rule.code == "IMDS201" || o.rule.code == "IMDS202" && strings.Contains(o.Field, "usePodIdentity")
}

// UsedBy reports whether the pods of a workload mount the object.
func (o *Object) UsedBy(w *Workload) bool { return o.usedBy(w.source) }
