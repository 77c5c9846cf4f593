package plan

import (
	"cmp"
	"fmt"
	"slices"

	rbacv1 "k8s.io/api/rbac/v1"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/inject"
	"imds-oidc-proxy/internal/survey"
)

// Account is a service account that has to be created or annotated.
type Account struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	// New means that it does not exist.
	New      bool           `json:"new"`
	ClientID azure.ClientID `json:"clientID"`
	TenantID string         `json:"tenantID,omitempty"`
	// PullSecrets and Roles are those of the service account default, to be copied.
	PullSecrets []string `json:"imagePullSecrets,omitempty"`
	Roles       []string `json:"roles,omitempty"`
	// Workloads use the account, as KIND/NAME. They have to name it if it is new.
	Workloads []string `json:"workloads"`
}

// missing finds what a workload needs in the cluster: account, annotation and label.
func (b *builder) missing(w *Workload) {
	b.accountOf(w)
	if w.source.Template.Labels[inject.UseLabel] != "true" {
		w.find("IMDS104", "the pod template has no label "+inject.UseLabel+`: "true"`, "write it into "+w.TemplateField+".labels")
	}
	if w.Identity.Default == nil {
		return
	}
	account := b.Accounts[w.Namespace+"/"+w.account()]
	if annotated, has := accountClient(account); has && annotated == w.Identity.Default.ClientID {
		return
	} else if has && w.NewServiceAccount == "" {
		return // IMDS141 asks
	}
	w.find("IMDS103", fmt.Sprintf("ServiceAccount %s has no annotation %s", w.account(), annotationClientID), "set it to "+string(w.Identity.Default.ClientID))
}

// accountOf proposes a service account for a workload that has none of its own.
func (b *builder) accountOf(w *Workload) {
	account := b.Accounts[w.Namespace+"/"+w.ServiceAccount]
	switch {
	case w.source.Static: // it has no service account
	case w.ServiceAccount == "default":
		w.NewServiceAccount = b.freeName(w)
		w.find("IMDS101", "the pods use the service account default: a federated credential for it would trust every pod of the namespace that names no account",
			"create ServiceAccount "+w.NewServiceAccount+", copy the imagePullSecrets and role bindings of default, and name it in the pod template")
	case account == nil && b.Found["serviceaccounts"] > 0:
		w.find("IMDS102", "ServiceAccount "+w.ServiceAccount+" does not exist", "create it")
	}
}

// freeName returns the name of a new account: that of the workload, if no other workload uses an account
// of this name.
func (b *builder) freeName(w *Workload) string {
	existing := b.Accounts[w.Namespace+"/"+w.Name]
	annotated, has := accountClient(existing)
	if existing == nil || w.Identity.Default != nil && has && annotated == w.Identity.Default.ClientID {
		return w.Name
	}
	return w.Name + "-azure"
}

// shareAccounts asks where workloads with different default identities share an account: its annotation
// has one client ID.
func (b *builder) shareAccounts() {
	users := map[string][]*Workload{}
	for i := range b.plan.Workloads {
		w := &b.plan.Workloads[i]
		if w.Identity.Default != nil && w.needs() {
			key := w.Namespace + "/" + w.account()
			users[key] = append(users[key], w)
		}
	}
	for _, key := range sorted(users) {
		list := users[key]
		different := slices.ContainsFunc(list, func(w *Workload) bool { return w.Identity.Default.ClientID != list[0].Identity.Default.ClientID })
		if !different {
			continue
		}
		for _, w := range list {
			w.find("IMDS109", fmt.Sprintf("%d workloads share ServiceAccount %s, and their identities differ: here %s", len(list), w.account(), w.Identity.Default),
				"give each of them a service account of its own, or choose one default: --choose="+key+"=<CLIENT_ID>")
		}
	}
}

// addAccount plans the account of a workload whose identity is settled.
func (b *builder) addAccount(w *Workload, accounts map[string]*Account) {
	name := w.account()
	existing := b.Accounts[w.Namespace+"/"+name]
	annotated, has := accountClient(existing)
	identity := *w.Identity.Default
	create := existing == nil && b.Found["serviceaccounts"] > 0
	if !create && w.NewServiceAccount == "" && has && annotated == identity.ClientID {
		return
	}
	key := w.Namespace + "/" + name
	a := accounts[key]
	if a == nil {
		a = &Account{Namespace: w.Namespace, Name: name, New: create, ClientID: identity.ClientID, TenantID: cmp.Or(identity.TenantID, string(b.options.TenantID)), Workloads: []string{}}
		if w.NewServiceAccount != "" {
			a.PullSecrets, a.Roles = b.ofDefault(w.Namespace)
		}
		accounts[key] = a
	}
	a.Workloads = append(a.Workloads, w.Key())
}

// ofDefault returns the image pull secrets and the roles of the account default, which pods with another
// account would lose.
func (b *builder) ofDefault(namespace string) (secrets, roles []string) {
	if account := b.Accounts[namespace+"/default"]; account != nil {
		for _, name := range account.PullSecrets {
			secrets = append(secrets, oneLine(name))
		}
	}
	for _, kind := range []string{"RoleBinding", "ClusterRoleBinding"} {
		for _, o := range b.All(rbacv1.GroupName, kind) {
			if (kind == "ClusterRoleBinding" || o.Namespace == namespace) && bindsDefault(o, namespace) {
				roles = append(roles, oneLine(text(o.Body, "roleRef", "kind")+"/"+text(o.Body, "roleRef", "name")))
			}
		}
	}
	slices.Sort(roles)
	return secrets, slices.Compact(roles)
}

func bindsDefault(o *survey.Object, namespace string) bool {
	subjects, _ := at(o.Body, "subjects").([]any)
	return slices.ContainsFunc(subjects, func(s any) bool {
		return text(s, "kind") == "ServiceAccount" && text(s, "name") == "default" && cmp.Or(text(s, "namespace"), o.Namespace) == namespace
	})
}
