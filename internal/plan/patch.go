package plan

import (
	"slices"
	"strings"

	"imds-oidc-proxy/internal/inject"
	"imds-oidc-proxy/internal/survey"
)

// Patch is the changes of one object.
type Patch struct {
	Group, Version, Kind, Namespace, Name string
	// Reason says what the changes are for.
	Reason  string
	Changes []Change
}

// Merge adds the changes to the body of a JSON merge patch (RFC 7396), in which null removes a key.
func (p *Patch) Merge(body map[string]any) {
	for _, c := range p.Changes {
		at := body
		for _, key := range c.Path[:len(c.Path)-1] {
			next, ok := at[key].(map[string]any)
			if !ok {
				next = map[string]any{}
				at[key] = next
			}
			at = next
		}
		var value any
		if !c.Remove {
			value = c.Value
		}
		at[c.Path[len(c.Path)-1]] = value
	}
}

// Patches returns the changes of the plan that are changes of fields: labels, annotations and service
// accounts of workloads, annotations of accounts that exist, and fields of other tools. Skipped says what
// is not among them, and why.
func (p *Plan) Patches() (patches []Patch, skipped []string) {
	for i := range p.Accounts {
		if a := &p.Accounts[i]; !a.New {
			patches = append(patches, Patch{Version: "v1", Kind: "ServiceAccount", Namespace: a.Namespace, Name: a.Name, Reason: sentence(a.Workloads), Changes: a.Annotate()})
		}
	}
	for i := range p.Workloads {
		w := &p.Workloads[i]
		if !w.needs() {
			continue
		}
		if reason := w.unpatchable(); reason != "" {
			skipped = append(skipped, w.Namespace+" "+w.Key()+": "+reason)
			continue
		}
		if changes := w.changes(); len(changes) > 0 {
			patches = append(patches, Patch{w.Group, w.source.Version, w.Kind, w.Namespace, w.Name, w.Next.Brief, changes})
		}
	}
	for i := range p.Objects {
		o := &p.Objects[i]
		if len(o.Changes) == 0 {
			continue
		}
		if stopped := first(o.Findings, Blocked); stopped != nil || o.Identity.State != StateKnown {
			skipped = append(skipped, strings.TrimSpace(o.Namespace+" "+o.Key())+": the identity is not known, or the object is blocked")
			continue
		}
		patches = append(patches, Patch{o.Group, o.Version, o.Kind, o.Namespace, o.Name, o.Tool, o.Changes})
	}
	return merged(patches), skipped
}

// merged joins the patches of one object.
func merged(patches []Patch) []Patch {
	var all []Patch
	places := map[survey.Ref]int{}
	for _, p := range patches {
		ref := survey.Ref{Group: p.Group, Kind: p.Kind, Namespace: p.Namespace, Name: p.Name}
		if i, known := places[ref]; known {
			all[i].Changes = append(all[i].Changes, p.Changes...)
			continue
		}
		places[ref] = len(all)
		all = append(all, p)
	}
	return all
}

// Annotate returns the annotations of a service account.
func (a *Account) Annotate() []Change {
	changes := []Change{{Path: []string{"metadata", "annotations", inject.ClientIDAnnotation}, Value: string(a.ClientID)}}
	if a.TenantID != "" {
		changes = append(changes, Change{Path: []string{"metadata", "annotations", inject.TenantIDAnnotation}, Value: a.TenantID})
	}
	return changes
}

// unpatchable says why no field of a workload is changed, or "".
func (w *Workload) unpatchable() string {
	stopped := blocking(w.Findings)
	if stopped == nil {
		stopped = first(w.Findings, Choice)
	}
	if stopped != nil {
		return stopped.Code + " " + stopped.Text
	}
	return w.uneditable()
}

// uneditable says why the pod template of a workload cannot be changed in the workload, or "".
func (w *Workload) uneditable() string {
	_, special := simpleFields[w.Group+"/"+w.Kind]
	switch {
	case w.source.Manager != "":
		return w.source.Manager + " restores it: change that object"
	case w.Kind == "Pod" || w.Group == "batch" && w.Kind == "Job":
		return "its fields are immutable: create it again"
	case w.source.Foreign && !special:
		return "it has no ordinary pod template: " + w.TemplateField
	}
	return ""
}

// simpleFields has the path of the pods' metadata and of the service account for kinds without an ordinary
// pod template that have one field for each.
var simpleFields = map[string]struct{ metadata, account []string }{
	"argoproj.io/Workflow":         {[]string{"spec", "podMetadata"}, []string{"spec", "serviceAccountName"}},
	"argoproj.io/WorkflowTemplate": {[]string{"spec", "podMetadata"}, []string{"spec", "serviceAccountName"}},
	"argoproj.io/CronWorkflow":     {[]string{"spec", "workflowSpec", "podMetadata"}, []string{"spec", "workflowSpec", "serviceAccountName"}},
}

// metadataPath returns the path of the metadata of a workload's pods.
func (w *Workload) metadataPath() []string {
	if fields, special := simpleFields[w.Group+"/"+w.Kind]; special {
		return fields.metadata
	}
	return append(strings.Split(w.source.Path, "."), "metadata")
}

// changes returns the changes of a workload's pod template.
func (w *Workload) changes() []Change {
	if w.csiOnly && w.NewServiceAccount == "" || w.objectsOnly {
		return nil
	}
	metadata, account := w.metadataPath(), append(strings.Split(w.source.Path, "."), "spec", "serviceAccountName")
	if fields, special := simpleFields[w.Group+"/"+w.Kind]; special {
		account = fields.account
	}
	var changes []Change
	add := func(path []string, value string) { changes = append(changes, Change{Path: path, Value: value}) }
	in := func(part, name string) []string { return append(slices.Clone(metadata), part, name) }
	if !w.csiOnly && w.source.Template.Labels[inject.UseLabel] != "true" {
		add(in("labels", inject.UseLabel), "true")
	}
	if w.Next.Step == StepSidecar {
		add(in("annotations", inject.InjectProxyAnnotation), "true")
		if w.Next.Redirect != redirectForward {
			add(in("annotations", inject.RedirectAnnotation), w.Next.Redirect)
		}
	}
	if w.NewServiceAccount != "" {
		add(account, w.NewServiceAccount)
	}
	return changes
}
