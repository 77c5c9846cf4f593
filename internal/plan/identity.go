package plan

import (
	"cmp"
	"slices"
	"strings"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/survey"
)

// The kinds of identities.
const (
	KindUserAssigned = "user-assigned"
	KindApplication  = "application"
)

// Ref is an identity as a workload uses it.
type Ref struct {
	// Name is that of the AzureIdentity, or else of the identity in Azure. It may be empty.
	Name     string         `json:"name,omitempty"`
	ClientID azure.ClientID `json:"clientID,omitempty"`
	// ResourceID is empty for an application, and if it is not known.
	ResourceID string `json:"resourceID,omitempty"`
	Kind       string `json:"kind"`
	// TenantID is set if it differs from that of the cluster, or if the AzureIdentity has it.
	TenantID string `json:"tenantID,omitempty"`
}

// String returns the name for a person: the shortest one that is known.
func (r Ref) String() string { return oneLine(cmp.Or(r.Name, string(r.ClientID))) }

// The states of [Selection].
const (
	StateKnown     = "known"     // Default is the identity; Others are needed too. Without Default, each request names one
	StateAmbiguous = "ambiguous" // one of Candidates, nobody has said which
	StateUnknown   = "unknown"   // an identity, but nothing says which
	StateNone      = "none"      // the workload uses no identity
)

// Selection is the identity of a workload.
type Selection struct {
	State      string `json:"state"`
	Default    *Ref   `json:"default,omitempty"`
	Others     []Ref  `json:"others,omitempty"`
	Candidates []Ref  `json:"candidates,omitempty"`
}

// all returns the identities that are settled.
func (s Selection) all() []Ref {
	if s.Default == nil {
		return s.Others
	}
	return append([]Ref{*s.Default}, s.Others...)
}

// Known is the client ID of an identity that is known by its resource ID or object ID.
type Known struct {
	azure.Identity
	spelling string // of the resource ID
}

// ParseKnown parses SELECTOR=CLIENT_ID, as the proxy's --identity.
func ParseKnown(s string) (Known, error) {
	i, err := azure.ParseIdentity(s)
	if err != nil {
		return Known{}, err
	}
	return Known{i, s[:strings.LastIndexByte(s, '=')]}, nil
}

// ResourceID are the parts of the resource ID of a user-assigned identity.
type ResourceID struct{ Subscription, Group, Name string }

// String returns the resource ID with the upper and lower case that Terraform requires.
func (r ResourceID) String() string {
	return "/subscriptions/" + r.Subscription + "/resourceGroups/" + r.Group + "/providers/Microsoft.ManagedIdentity/userAssignedIdentities/" + r.Name
}

// ParseResourceID parses a resource ID and keeps the case of its names.
func ParseResourceID(s string) (ResourceID, bool) {
	if _, err := azure.ParseResourceID(s); err != nil {
		return ResourceID{}, false
	}
	part := strings.Split(s, "/")
	return ResourceID{part[2], part[4], part[8]}, true
}

// resolver finds the other ID of an identity.
type resolver struct {
	byClient   map[azure.ClientID]Ref
	bySelector map[azure.Selector]azure.ClientID
}

func newResolver(b *builder) *resolver {
	r := &resolver{byClient: map[azure.ClientID]Ref{}, bySelector: map[azure.Selector]azure.ClientID{}}
	for _, k := range b.options.Identities {
		r.bySelector[k.Selector] = k.ClientID
		if _, isResource := ParseResourceID(k.spelling); isResource {
			r.add("", string(k.ClientID), k.spelling, KindUserAssigned, "")
		}
	}
	for _, o := range b.All(podIdentityGroup, "AzureIdentity") {
		i := azureIdentity(o)
		if i.kind == userAssigned {
			r.add(i.Name, i.clientID, i.resourceID, KindUserAssigned, "")
		} else {
			r.add(i.Name, i.clientID, "", KindApplication, i.tenantID)
		}
	}
	for _, o := range b.All(asoGroup, "UserAssignedIdentity") {
		r.add(o.Name, text(o.Body, "status", "clientId"), text(o.Body, "status", "id"), KindUserAssigned, "")
	}
	return r
}

// add adds what one source knows. The first source of a fact counts.
func (r *resolver) add(name, client, resource, kind, tenant string) {
	id, err := azure.ParseClientID(client)
	if err != nil {
		return
	}
	known := r.byClient[id]
	ref := Ref{Name: cmp.Or(known.Name, name), ClientID: id, ResourceID: known.ResourceID, Kind: cmp.Or(known.Kind, kind), TenantID: cmp.Or(known.TenantID, oneLine(tenant))}
	if resourceID, ok := ParseResourceID(resource); ok {
		ref.ResourceID = cmp.Or(ref.ResourceID, resourceID.String())
		ref.Name = cmp.Or(ref.Name, resourceID.Name)
		selector, _ := azure.ParseResourceID(resource)
		if _, taken := r.bySelector[selector]; !taken {
			r.bySelector[selector] = id
		}
	}
	r.byClient[id] = ref
}

// client returns the identity with a client ID.
func (r *resolver) client(id azure.ClientID) Ref {
	if ref, known := r.byClient[id]; known {
		return ref
	}
	return Ref{ClientID: id, Kind: KindUserAssigned}
}

// selector returns the identity with a resource ID or object ID, if its client ID is known.
func (r *resolver) selector(s azure.Selector) (Ref, bool) {
	id, known := r.bySelector[s]
	return r.client(id), known
}

func (r *resolver) podIdentity(i podAzureIdentity) (Ref, bool) {
	id, err := azure.ParseClientID(i.clientID)
	if err != nil {
		return Ref{}, false
	}
	ref := r.client(id)
	ref.Name = i.Name
	return ref, true
}

// unique removes identities that occur twice, and sorts them by name and client ID.
func unique(list []Ref) []Ref {
	slices.SortFunc(list, func(a, b Ref) int {
		return cmp.Or(cmp.Compare(a.String(), b.String()), cmp.Compare(a.ClientID, b.ClientID))
	})
	return slices.CompactFunc(list, func(a, b Ref) bool { return a.ClientID == b.ClientID })
}

func without(list []Ref, id azure.ClientID) []Ref {
	return slices.DeleteFunc(slices.Clone(list), func(r Ref) bool { return r.ClientID == id })
}

// accountClient returns the client ID in the annotation of a service account.
func accountClient(a *survey.Account) (azure.ClientID, bool) {
	if a == nil {
		return "", false
	}
	id, err := azure.ParseClientID(a.Annotations[annotationClientID])
	return id, err == nil
}

// Refs returns all identities of a plan that are settled, by client ID: those whose federated credentials
// can be counted.
func (p *Plan) Refs() []Ref {
	var all []Ref
	for _, w := range p.Workloads {
		all = append(all, w.Identity.all()...)
	}
	for _, o := range p.Objects {
		all = append(all, o.Identity.all()...)
	}
	slices.SortFunc(all, func(a, b Ref) int { return cmp.Compare(a.ClientID, b.ClientID) })
	return slices.CompactFunc(all, func(a, b Ref) bool { return a.ClientID == b.ClientID })
}
