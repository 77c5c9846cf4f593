package plan

import (
	"cmp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/survey"
)

// Object is an object of another tool that is configured for a managed identity.
type Object struct {
	Namespace string `json:"namespace,omitempty"`
	Kind      string `json:"kind"`
	Name      string `json:"name"`
	Group     string `json:"group,omitempty"`
	Version   string `json:"version"`
	Tool      string `json:"tool"`
	// Field is what shows it, such as spec.podIdentity.provider: azure.
	Field    string    `json:"field"`
	Identity Selection `json:"identity"`
	// Subjects are the service accounts that its federated credentials are for, as NAMESPACE:NAME.
	Subjects []string `json:"subjects"`
	// NewServiceAccount is the account that the plan creates for the object.
	NewServiceAccount string    `json:"newServiceAccount,omitempty"`
	Changes           []Change  `json:"changes"`
	Severity          Severity  `json:"severity"`
	Findings          []Finding `json:"findings"`

	rule rule
	path []string
	body map[string]any
	apps []*survey.Workload // that use a component of Dapr
}

// Key returns KIND/NAME for a person.
func (o *Object) Key() string { return short(o.Kind, o.Name) }

func (o *Object) find(code, text, fix string) {
	o.Findings = append(o.Findings, finding(code, text, fix))
}

// note is find for what does not stop anybody here.
func (o *Object) note(code, text, fix string) {
	o.find(code, text, fix)
	o.Findings[len(o.Findings)-1].Severity = Note
}

// findObjects finds the objects of the table of rules.
func (b *builder) findObjects() {
	b.findOperators()
	b.references = map[string][]reference{}
	for _, r := range rules {
		for _, o := range b.All(r.group, r.kind) {
			if r.only[0] != "" && text(o.Body, strings.Split(r.only[0], ".")...) != r.only[1] {
				continue
			}
			for _, p := range places(o.Body, strings.Split(r.where, ".")...) {
				value, ok := r.applies(p)
				if !ok {
					continue
				}
				found := newObject(r, o, p.path, fieldOf(r, p, value))
				if found.needsPodIdentity() {
					b.needs = append(b.needs, found)
				}
				if !b.leftOut(o) {
					b.addObject(found, p)
				}
			}
		}
	}
	b.findComponents()
	b.findSecrets()
}

// leftOut reports whether an object is not this plan's: one of the system, or one that an add-on manager
// restores after a change.
func (b *builder) leftOut(o *survey.Object) bool {
	out := isManaged(o.Meta) || b.options.Namespace == "" && b.owned[o.Namespace]
	if out {
		b.plan.Cluster.Managed++
	}
	return out
}

// applies reports whether a mapping is configured for a managed identity.
func (r rule) applies(p place) (value string, ok bool) {
	if r.field == "" {
		return "", true
	}
	value = text(p.value, strings.Split(r.field, ".")...)
	return value, value != "" && slices.Contains(r.values, value)
}

func newObject(r rule, o *survey.Object, path []string, field string) *Object {
	return &Object{Namespace: oneLine(o.Namespace), Kind: o.Kind, Name: o.Name, Group: o.Group, Version: o.Version, Tool: tools[r.code].name,
		Field: oneLine(field), Subjects: []string{}, Changes: []Change{}, Findings: []Finding{}, Identity: Selection{State: StateUnknown},
		rule: r, path: path, body: o.Body}
}

// fieldOf returns the field that shows how an object is configured, with its value.
func fieldOf(r rule, p place, value string) string {
	field := strings.TrimSuffix(strings.Join(p.path, ".")+"."+r.field, ".")
	if value != "" {
		field += ": " + value
	}
	return field
}

// addObject records an object, and the workloads that use it.
func (b *builder) addObject(found *Object, p place) {
	b.nameIdentity(found, p)
	b.found = append(b.found, found)
	switch op := b.operatorOf(found.rule); found.rule.subject {
	case ofOperator, ofReference:
		if op.workload != "" && b.namedAccount(found) == "" {
			b.refer(op.workload, found)
		}
	case ofMounting:
		for _, w := range b.AllWorkloads() {
			if w.Namespace == found.Namespace && mounts(w, found.Name) {
				b.refer(w.Namespace+"/"+short(w.Kind, w.Name), found)
			}
		}
	}
}

// nameIdentity sets the identity that the object names.
func (b *builder) nameIdentity(o *Object, p place) {
	if id, err := azure.ParseClientID(text(p.value, strings.Split(o.rule.client, ".")...)); o.rule.client != "" && err == nil {
		o.settle(b.resolver.client(id))
		return
	}
	resource := text(p.value, strings.Split(o.rule.resource, ".")...)
	selector, err := azure.ParseResourceID(resource)
	if o.rule.resource == "" || err != nil {
		return
	}
	if ref, known := b.resolver.selector(selector); known {
		o.settle(ref)
		return
	}
	o.find("IMDS143", o.Field+" names the identity by its resource ID, whose client ID is not known", "set --identity="+resource+"=<CLIENT_ID>")
}

func (o *Object) settle(ref Ref) { o.Identity = Selection{State: StateKnown, Default: &ref} }

// mounts reports whether a workload's pods mount a SecretProviderClass.
func mounts(w *survey.Workload, class string) bool {
	return slices.ContainsFunc(w.Template.Spec.Volumes, func(v corev1.Volume) bool {
		return v.CSI != nil && v.CSI.Driver == "secrets-store.csi.k8s.io" && v.CSI.VolumeAttributes["secretProviderClass"] == class
	})
}

// objects completes the objects when the identities of the workloads are known.
func (b *builder) objects() {
	for _, o := range b.found {
		if b.options.Namespace != "" && o.Namespace != "" && o.Namespace != b.options.Namespace {
			continue
		}
		b.complete(o)
		b.plan.Objects = append(b.plan.Objects, *o)
	}
	slices.SortStableFunc(b.plan.Objects, func(x, y Object) int {
		return cmp.Or(cmp.Compare(x.Namespace, y.Namespace), cmp.Compare(x.Kind, y.Kind), cmp.Compare(x.Name, y.Name), cmp.Compare(x.Field, y.Field))
	})
}

// complete adds subjects, changes and findings.
func (b *builder) complete(o *Object) {
	switch o.rule.subject {
	case ofMounting:
		b.mounted(o)
	case ofReference, ofOperator:
		b.ofOperator(o)
	case ofApps:
		b.ofApps(o)
	}
	if o.rule.system || o.rule.emptyIsSystem && o.Identity.State == StateUnknown {
		o.find("IMDS110", o.Field+" uses the system-assigned identity", "create a user-assigned identity with the same roles")
	}
	b.change(o)
	if t := tools[o.rule.code]; len(o.Changes) > 0 || len(o.rule.set) == 0 || o.rule.immutable { // or else it is done
		o.find(o.rule.code, t.name+": "+o.Field, t.change)
	}
	slices.SortStableFunc(o.Findings, func(x, y Finding) int { return cmp.Compare(x.Code, y.Code) })
	o.Severity = worst(o.Findings)
}

// namedAccount returns the account that an object names, as NAMESPACE:NAME, or "".
func (b *builder) namedAccount(o *Object) string {
	path := []string{"spec"}
	name := text(o.body, "spec", "serviceAccountName")
	namespace := o.Namespace
	if o.rule.code == "IMDS203" {
		path = append(path, "provider", "azurekv", "serviceAccountRef")
		name = text(at(o.body, path...), "name")
		namespace = cmp.Or(text(at(o.body, path...), "namespace"), o.Namespace)
	}
	if o.rule.subject != ofReference || name == "" || namespace == "" {
		return ""
	}
	return namespace + ":" + name
}

// ofOperator completes an object for which its operator asks, with its own account or with one that the
// object names.
func (b *builder) ofOperator(o *Object) {
	op := b.operatorOf(o.rule)
	subject := cmp.Or(b.namedAccount(o), op.subject())
	if o.rule.code == "IMDS203" && b.namedAccount(o) == "" {
		// Without a reference the operator's account counts, whose annotation has one client ID for all stores.
		o.NewServiceAccount = o.Name
		subject = cmp.Or(o.Namespace, op.namespace) + ":" + o.Name
	}
	if namespace, account, _ := strings.Cut(subject, ":"); !validNames(namespace, account) {
		o.NewServiceAccount = ""
		o.find("IMDS156", namespace+"/"+account+" is not valid as the name of a service account in a namespace", "correct the name: nothing is written for it")
		return
	}
	if subject == "" {
		o.note("IMDS108", "the service account of the pods of "+o.Tool+" is not known", "create the credential for their account")
		return
	}
	o.Subjects = []string{subject}
	if o.Identity.State != StateUnknown || o.rule.system {
		return
	}
	if named := b.namedAccount(o); named != "" {
		id, annotated := accountClient(b.Accounts[strings.Replace(named, ":", "/", 1)])
		if annotated {
			o.settle(b.resolver.client(id))
			return
		}
		o.find("IMDS108", "ServiceAccount "+named+" has no annotation "+annotationClientID, "set it to the identity's client ID")
		return
	}
	key := strings.Replace(subject, ":", "/", 1)
	if chosen := b.options.Choices[key]; len(chosen) > 0 {
		o.settle(b.resolver.client(chosen[0]))
		return
	}
	i := slices.IndexFunc(b.plan.Workloads, func(w Workload) bool { return w.Namespace+"/"+w.Key() == op.workload })
	if i >= 0 && b.plan.Workloads[i].Identity.State == StateKnown {
		o.Identity = b.plan.Workloads[i].Identity
		return
	}
	o.find("IMDS108", "neither the object nor the pods of "+o.Tool+" name the identity", "set --choose="+key+"=<CLIENT_ID>")
}

// ofApps completes a volume: the credential is for the account of each pod that mounts it.
func (b *builder) ofApps(o *Object) {
	o.note("IMDS108", "the credential is for the service account of each pod that mounts the volume, which is not known here", "create one for each of them")
}

// usedBy reports whether a workload mounts the object, or has it as a component.
func (o *Object) usedBy(w *survey.Workload) bool {
	if o.rule.code == "IMDS210" {
		return slices.Contains(o.apps, w)
	}
	return w.Namespace == o.Namespace && mounts(w, o.Name)
}

// mounted completes a SecretProviderClass or a component of Dapr: the credential is for the accounts of the pods that mount it.
func (b *builder) mounted(o *Object) {
	accounts, identities := map[string]bool{}, []Ref{}
	for i := range b.plan.Workloads {
		if w := &b.plan.Workloads[i]; o.usedBy(w.source) && w.validNames() {
			accounts[w.Namespace+":"+w.account()] = true
			identities = append(identities, w.Identity.all()...)
		}
	}
	o.Subjects = sorted(accounts)
	if len(o.Subjects) == 0 {
		o.note("IMDS108", "no pod uses it: the accounts of its credentials are not known", "delete it, or plan again when pods use it")
	}
	if o.Identity.State != StateUnknown || o.rule.emptyIsSystem {
		return
	}
	switch identities = unique(identities); {
	case len(identities) == 1:
		o.settle(identities[0])
	case len(identities) > 1:
		o.Identity = Selection{State: StateAmbiguous, Candidates: identities}
		o.find("IMDS107", choiceText(identities), "use one SecretProviderClass for each identity")
	}
}
