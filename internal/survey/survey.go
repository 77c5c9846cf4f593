// Package survey reads the objects of a cluster that matter for tokens of Azure, from the API server
// or from files, into one model. Both ways end in the same function, so that they give the same
// result for the same objects.
//
//	s := survey.New(survey.Config{})
//	err := s.ReadFile("dump.yaml", file)        // or
//	err := s.ReadCluster(ctx, client, progress)
//	s.Finish()
//
// The package reads only. It knows which kinds there are, which of them have pods, and who owns a
// pod. It judges nothing: that is the work of package plan.
//
// # Security considerations
//
// Secrets are read only with [Config.Secrets]. Of a Secret, and of a ConfigMap's long texts, the
// survey keeps the names of the keys and the signs of package signs, which contain no value but
// the ID of an identity.
package survey

import (
	"cmp"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"imds-oidc-proxy/internal/signs"
)

// Config says what is read.
type Config struct {
	// Secrets also reads Secrets.
	Secrets bool
	// Kinds limits the reading of a cluster to these kinds, by [Kind.String]. Nil: all.
	Kinds []string
	// Namespace limits the reading of a cluster to one namespace, except for kinds that are needed
	// from everywhere. Empty: all.
	Namespace string
	// Within also limits those kinds to the namespace.
	Within bool
}

// Ref is the name of an object. The version is not part of it.
type Ref struct{ Group, Kind, Namespace, Name string }

// Compare orders references by namespace, kind and name.
func (r Ref) Compare(other Ref) int {
	return cmp.Or(cmp.Compare(r.Namespace, other.Namespace), cmp.Compare(r.Kind, other.Kind),
		cmp.Compare(r.Name, other.Name), cmp.Compare(r.Group, other.Group))
}

// Meta is the metadata that the survey keeps of each object.
type Meta struct {
	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// Object is an object of a kind without pods.
type Object struct {
	Ref
	Version string
	Meta
	Body map[string]any
}

// Account is a service account.
type Account struct {
	Ref
	Meta
	PullSecrets []string
}

// Text is one key of a ConfigMap or Secret.
type Text struct {
	// Value is the value if it is short and of a ConfigMap, or the client ID of an identity. Otherwise it is
	// empty.
	Value string
	// AsVariable is the signs if the key is the name of an environment variable. AsFile is those of a
	// file. Instance reports whether the text requests instance metadata.
	AsVariable, AsFile []signs.Sign
	Instance           bool
}

// Workload is an object with a pod template, or a pod without an owner.
type Workload struct {
	Ref
	Version string
	Meta
	// Template is the pod template, and Path its path in the object, such as spec.template. The path
	// is empty for a pod.
	Template corev1.PodTemplateSpec
	Path     string
	// Selector has the labels by which the object finds its pods. Most kinds do not allow to change it.
	Selector map[string]string
	// Pods is the number of pods that have not ended. Proxied is how many of them have the proxy.
	Pods, Proxied int
	// Live is what webhooks have added to the pods.
	Live Injected
	// Foreign means that the object has no ordinary pod template: Template is that of one of its pods, if
	// it has any. Signs are those of its own text.
	Foreign bool
	Signs   []signs.Sign
	// Manager is the object that created the workload, such as KIND/NAME of an operator's custom
	// resource, or empty.
	Manager string
	// Static means that the kubelet reads the pod from a file.
	Static bool
	// Held is OnDelete or paused if a change of the template does not replace the pods.
	Held string
	// Schedule and TimeZone are those of a CronJob.
	Schedule, TimeZone string
	// Ended means that a Job has ended, so that it creates no pods any more.
	Ended bool
}

// Injected is what webhooks have added to running pods.
type Injected struct {
	Proxy     bool // a container named azwi-proxy
	TokenFile bool // the variable AZURE_FEDERATED_TOKEN_FILE
	Image     string
}

// Unread is a kind, or a part of the input, that was not looked at.
type Unread struct {
	// Code is the reason: one of the constants below.
	Code string
	// What is the kind in plural with its group, or the name of a file.
	What string
	// Why says what to do about it.
	Why string
}

// The reasons of [Unread].
const (
	Forbidden = "forbidden" // the person may not list the kind
	Version   = "version"   // the version of the kind is unknown
	Malformed = "malformed" // the object cannot be decoded
	Missing   = "missing"   // the files have no object of a kind that every cluster has
)

// Survey is everything that was read.
type Survey struct {
	config Config

	// Live reports whether the objects come from a cluster.
	Live bool
	// ServerVersion is the version of Kubernetes, such as v1.35.2, and Issuer the issuer of
	// service account tokens. Both are empty if they are not known.
	ServerVersion, Issuer string
	// NoIssuer and NoVersion are why they are not known.
	NoIssuer, NoVersion string

	Namespaces map[string]Meta
	Accounts   map[string]*Account // by namespace/name
	Configs    map[Ref]map[string]Text
	Workloads  map[Ref]*Workload
	// Owners has the workload of each pod, by namespace/name.
	Owners  map[string]Ref
	Objects map[Ref]*Object
	// Found is the number of objects of each kind of the table, by [Kind.String].
	Found map[string]int
	// Ignored is the number of objects of other kinds.
	Ignored int
	Unread  []Unread

	// sorted and byKind are the workloads and the objects in order, once everything was read. The keys are
	// GROUP/KIND.
	sorted []*Workload
	byKind map[string][]*Object

	parents map[Ref]Ref // of objects that a controller created
	pods    []pod
	bad     int
}

// New returns an empty survey.
func New(config Config) *Survey {
	return &Survey{
		config: config, Namespaces: map[string]Meta{}, Accounts: map[string]*Account{}, Configs: map[Ref]map[string]Text{},
		Workloads: map[Ref]*Workload{}, Objects: map[Ref]*Object{}, Owners: map[string]Ref{}, Found: map[string]int{}, parents: map[Ref]Ref{},
	}
}

// unread adds a reason once.
func (s *Survey) unread(code, what, why string) {
	u := Unread{code, what, why}
	if !slices.Contains(s.Unread, u) {
		s.Unread = append(s.Unread, u)
	}
}

// All returns the objects of a kind, in order. The survey must be finished, and the result must not be
// changed.
func (s *Survey) All(group, kind string) []*Object { return s.byKind[group+"/"+kind] }

// AllWorkloads returns the workloads in order. The survey must be finished, and the result must not be
// changed.
func (s *Survey) AllWorkloads() []*Workload { return s.sorted }

// index sorts workloads and objects once: a plan asks for them for each workload.
func (s *Survey) index() {
	s.sorted = slices.SortedFunc(maps.Values(s.Workloads), func(a, b *Workload) int { return a.Ref.Compare(b.Ref) })
	s.byKind = map[string][]*Object{}
	for _, o := range slices.SortedFunc(maps.Values(s.Objects), func(a, b *Object) int { return a.Ref.Compare(b.Ref) }) {
		key := o.Group + "/" + o.Kind
		s.byKind[key] = append(s.byKind[key], o)
	}
}

// None returns the kinds of the table without an object, in the order of the table, except for those
// that were not looked at.
func (s *Survey) None() []string {
	var none []string
	for _, k := range Kinds {
		name := k.String()
		skipped := k.Kind == "Secret" && !s.config.Secrets ||
			slices.ContainsFunc(s.Unread, func(u Unread) bool { return u.What == name && u.Code != Malformed })
		if s.Found[name] == 0 && !skipped {
			none = append(none, name)
		}
	}
	return none
}
