// Package plan computes what has to be created and changed in a cluster so that its workloads get
// tokens of workload identity: from a survey of the cluster it makes a plan, as a pure function.
//
//	p := plan.New(survey, plan.Options{Issuer: issuer})
//	for _, w := range p.Workloads { … }
//
// For each workload the plan says how it gets tokens today, as which identity, what to do next, what
// is missing and what blocks. It never chooses between two identities: it asks. The same survey gives
// the same plan, in the same order.
package plan

import (
	"cmp"
	"slices"
	"strings"
	"unicode"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/survey"
)

// Options are the answers of a person, and what other sources know.
type Options struct {
	// Issuer and ServerVersion replace those of the survey if they are set.
	Issuer, ServerVersion string
	// ClusterName is part of the names of federated credentials. It may be empty.
	ClusterName string
	// TenantID is written into new annotations if it is set.
	TenantID azure.Tenant
	// Audience is that of the federated credentials. The default is [azure.Audience].
	Audience string
	// Identities has the client IDs of resource IDs and object IDs.
	Identities []Known
	// Choices has the client IDs that a person has chosen, by NAMESPACE/ACCOUNT or NAMESPACE/KIND/NAME of
	// a workload. The first is the default of the account.
	Choices map[string][]azure.ClientID
	// Namespace and Selector limit the workloads. Empty: all but those of the system.
	Namespace string
	Selector  labels.Selector
	// Azure means that a person wants the credentials in Azure counted. Existing has them by
	// [Identity.Key], for the identities that were looked at, and Uncounted has the reason for each of the
	// others, by what was asked.
	Azure     bool
	Existing  map[string][]Existing
	Uncounted map[string]string
	// Secrets reports whether Secrets were read.
	Secrets bool
}

// Existing is a federated credential that exists.
type Existing struct{ Name, Issuer, Subject string }

// Plan is the result.
type Plan struct {
	// Schema is the version of the JSON and YAML output.
	Schema  string  `json:"schema"`
	Cluster Cluster `json:"cluster"`
	// Findings are about the cluster as a whole.
	Findings  []Finding  `json:"findings"`
	Workloads []Workload `json:"workloads"`
	// Objects are the objects of other tools that are configured for a managed identity.
	Objects     []Object     `json:"objects"`
	Identities  []Identity   `json:"identities"`
	Credentials []Credential `json:"federatedCredentials"`
	Accounts    []Account    `json:"serviceAccounts"`
	// NotLookedAt are findings about what is not in the plan because it was not read.
	NotLookedAt []Finding `json:"notLookedAt"`
	// None are kinds of which there is no object.
	None    []string `json:"noneFound"`
	Summary Summary  `json:"summary"`

	uses Uses
}

// schema changes when a field is removed or gets another meaning.
const schema = "imds-migrate.plan/v1"

// Cluster is what the plan is about.
type Cluster struct {
	Name          string `json:"name,omitempty"`
	ServerVersion string `json:"kubernetesVersion,omitempty"`
	Issuer        string `json:"issuer,omitempty"`
	Namespaces    int    `json:"namespaces"`
	// SystemNamespaces are left out, and Managed is how many objects of AKS are.
	SystemNamespaces []string     `json:"systemNamespaces"`
	Managed          int          `json:"managedObjects"`
	Ignored          int          `json:"ignoredObjects"`
	PodIdentity      *PodIdentity `json:"aadPodIdentity,omitempty"`
	Webhooks         []string     `json:"webhooks"`
	// CNIPlugin means that the nodes have this project's CNI plugin.
	CNIPlugin bool `json:"cniPlugin,omitempty"`
}

// Summary counts the plan.
type Summary struct {
	Workloads int           `json:"workloads"`
	ByToday   map[Today]int `json:"byToday"`
	// Blocked, Choices and Work are the numbers of workloads and objects by severity.
	Blocked int `json:"blocked"`
	Choices int `json:"choices"`
	Work    int `json:"work"`
	// What is to be created and changed.
	NewCredentials int            `json:"newFederatedCredentials"`
	NewAccounts    int            `json:"newServiceAccounts"`
	Annotations    int            `json:"annotatedServiceAccounts"`
	Labels         int            `json:"labels"`
	ChangedObjects map[string]int `json:"changedObjects"`
	// CredentialsCounted reports whether the federated credentials in Azure were counted.
	CredentialsCounted bool `json:"federatedCredentialsCounted"`
	// Incomplete means that something could not be read.
	Incomplete bool `json:"incomplete"`
}

// builder makes one plan.
type builder struct {
	*survey.Survey
	options    Options
	resolver   *resolver
	pods       *podIdentity
	policies   *policies
	owned      map[string]bool        // namespaces of the system
	operators  map[string]operator    // by [operatorKey]
	references map[string][]reference // by NAMESPACE/KIND/NAME of a workload
	found      []*Object
	needs      []*Object // that work with aad-pod-identity only
	plan       *Plan
}

// New makes a plan. The survey must be finished.
func New(s *survey.Survey, options Options) *Plan {
	options.Audience = cmp.Or(options.Audience, azure.Audience)
	b := &builder{Survey: s, options: options, plan: &Plan{
		Schema: schema, Findings: []Finding{}, Workloads: []Workload{}, Objects: []Object{}, Identities: []Identity{},
		Credentials: []Credential{}, Accounts: []Account{}, NotLookedAt: []Finding{}, None: s.None(),
	}}
	b.cluster()
	b.resolver = newResolver(b)
	b.pods = newPodIdentity(s)
	b.policies = newPolicies(b)
	b.findObjects()
	b.clusterFindings()
	b.workloads()
	b.objects()
	b.credentials()
	b.notLookedAt()
	b.summarize()
	b.plan.uses = b.uses()
	return b.plan
}

// cluster fills the facts about the cluster.
func (b *builder) cluster() {
	c := &b.plan.Cluster
	c.Name = b.options.ClusterName
	c.ServerVersion = cmp.Or(b.options.ServerVersion, b.Survey.ServerVersion)
	c.Issuer = cmp.Or(b.options.Issuer, b.Survey.Issuer)
	c.Ignored = b.Ignored
	c.SystemNamespaces, c.Webhooks = []string{}, []string{}
	c.CNIPlugin = slices.ContainsFunc(b.AllWorkloads(), isCNIPlugin)
	b.owned = map[string]bool{}
	for name := range b.names() {
		switch {
		case b.options.Namespace != "" && name != b.options.Namespace:
		case b.isSystem(name):
			b.owned[name] = true
			c.SystemNamespaces = append(c.SystemNamespaces, name)
		default:
			c.Namespaces++
		}
	}
	slices.Sort(c.SystemNamespaces)
}

// names returns the names of all namespaces, also of those that were not read themselves.
func (b *builder) names() map[string]bool {
	names := map[string]bool{}
	for name := range b.Namespaces {
		names[name] = true
	}
	for ref := range b.Workloads {
		names[ref.Namespace] = true
	}
	return names
}

// isSystem reports whether a namespace belongs to Kubernetes or AKS: AKS's admission enforcer
// keeps webhooks away from it, and its objects come back.
func (b *builder) isSystem(name string) bool {
	if slices.Contains([]string{"kube-system", "kube-public", "kube-node-lease"}, name) {
		return true
	}
	_, controlPlane := b.Namespaces[name].Labels["control-plane"]
	_, managed := b.Namespaces[name].Labels["kubernetes.azure.com/managedby"]
	return controlPlane || managed
}

// isManaged reports whether an add-on manager restores an object after a change.
func isManaged(m survey.Meta) bool {
	return m.Labels["addonmanager.kubernetes.io/mode"] == "Reconcile" || m.Labels["kubernetes.azure.com/managedby"] == "aks"
}

// oneLine replaces line breaks and control characters, which the names in a file may contain: they
// could forge a line of the output, or control the terminal.
func oneLine(text string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(text, "?"))
}

// validNames reports whether all names are valid for namespaces and service accounts, or empty. The names in
// custom resources and files may be anything, such as an option of kubectl.
func validNames(names ...string) bool {
	return !slices.ContainsFunc(names, func(name string) bool {
		return name != "" && len(validation.IsDNS1123Subdomain(name)) > 0
	})
}

// sentence joins the parts of a list for a message.
func sentence(parts []string) string { return strings.Join(parts, ", ") }

// Kind names in output, as kubectl abbreviates them.
var shortKinds = map[string]string{
	"Deployment": "deploy", "StatefulSet": "statefulset", "DaemonSet": "daemonset", "CronJob": "cronjob", "Job": "job",
	"ReplicaSet": "replicaset", "Pod": "pod", "Rollout": "rollout",
}

// Name returns KIND/NAME, such as deploy/app.
func short(kind, name string) string {
	return oneLine(cmp.Or(shortKinds[kind], strings.ToLower(kind)) + "/" + name)
}

// Exit codes.
const (
	ExitNothing = 0
	ExitNotRead = 1
	ExitWork    = 3
	ExitBlocked = 4
)

// ExitCode returns the exit code for the plan: blocked before work, and work before what was not looked
// at. A plan without work is complete only if everything could be read.
func (p *Plan) ExitCode() int {
	switch {
	case p.Summary.Blocked+p.Summary.Choices > 0:
		return ExitBlocked
	case p.Summary.Work > 0 || p.Summary.NewCredentials > 0:
		return ExitWork
	case p.Summary.Incomplete:
		return ExitNotRead
	}
	return ExitNothing
}

// sorted returns the keys of a set in order.
func sorted[T any](set map[string]T) []string {
	keys := make([]string, 0, len(set))
	for key := range set {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}
