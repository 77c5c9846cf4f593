package plan

import (
	"slices"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/survey"
)

const (
	asoGroup           = "managedidentity.azure.com"
	upjetGroup         = "managedidentity.azure.upbound.io"
	upjetNamespaced    = "managedidentity.azure.m.upbound.io"
	declaredCredential = "FederatedIdentityCredential"
)

// declared returns the federated credentials that objects of Azure Service Operator and Crossplane describe,
// by client ID. Their operators create them: the plan does not do it again.
func (b *builder) declared() map[azure.ClientID][]Existing {
	all := map[azure.ClientID][]Existing{}
	add := func(o *survey.Object, spec any, client azure.ClientID) {
		if client != "" {
			all[client] = append(all[client], Existing{o.Name, text(spec, "issuer"), text(spec, "subject")})
		}
	}
	for _, o := range b.All(asoGroup, declaredCredential) {
		add(o, at(o.Body, "spec"), b.ownerOf(o))
	}
	for _, group := range []string{upjetGroup, upjetNamespaced} {
		for _, o := range b.All(group, declaredCredential) {
			spec := at(o.Body, "spec", "forProvider")
			add(o, spec, b.parent(text(spec, "parentId")))
		}
	}
	return all
}

// parent returns the client ID of the identity with a resource ID, if it is known.
func (b *builder) parent(resource string) azure.ClientID {
	selector, err := azure.ParseResourceID(resource)
	if err != nil {
		return ""
	}
	ref, known := b.resolver.selector(selector)
	if !known {
		return ""
	}
	return ref.ClientID
}

// ownerOf returns the client ID of the identity that owns a credential of Azure Service Operator: by its
// resource ID, or by the name of its object in the same namespace.
func (b *builder) ownerOf(o *survey.Object) azure.ClientID {
	if client := b.parent(text(o.Body, "spec", "owner", "armId")); client != "" {
		return client
	}
	owner := b.Objects[survey.Ref{Group: asoGroup, Kind: "UserAssignedIdentity", Namespace: o.Namespace, Name: text(o.Body, "spec", "owner", "name")}]
	if owner == nil {
		return ""
	}
	client, _ := azure.ParseClientID(text(owner.Body, "status", "clientId"))
	return client
}

// exists reports whether a credential exists in Azure, under any name, or is declared in the cluster. Entra
// compares issuer and subject exactly.
func (b *builder) exists(declared map[azure.ClientID][]Existing, n need) bool {
	return slices.ContainsFunc(slices.Concat(b.options.Existing[string(n.client)], declared[n.client]), func(e Existing) bool {
		return e.Issuer == b.plan.Cluster.Issuer && e.Subject == subjectOf(n.namespace, n.account)
	})
}
