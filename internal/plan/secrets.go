package plan

import (
	"cmp"
	"slices"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/survey"
)

// findSecrets finds the Secrets in which Azure Service Operator and Argo CD keep their settings. They are read
// only with [survey.Config.Secrets], and no change of them is written: a patch would hold their values.
func (b *builder) findSecrets() {
	for _, o := range b.All("", "Secret") {
		keys := b.config("Secret", o.Namespace, o.Name)
		switch {
		case slices.Contains([]string{"aso-controller-settings", "aso-credential"}, o.Name):
			b.operatorSecret(o, keys)
		case o.Labels["argocd.argoproj.io/secret-type"] == "cluster":
			b.clusterSecret(o, keys)
		}
	}
}

// operatorSecret adds a Secret of Azure Service Operator: its global settings, or those of a namespace. Each
// names an identity of its own.
func (b *builder) operatorSecret(o *survey.Object, keys map[string]survey.Text) {
	has := func(key string) bool { _, is := keys[key]; return is }
	if !has(azure.EnvClientID) || has("AZURE_CLIENT_SECRET") || has("AZURE_CLIENT_CERTIFICATE") || keys[survey.WorkloadIdentityAuth].Value == "true" {
		return
	}
	found := newObject(rule{code: "IMDS204", kind: o.Kind, subject: ofOperator}, o, nil, azure.EnvClientID+" without "+survey.WorkloadIdentityAuth)
	if id, err := azure.ParseClientID(keys[azure.EnvClientID].Value); err == nil {
		found.settle(b.resolver.client(id))
	}
	b.found = append(b.found, found)
	if op := b.operatorOf(found.rule); op.workload != "" {
		b.refer(op.workload, found)
	}
}

// clusterSecret adds a Secret with which Argo CD signs in to another cluster. Two of its components do that.
func (b *builder) clusterSecret(o *survey.Object, keys map[string]survey.Text) {
	for _, key := range sorted(keys) {
		for _, s := range keys[key].AsFile {
			if s.Source != "IMDS211" {
				continue
			}
			found := newObject(rule{code: s.Source, kind: o.Kind}, o, nil, key+" "+s.Text)
			found.Subjects = []string{o.Namespace + ":argocd-application-controller", o.Namespace + ":argocd-server"}
			id := b.options.Choices[o.Namespace+"/"+found.Key()]
			if s.ClientID != "" || len(id) > 0 {
				found.settle(b.resolver.client(cmp.Or(s.ClientID, firstOf(id))))
			} else {
				found.find("IMDS108", "the Secret names no client ID", "set AZURE_CLIENT_ID in it, or --choose="+o.Namespace+"/"+found.Key()+"=<CLIENT_ID>")
			}
			b.found = append(b.found, found)
			return
		}
	}
}

func firstOf(list []azure.ClientID) azure.ClientID {
	if len(list) == 0 {
		return ""
	}
	return list[0]
}
