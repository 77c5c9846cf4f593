package plan

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"imds-oidc-proxy/internal/azure"
)

const (
	// maxCredentials is how many federated credentials an identity or an application can have.
	maxCredentials = 20
	// maxNameLength is the length of the longest name of a federated credential.
	maxNameLength = 120
	// hashLength is the number of hexadecimal digits of the hash in a name.
	hashLength = 8
)

// Identity is an identity that needs federated credentials.
type Identity struct {
	Ref
	Subscription  string `json:"subscription,omitempty"`
	ResourceGroup string `json:"resourceGroup,omitempty"`
	AzureName     string `json:"azureName,omitempty"`
	// New is the number of credentials to create, and Existing that of those in Azure: nil if it was not
	// counted.
	New      int       `json:"newFederatedCredentials"`
	Existing *int      `json:"existingFederatedCredentials,omitempty"`
	Findings []Finding `json:"findings"`
}

// Key identifies an identity.
func (i Identity) Key() string { return string(i.ClientID) }

// Total returns the number of its federated credentials after the plan.
func (i Identity) Total() int {
	if i.Existing == nil {
		return i.New
	}
	return i.New + *i.Existing
}

// Credential is a federated credential to create.
type Credential struct {
	Name     string         `json:"name"`
	Issuer   string         `json:"issuer"`
	Subject  string         `json:"subject"`
	Audience string         `json:"audience"`
	ClientID azure.ClientID `json:"clientID"`
	Identity string         `json:"identity"`
	// Reasons are what it is for, such as deploy/app: pod identity.
	Reasons []string `json:"reasons"`
}

// need is a service account that needs a credential of an identity.
type need struct {
	client             azure.ClientID
	namespace, account string
}

// credentials plans accounts and federated credentials, when all workloads and objects are judged.
func (b *builder) credentials() {
	needs, accounts := map[need][]string{}, map[string]*Account{}
	b.ofWorkloads(needs, accounts)
	b.ofObjects(needs, accounts)
	for _, key := range sorted(accounts) {
		b.plan.Accounts = append(b.plan.Accounts, *accounts[key])
	}
	identities, declared := map[azure.ClientID]*Identity{}, b.declared()
	for n, reasons := range needs {
		i := b.identity(identities, b.resolver.client(n.client))
		if b.exists(declared, n) {
			continue
		}
		i.New++
		slices.Sort(reasons)
		subject := subjectOf(n.namespace, n.account)
		b.plan.Credentials = append(b.plan.Credentials, Credential{
			Name: b.credentialName(n), Issuer: b.plan.Cluster.Issuer, Subject: subject, Audience: b.options.Audience,
			ClientID: n.client, Identity: i.String(), Reasons: slices.Compact(reasons),
		})
	}
	slices.SortFunc(b.plan.Credentials, func(x, y Credential) int {
		return cmp.Or(cmp.Compare(x.Identity, y.Identity), cmp.Compare(x.ClientID, y.ClientID), cmp.Compare(x.Subject, y.Subject))
	})
	for _, i := range identities {
		b.checkIdentity(i)
		b.plan.Identities = append(b.plan.Identities, *i)
	}
	slices.SortFunc(b.plan.Identities, func(x, y Identity) int {
		return cmp.Or(cmp.Compare(x.String(), y.String()), cmp.Compare(x.ClientID, y.ClientID))
	})
	b.credentialFindings()
}

func subjectOf(namespace, account string) string {
	return "system:serviceaccount:" + namespace + ":" + account
}

// ofWorkloads adds what the workloads need. The credentials of those that have workload identity already
// are believed, unless Azure was looked at.
func (b *builder) ofWorkloads(needs map[need][]string, accounts map[string]*Account) {
	for i := range b.plan.Workloads {
		w := &b.plan.Workloads[i]
		if w.objectsOnly || !w.validNames() || w.Identity.State != StateKnown || slices.ContainsFunc(w.Findings, stops) || !w.needs() && !(w.migrated() && b.options.Azure) {
			continue
		}
		for _, ref := range w.Identity.all() {
			if _, counted := b.options.Existing[string(ref.ClientID)]; w.migrated() && !counted {
				continue
			}
			n := need{ref.ClientID, w.Namespace, w.account()}
			needs[n] = append(needs[n], w.Key()+": "+string(w.Today))
		}
		if w.needs() && w.Identity.Default != nil && !w.csiOnly || w.NewServiceAccount != "" {
			b.addAccount(w, accounts)
		}
	}
}

// stops reports whether a finding stops the use of workload identity itself, and not only the sidecar.
func stops(f Finding) bool {
	return f.Severity == Choice || slices.Contains([]string{"IMDS110", "IMDS112", "IMDS113", "IMDS119", "IMDS122", "IMDS124"}, f.Code)
}

// ofObjects adds what the objects of other tools need.
func (b *builder) ofObjects(needs map[need][]string, accounts map[string]*Account) {
	for i := range b.plan.Objects {
		o := &b.plan.Objects[i]
		for _, ref := range o.Identity.all() {
			for _, subject := range o.Subjects {
				namespace, account, _ := strings.Cut(subject, ":")
				n := need{ref.ClientID, namespace, account}
				needs[n] = append(needs[n], o.Key()+": "+o.Tool)
				if o.rule.subject == ofReference {
					b.annotate(accounts, namespace, account, ref, o.Key())
				}
			}
		}
	}
}

// annotate plans the annotations of an account whose tool reads them itself.
func (b *builder) annotate(accounts map[string]*Account, namespace, account string, ref Ref, user string) {
	existing := b.Accounts[namespace+"/"+account]
	annotated, has := accountClient(existing)
	if has && annotated == ref.ClientID || b.isSystem(namespace) {
		return
	}
	key := namespace + "/" + account
	if accounts[key] == nil {
		accounts[key] = &Account{Namespace: namespace, Name: account, New: existing == nil && b.Found["serviceaccounts"] > 0, ClientID: ref.ClientID,
			TenantID: cmp.Or(ref.TenantID, string(b.options.TenantID)), Workloads: []string{}}
	}
	accounts[key].Workloads = append(accounts[key].Workloads, user)
}

func (b *builder) identity(all map[azure.ClientID]*Identity, ref Ref) *Identity {
	if i := all[ref.ClientID]; i != nil {
		return i
	}
	i := &Identity{Ref: ref, Findings: []Finding{}}
	if id, ok := ParseResourceID(ref.ResourceID); ok {
		i.Subscription, i.ResourceGroup, i.AzureName = id.Subscription, id.Group, id.Name
	}
	if existing, counted := b.options.Existing[i.Key()]; counted {
		n := len(existing)
		i.Existing = &n
	}
	all[ref.ClientID] = i
	return i
}

// credentialName returns a valid name: [CLUSTER-]NAMESPACE-ACCOUNT-HASH. The hash of issuer and subject keeps
// names of different accounts different where dots are replaced or the name is cut, and those of
// different clusters: a second write of one name would replace the first credential.
func (b *builder) credentialName(n need) string {
	sum := sha256.Sum256([]byte(b.plan.Cluster.Issuer + subjectOf(n.namespace, n.account)))
	name := n.namespace + "-" + n.account
	if b.options.ClusterName != "" {
		name = b.options.ClusterName + "-" + name
	}
	name = strings.Map(func(r rune) rune {
		if r < 0x80 && (r >= '0' && r <= '9' || r >= 'A' && r <= 'Z' || r >= 'a' && r <= 'z' || r == '-' || r == '_') {
			return r
		}
		return '-'
	}, name)
	name = strings.TrimLeft(name, "-_") // the first character must be a letter or a digit
	name = name[:min(len(name), maxNameLength-hashLength-1)]
	return name + "-" + hex.EncodeToString(sum[:])[:hashLength]
}

// checkIdentity adds findings about one identity.
func (b *builder) checkIdentity(i *Identity) {
	if i.Kind == KindUserAssigned && i.ResourceID == "" && i.New > 0 {
		i.Findings = append(i.Findings, finding("IMDS142", "the resource ID of client ID "+string(i.ClientID)+" is not known", "set --identity=<RESOURCE_ID>="+string(i.ClientID)+", or use --azure"))
	}
	if i.Total() > maxCredentials {
		i.Findings = append(i.Findings, finding("IMDS106", fmt.Sprintf("identity %s would have %d federated credentials: at most %d are possible", i.Ref, i.Total(), maxCredentials),
			"use a second identity with the same roles, fewer service accounts, or an identity binding"))
	}
}

// credentialFindings marks workloads whose credential does not exist, and those of identities with too many.
func (b *builder) credentialFindings() {
	missing := map[string]bool{}
	for _, c := range b.plan.Credentials {
		missing[c.Subject] = true
	}
	full := map[azure.ClientID]Finding{}
	for _, i := range b.plan.Identities {
		for _, f := range i.Findings {
			if f.Code == "IMDS106" {
				full[i.ClientID] = f
			}
		}
	}
	for n := range b.plan.Workloads {
		w := &b.plan.Workloads[n]
		if missing[subjectOf(w.Namespace, w.account())] && w.Identity.State == StateKnown && (w.needs() || w.migrated()) {
			w.find("IMDS105", "no federated credential is known for ServiceAccount "+w.account(), "imds-migrate plan -o az writes the commands")
		}
		for _, ref := range w.Identity.all() {
			if f, isFull := full[ref.ClientID]; isFull {
				w.Findings = append(w.Findings, f)
			}
		}
		b.finish(w)
	}
}

// Count returns the number of an identity's federated credentials for a person.
func (i Identity) Count(counted bool) string {
	if i.Existing != nil {
		return fmt.Sprintf("%s will have %d of %d federated credentials", i.Ref, i.Total(), maxCredentials)
	}
	text := fmt.Sprintf("%s: %d of at most %d, by this plan alone", i.Ref, i.New, maxCredentials)
	if counted {
		text += " (its credentials in Azure could not be counted)"
	}
	return text
}
