package plan

import (
	"slices"
	"strconv"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/survey"
)

// findComponents finds Dapr's components with a client ID. Workload identity ignores it: the
// service account's client ID counts for all components of an application.
func (b *builder) findComponents() {
	r := rule{code: "IMDS210", group: "dapr.io", kind: "Component", subject: ofMounting}
	for _, o := range b.All(r.group, r.kind) {
		list, _ := at(o.Body, "spec", "metadata").([]any)
		for i, item := range list {
			id, err := azure.ParseClientID(text(item, "value"))
			if text(item, "name") != "azureClientId" || err != nil {
				continue
			}
			found := newObject(r, o, []string{"spec", "metadata", strconv.Itoa(i)}, "spec.metadata azureClientId: "+string(id))
			found.settle(b.resolver.client(id))
			found.apps = b.daprApps(o)
			for _, w := range found.apps {
				b.refer(w.Namespace+"/"+short(w.Kind, w.Name), found)
			}
			b.found = append(b.found, found)
		}
	}
}

// daprApps returns the workloads that use a component: those of its namespace with Dapr's sidecar, and if
// the component has scopes, with one of these names.
func (b *builder) daprApps(o *survey.Object) []*survey.Workload {
	scopes := texts(o.Body, "scopes")
	return slices.DeleteFunc(slices.Clone(b.AllWorkloads()), func(w *survey.Workload) bool {
		annotations := w.Template.Annotations
		uses := w.Namespace == o.Namespace && annotations["dapr.io/enabled"] == "true"
		return !uses || len(scopes) > 0 && !slices.Contains(scopes, annotations["dapr.io/app-id"])
	})
}

// daprIdentities reports whether the components of a workload name different identities: then it needs the
// sidecar until they name one.
func (w *Workload) daprIdentities() bool {
	ids := map[azure.ClientID]bool{}
	for _, r := range w.references {
		if r.code == "IMDS210" {
			ids[r.clientID] = true
		}
	}
	return len(ids) > 1
}
