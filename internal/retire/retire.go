// Package retire computes what can be removed when a migration has come so far, and in which order: the
// sidecars that nobody asks any more, and aad-pod-identity.
//
//	r, err := retire.New(survey, plan, retire.Options{Report: report, Now: time.Now()})
//	for _, step := range r.Steps { … }
//
// A step is a list of shell commands with the checks that must succeed before. The package runs none of
// them, and changes nothing. What still has to stay is listed with the reason. The same input gives the
// same steps, in the same order.
package retire

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"imds-oidc-proxy/internal/plan"
	"imds-oidc-proxy/internal/report"
	"imds-oidc-proxy/internal/survey"
)

// Options are what else is known.
type Options struct {
	// Report says which sidecars nobody asks. Nil: nothing was observed, so no sidecar is removed.
	Report *report.Report
	Now    time.Time
	// Namespace is the only one that was read. Empty: all.
	Namespace string
	// Flags choose the cluster that was read, in kubectl's form, such as --context=shop. They are a part of all
	// commands for a cluster.
	Flags []string
}

// maxAge is the age of the oldest report that counts: a client may have asked since. maxAhead is how far the clock of
// the machine that made the report may be ahead.
const maxAge, maxAhead = 24 * time.Hour, 5 * time.Minute

// Retirement is the result.
type Retirement struct {
	// Schema is the version of the JSON output.
	Schema  string `json:"schema"`
	Cluster string `json:"cluster,omitempty"`
	// Observed is the time of the report. Zero: there is none.
	Observed time.Time `json:"observed,omitzero"`
	Steps    []Step    `json:"steps"`
	// Stays is what is there and cannot be removed yet.
	Stays []Stay `json:"stays"`
	// NotRead are the kinds and objects that matter here and that could not be read.
	NotRead []string `json:"notRead"`
	// None are kinds that may use aad-pod-identity and that the files do not contain: if the cluster has some, they must be exported too.
	None []string `json:"noneFound"`
	// Search is a command that finds what is left in repositories. It is empty without aad-pod-identity.
	Search string `json:"search,omitempty"`
}

const schema = "imds-migrate.retire/v1"

// Step is one step. Its commands may run when the commands of the steps before have succeeded, and its
// checks succeed.
type Step struct {
	Title string `json:"title"`
	// Reason says why the step is possible, or what to know about it.
	Reason string  `json:"reason,omitempty"`
	Checks []Check `json:"checks"`
	// Commands are for a POSIX shell. Azure means that they change something outside of the cluster.
	Commands []string `json:"commands"`
	Azure    bool     `json:"azure,omitempty"`
	// ByHand says what a person has to do, because no command can. Commands then only show something.
	ByHand string `json:"byHand,omitempty"`
	// Patch is the same change for a manifest, if it is one.
	Patch *plan.Patch `json:"-"`
}

// Check is a command that must succeed before those of its step.
type Check struct {
	Command string `json:"command"`
	// Failed says what it means if the command fails.
	Failed string `json:"failed"`
	// Wait means that it may take some minutes until it succeeds.
	Wait bool `json:"wait,omitempty"`
}

// Stay is something that cannot be removed yet.
type Stay struct {
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
	Reason    string `json:"reason"`
}

// builder makes one list.
type builder struct {
	*survey.Survey
	plan    *plan.Plan
	options Options
	uses    plan.Uses
	out     *Retirement
	// planned are the workloads of the plan, and observed those of the report.
	planned  map[survey.Ref]*plan.Workload
	observed map[observed]*report.Workload
	// mounting has the SecretProviderClass that the pods of a workload mount and for which the driver asks
	// aad-pod-identity in their name.
	mounting map[survey.Ref]string
	// kept are workloads that keep the label of aad-pod-identity permanently, and unlabelled those that lose it
	// together with the sidecar.
	kept, unlabelled map[survey.Ref]bool
}

// observed is the name of a workload in a report.
type observed struct{ namespace, group, kind, name string }

// New computes the steps. The plan must be that of the survey. The error is about the report.
func New(s *survey.Survey, p *plan.Plan, options Options) (*Retirement, error) {
	b := &builder{Survey: s, plan: p, options: options, uses: p.Uses(), planned: map[survey.Ref]*plan.Workload{}, observed: map[observed]*report.Workload{},
		mounting: map[survey.Ref]string{}, kept: map[survey.Ref]bool{}, unlabelled: map[survey.Ref]bool{}, out: &Retirement{
			Schema: schema, Cluster: p.Cluster.Name, Steps: []Step{}, Stays: []Stay{}, NotRead: []string{}, None: []string{},
		}}
	if err := b.checkReport(); err != nil {
		return nil, err
	}
	if err := b.index(); err != nil {
		return nil, err
	}
	b.notRead()
	b.sidecars()
	b.labels()
	b.podIdentity()
	return b.out, nil
}

// index fills the maps. The error is about the report.
func (b *builder) index() error {
	if r := b.options.Report; r != nil {
		for i := range r.Workloads {
			w := &r.Workloads[i]
			key := observed{w.Namespace, w.Group, w.Kind, w.Name}
			if b.observed[key] != nil {
				return fmt.Errorf("the report has %s of namespace %s twice: make a new one", printable(w.Key()), printable(w.Namespace))
			}
			b.observed[key] = w
		}
	}
	for i := range b.plan.Workloads {
		w := &b.plan.Workloads[i]
		b.planned[w.Ref()] = w
		for _, o := range b.uses.Needs {
			if o.Kind == classKind && o.UsedBy(w) {
				b.mounting[w.Ref()] = o.Key()
			}
		}
	}
	return nil
}

// checkReport refuses a report that is old, or of another cluster.
func (b *builder) checkReport() error {
	r := b.options.Report
	if r == nil {
		return nil
	}
	if r.Cluster != "" && b.plan.Cluster.Name != "" && r.Cluster != b.plan.Cluster.Name {
		return fmt.Errorf("the report is about cluster %q, and this is %q: make a report of this cluster", r.Cluster, b.plan.Cluster.Name)
	}
	if age := b.options.Now.Sub(r.Time); age > maxAge {
		return fmt.Errorf("the report is %s old, and somebody may have asked since: make a new one (it may be %s old)", report.Days(age), report.Days(maxAge))
	}
	if ahead := r.Time.Sub(b.options.Now); ahead > maxAhead {
		return fmt.Errorf("the report is from %s, which is in the future: correct the clock of this machine, or make a new report", r.Time.UTC().Format(time.RFC3339))
	}
	b.out.Observed = r.Time
	return nil
}

// notRead finds what was not read and may use aad-pod-identity.
func (b *builder) notRead() {
	for _, u := range b.Unread {
		i := slices.IndexFunc(survey.Kinds, func(k survey.Kind) bool { return k.String() == u.What })
		irrelevant := u.Code == survey.Missing && u.What != "pods"
		if i >= 0 {
			k := survey.Kinds[i]
			irrelevant = irrelevant || k.Template == "" && k.Kind != "Pod" && k.Group != podIdentityGroup && k.Kind != classKind && k.Group != kedaGroup
		}
		if !irrelevant {
			b.out.NotRead = append(b.out.NotRead, u.What+": "+u.Why)
		}
	}
	b.missing()
	slices.Sort(b.out.NotRead)
}

// missing finds the kinds that files do not contain. Every cluster has Deployments and DaemonSets, so these were not
// exported, and nothing says whether aad-pod-identity runs. If pods mount a SecretProviderClass, there is one. Of the
// others, there may be none.
func (b *builder) missing() {
	if b.Live || b.options.Namespace != "" { // then aad-pod-identity stays in any case
		return
	}
	const classes = "secretproviderclasses.secrets-store.csi.x-k8s.io"
	must, may := []string{"deployments.apps", "daemonsets.apps"}, []string{"statefulsets.apps", "cronjobs.batch", "jobs.batch",
		"triggerauthentications." + kedaGroup, "clustertriggerauthentications." + kedaGroup}
	if slices.ContainsFunc(b.AllWorkloads(), mountsClass) {
		must = append(must, classes)
	} else {
		may = append(may, classes)
	}
	for _, name := range must {
		if b.Found[name] == 0 {
			b.out.NotRead = append(b.out.NotRead, name+": the files contain none: add them with kubectl get "+name+" --all-namespaces --output=yaml")
		}
	}
	for _, name := range may {
		if b.Found[name] == 0 {
			b.out.None = append(b.out.None, name)
		}
	}
}

// mountsClass reports whether the pods of a workload mount a SecretProviderClass.
func mountsClass(w *survey.Workload) bool {
	return slices.ContainsFunc(w.Template.Spec.Volumes, func(v corev1.Volume) bool {
		return v.CSI != nil && v.CSI.Driver == "secrets-store.csi.k8s.io"
	})
}

func (b *builder) step(s Step) {
	s.Checks, s.Commands = nonNil(s.Checks), nonNil(s.Commands)
	b.out.Steps = append(b.out.Steps, s)
}

func nonNil[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

func (b *builder) stays(namespace, name, reason string) {
	b.out.Stays = append(b.out.Stays, Stay{printable(namespace), printable(name), printable(reason)})
}

// valid reports whether an object can have these names. Others come from a file that somebody has
// written by hand, and are not put into a command.
func valid(names ...string) bool {
	return !slices.ContainsFunc(names, func(name string) bool {
		return name != "" && len(validation.IsDNS1123Subdomain(name)) > 0
	})
}

// ExitCode returns 3 if there is something to remove, 4 if all that is left has to stay for now, and 1 if
// nothing was found but not everything could be read.
func (r *Retirement) ExitCode() int {
	switch {
	case len(r.Steps) > 0:
		return plan.ExitWork
	case len(r.Stays) > 0:
		return plan.ExitBlocked
	case len(r.NotRead) > 0:
		return plan.ExitNotRead
	}
	return plan.ExitNothing
}

// sidecars adds a step for each sidecar that can go (docs/migration.md, step 12).
func (b *builder) sidecars() {
	for i := range b.plan.Workloads {
		w := &b.plan.Workloads[i]
		switch {
		case w.Today == plan.ByPodIdentity || w.Today == plan.ByNodeIdentity:
			b.stays(w.Namespace, w.Key(), "not migrated yet ("+string(w.Today)+"); next: "+w.Next.Brief)
		case w.Today != plan.BySidecar:
		case !valid(w.Namespace, w.Name):
			b.stays(w.Namespace, w.Key(), notValid)
		default:
			if reason, allowed := b.verdict(w); allowed {
				b.removeSidecar(w, reason)
			} else {
				b.stays(w.Namespace, w.Key(), reason)
			}
		}
	}
}

// otherSidecar is the code of the sidecar of azure-workload-identity, which has no command check.
const otherSidecar = "IMDS149"

const notValid = "the API server does not allow this name: correct the file"

// verdict returns what the report says about a workload.
func (b *builder) verdict(w *plan.Workload) (reason string, canGo bool) {
	if b.options.Report == nil {
		return "nothing was observed: set --report to the output of imds-migrate report --output=json", false
	}
	if r := b.observed[observed{w.Namespace, w.Group, w.Kind, w.Name}]; r != nil {
		return "report: " + string(r.Verdict) + ": " + r.Text, r.Verdict == report.CanGo
	}
	return "the report does not have it: make one of all namespaces", false
}

// removeSidecar removes the annotations of the proxy, and in the same restart the label of
// aad-pod-identity.
func (b *builder) removeSidecar(w *plan.Workload, reason string) {
	s := Step{Title: "remove the sidecar of " + w.Namespace + " " + w.Key(), Reason: printable(reason)}
	if i := b.plan.Cluster.PodIdentity; i == nil || !i.Running {
		s.Reason += ". Without the redirect its pods reach the node's IMDS: remove the identities from the nodes first, or restrict it (docs/migration.md, step 9)"
	}
	label := b.removable(w)
	b.unlabelled[w.Ref()] = label
	if label {
		s.Title += ", and the label " + bindingLabel
	}
	patch, fixed := w.Removal(label, true)
	if fixed = cmp.Or(w.Written(), fixed); fixed != "" {
		s.ByHand = printable(fixed) + ": change it where it was made (docs/migration.md, step 12)"
		b.step(s)
		return
	}
	if len(patch.Changes) == 0 {
		b.stays(w.Namespace, w.Key(), "the pods have the sidecar and their template does not request it: restart them")
		return
	}
	end := b.options.Report.Time.Add(maxAge)
	s.Checks = append(s.Checks, Check{Command: fmt.Sprintf(`[ "$(date +%%s)" -lt %d ]`, end.Unix()),
		Failed: "the report is older than " + report.Days(maxAge) + ": run imds-migrate report and imds-migrate retire again"})
	if label {
		s.Checks = append(s.Checks, b.notAsking(w)...)
	}
	b.change(&s, w, patch)
	b.step(s)
}

// change adds the commands of a patch of a workload. It is a step by hand if the patch alone does not restart the pods:
// then kubectl rollout status never succeeds.
func (b *builder) change(s *Step, w *plan.Workload, patch plan.Patch) {
	s.Patch = &patch
	rollout := ""
	switch held := w.Held(); {
	case held == "OnDelete":
		s.ByHand = "run this command, then delete the pods of " + w.Key() + " one after the other: with the update strategy OnDelete, only new pods have the change"
	case held != "":
		s.ByHand = "run this command, then resume " + w.Key() + ": it is paused, so its pods are not replaced"
	case w.Group == "apps" && slices.Contains([]string{"Deployment", "StatefulSet", "DaemonSet"}, w.Kind):
		rollout = b.kubectl(w.Namespace, "rollout", "status", w.Key(), "--timeout=10m")
		s.Checks = append(s.Checks, Check{Command: rollout, Failed: "a change of " + w.Key() + " is not complete"})
	}
	s.Commands = append(s.Commands, b.kubectl(w.Namespace, "patch", target(w), "--type=merge", "--patch="+mergePatch(patch)))
	if rollout != "" {
		s.Commands = append(s.Commands, rollout)
	}
}

// removable reports whether the label of aad-pod-identity is on the pods of a workload, and can be removed:
// not if the object's selector has it, and not while the pods mount a volume that needs it.
func (b *builder) removable(w *plan.Workload) bool {
	_, labelled, selected := w.Label()
	switch {
	case !labelled:
		return false
	case selected:
		b.kept[w.Ref()] = true
		return false
	}
	return b.mounting[w.Ref()] == ""
}

// labels adds a step for each other workload that has workload identity and still the label of
// aad-pod-identity (docs/migration.md, step 9).
func (b *builder) labels() {
	for i := range b.plan.Workloads {
		w := &b.plan.Workloads[i]
		_, labelled, _ := w.Label()
		if !b.uses.Finished[w.Ref()] || !labelled || b.unlabelled[w.Ref()] {
			continue
		}
		if class := b.mounting[w.Ref()]; class != "" {
			b.stays(w.Namespace, w.Key()+", label "+bindingLabel, class+" uses aad-pod-identity in the name of its pods: change the class first")
			continue
		}
		if !b.removable(w) {
			continue
		}
		b.removeLabel(w)
	}
}

func (b *builder) removeLabel(w *plan.Workload) {
	if !valid(w.Namespace, w.Name) {
		b.stays(w.Namespace, w.Key(), notValid)
		return
	}
	s := Step{Title: "remove the label " + bindingLabel + " of " + w.Namespace + " " + w.Key(), Reason: "its pods use workload identity"}
	patch, fixed := w.Removal(true, false)
	if fixed != "" {
		s.ByHand = printable(fixed)
		b.step(s)
		return
	}
	if w.Today == plan.BySidecar {
		s.Reason = "its pods have the sidecar"
		if w.Pods > 0 && !slices.ContainsFunc(w.Findings, func(f plan.Finding) bool { return f.Code == otherSidecar }) {
			s.Checks = append(s.Checks, Check{Command: strings.Join(append(b.words("imds-migrate verify"), "--namespace="+quote(w.Namespace), quote(strings.ToLower(w.Kind)+"/"+w.Name)), " "),
				Failed: "not all pods of " + w.Key() + " get tokens from the sidecar"})
		}
	}
	if b.uses.NMI == nil && b.plan.Cluster.PodIdentity != nil {
		s.Reason += "; NMI was not found: if it runs under another name, read its log first"
	}
	s.Checks = append(s.Checks, b.notAsking(w)...)
	b.change(&s, w, patch)
	b.step(s)
}
