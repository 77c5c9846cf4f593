// Package report asks all sidecars of a cluster which clients still need them.
//
//	r, err := report.Run(ctx, client, executor, report.Config{Namespace: "shop", Now: time.Now(), Timeout: time.Minute})
//
// A sidecar counts since its container started. So "nobody has asked" means little without the time in
// which nobody did: the verdict that a sidecar can go needs a time as long as the longest period of the
// application's jobs. Prometheus, if there is one, stores data longer than the sidecars.
//
// # Security considerations
//
// What a pod says is untrusted: its answers are bounded in length and in number, and what is kept has only
// printable characters. A pod whose answers are false affects only the verdict for its own workload.
package report

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"imds-oidc-proxy/internal/census"
	"imds-oidc-proxy/internal/inject"
	"imds-oidc-proxy/internal/survey"
)

// Executor runs programs in containers.
type Executor interface {
	// Exec runs a command, and returns its output and exit code. The error means that it could not be run.
	Exec(ctx context.Context, namespace, pod, container string, command ...string) (output string, code int, err error)
}

// DefaultPeriod is longer than a month: many applications have a job at its end.
const DefaultPeriod = 35 * day

// Config says what is asked.
type Config struct {
	// Namespace limits the report to one namespace. Empty: all.
	Namespace string
	// Period is the longest period of the applications' jobs. Zero: [DefaultPeriod], or that of the CronJob
	// of the workload's namespace that runs least often, if that is longer.
	Period time.Duration
	Now    time.Time
	// Timeout limits the questions to one pod.
	Timeout time.Duration
	// Prometheus stores data longer than the sidecars. Nil: it is not asked.
	Prometheus *Prometheus
	// Progress is called with what is being done. Nil: it is not called.
	Progress func(string)
}

// Schema changes when a field is removed or gets another meaning.
const Schema = "imds-migrate.report/v1"

// Report is what the sidecars say.
type Report struct {
	Schema  string    `json:"schema"`
	Cluster string    `json:"cluster,omitempty"`
	Time    time.Time `json:"time"`
	// PeriodSeconds is the longest period of the applications' jobs, unless a workload has a longer one.
	PeriodSeconds int64 `json:"periodSeconds"`
	// Prometheus means that Prometheus was asked too.
	Prometheus bool        `json:"prometheus"`
	Summary    Summary     `json:"summary"`
	Namespaces []Namespace `json:"namespaces"`
	Workloads  []Workload  `json:"workloads"`
	// Upgrades are the clients that are asking, with what to upgrade to, those of most workloads first.
	Upgrades []Upgrade `json:"upgrades"`
	// NotAsked are the pods with a sidecar that could not be asked.
	NotAsked []NotAsked `json:"notAsked"`
	// NotRead is what else could not be read, so that workloads may be missing.
	NotRead []NotRead `json:"notRead"`
}

// Summary counts workloads.
type Summary struct {
	Workloads int `json:"workloads"`
	Pods      int `json:"pods"`
	PodsAsked int `json:"podsAsked"`
	Counts
}

// Counts has the number of workloads for each verdict.
type Counts struct {
	Needed  int `json:"needed"`
	Waiting int `json:"waiting"`
	Unknown int `json:"unknown"`
	CanGo   int `json:"canGo"`
	// Direct are the workloads that use workload identity without a sidecar.
	Direct int `json:"direct"`
}

// Namespace is the progress of one namespace.
type Namespace struct {
	Name string `json:"name"`
	Counts
}

// Verdict says whether a workload still needs the sidecar.
type Verdict string

// The verdicts.
const (
	Needed  Verdict = "needed"  // a client has asked
	Waiting Verdict = "waiting" // nobody has asked, but for too short a time
	Unknown Verdict = "unknown" // not all pods could be asked
	CanGo   Verdict = "can go"
)

// Workload is one workload with the sidecar.
type Workload struct {
	Namespace string `json:"namespace"`
	Group     string `json:"group,omitempty"` // of the API; empty for Kubernetes' core
	Kind      string `json:"kind"`
	Name      string `json:"name"`
	// Pods is the number of pods with the sidecar, also of those of a Job that have ended and have a log.
	Pods      int     `json:"pods"`
	PodsAsked int     `json:"podsAsked"`
	Verdict   Verdict `json:"verdict"`
	// Text says why, and what to do.
	Text string `json:"text"`
	// Codes are those of docs/report.md.
	Codes []string `json:"codes"`
	// ObservedSeconds is for how long all requests of the workload are known.
	ObservedSeconds int64 `json:"observedSeconds"`
	// PeriodSeconds is for how long nobody may have asked before the sidecar can go, and PeriodOf is the
	// CronJob that requires this, or empty.
	PeriodSeconds int64  `json:"periodSeconds"`
	PeriodOf      string `json:"periodOf,omitempty"`
	// CanGoFrom is when the sidecar can go if nobody asks until then. Zero: not known.
	CanGoFrom time.Time `json:"canGoFrom,omitzero"`
	Clients   []Client  `json:"clients"`
	// Refused counts requests that were refused by reason, and Failed those by the code of Entra's error.
	Refused map[string]int64 `json:"refused,omitempty"`
	Failed  map[string]int64 `json:"failed,omitempty"`
	// Forwarded counts requests for instance metadata.
	Forwarded int64 `json:"forwarded,omitempty"`
	// Faults are the newest errors in the log, which name the identity and the remedy.
	Faults []Fault `json:"faults,omitempty"`
	// Versions are those of the sidecars.
	Versions []string `json:"versions,omitempty"`

	survey   *survey.Workload
	period   time.Duration
	observed time.Duration
	clients  map[[3]string]*Client
	// silent is the number of pods of which nothing is known.
	silent int
	// runs means that a pod has not ended.
	runs bool
}

// Key returns KIND/NAME for a person.
func (w *Workload) Key() string { return strings.ToLower(w.Kind) + "/" + w.Name }

// Client is one kind of client.
type Client struct {
	SDK              string `json:"sdk"`
	Version          string `json:"version"`
	WorkloadIdentity string `json:"workloadIdentity"`
	Upgrade          string `json:"upgrade,omitempty"`
	// Pods is how many pods it asked from. Requests and the times are zero if only Prometheus knows it, and
	// Requests is zero if only the log of a pod that has ended knows it.
	Pods      int       `json:"pods"`
	Requests  uint64    `json:"requests,omitempty"`
	FirstSeen time.Time `json:"firstSeen,omitzero"`
	LastSeen  time.Time `json:"lastSeen,omitzero"`
}

// Name returns the SDK with its version.
func (c Client) Name() string { return strings.TrimSpace(c.SDK + " " + c.Version) }

// Fault is an error of a token request.
type Fault struct {
	Pod  string    `json:"pod"`
	Time time.Time `json:"time"`
	// ClientID and Resource are those of the token that was requested, and Identity is the name of an
	// identity that was refused. They are empty if they are not known.
	ClientID string `json:"clientID,omitempty"`
	Resource string `json:"resource,omitempty"`
	Identity string `json:"identity,omitempty"`
	AADSTS   int    `json:"aadsts,omitempty"`
	Text     string `json:"text"`
	Remedy   string `json:"remedy,omitempty"`
}

// Upgrade is a kind of client that is asking.
type Upgrade struct {
	SDK     string `json:"sdk"`
	Version string `json:"version"`
	// To says what to upgrade to, or what to set.
	To string `json:"to"`
	// Workloads are those in which it is asking, as NAMESPACE KIND/NAME.
	Workloads []string `json:"workloads"`
}

// NotAsked is a pod that could not be asked.
type NotAsked struct {
	Namespace string `json:"namespace"`
	Pod       string `json:"pod"`
	Code      string `json:"code"`
	Reason    string `json:"reason"`
	Hint      string `json:"hint,omitempty"`
}

// NotRead is something of the cluster that could not be read.
type NotRead struct {
	Code string `json:"code"`
	What string `json:"what"`
	Why  string `json:"why"`
}

// Run asks all sidecars. The error means that the cluster or Prometheus could not be read. If the context ends
// while the sidecars are asked, there is a report too: of those that have answered.
func Run(ctx context.Context, client survey.Client, executor Executor, config Config) (*Report, error) {
	if config.Progress == nil {
		config.Progress = func(string) {}
	}
	s := survey.New(survey.Config{Kinds: survey.PodKinds(), Namespace: config.Namespace, Within: true})
	if err := s.ReadCluster(ctx, client, config.Progress); err != nil {
		return nil, err
	}
	s.Finish()
	r := &run{config: config, client: client, executor: executor, survey: s,
		workloads: map[survey.Ref]*Workload{}, inNamespace: map[string][]*Workload{}, direct: map[string]int{}, intervals: map[string]time.Duration{}, seen: map[podName]bool{}}
	if err := survey.NamespaceExists(ctx, r.client, r.config.Namespace); err != nil {
		return nil, err
	}
	r.findWorkloads()
	err := r.askUntilStable(ctx)
	if err == nil && config.Prometheus != nil {
		err = r.readPrometheus(ctx)
	}
	switch {
	case err == nil:
		return r.report(), nil
	case ctx.Err() == nil || len(r.answers) == 0:
		return nil, err
	}
	r.interrupted, r.memories = true, nil
	return r.report(), ctx.Err()
}

// run is one run.
type run struct {
	config   Config
	client   survey.Client
	executor Executor
	survey   *survey.Survey

	workloads   map[survey.Ref]*Workload
	inNamespace map[string][]*Workload
	direct      map[string]int           // by namespace
	intervals   map[string]time.Duration // by schedule
	answers     []answer                 // in the order of the pods
	interrupted bool
	seen        map[podName]bool          // all pods that exist or existed during the run
	memories    map[time.Duration]*memory // by period; nil: no Prometheus
}

// findWorkloads finds the workloads with the sidecar, and counts those with workload identity alone.
func (r *run) findWorkloads() {
	periods := r.periods()
	for _, w := range r.survey.AllWorkloads() {
		switch {
		case w.Live.Proxy || requested(w.Template.Labels, w.Template.Annotations) || written(w.Template.Spec):
			found := &Workload{Namespace: clean(w.Namespace, maxName), Group: clean(w.Group, maxName), Kind: clean(w.Kind, maxWord), Name: clean(w.Name, maxName), Codes: []string{}, Clients: []Client{}, survey: w, clients: map[[3]string]*Client{}}
			found.period, found.PeriodOf = r.period(w, periods)
			r.workloads[w.Ref] = found
			r.inNamespace[w.Namespace] = append(r.inNamespace[w.Namespace], found)
		case w.Template.Labels[inject.UseLabel] == "true":
			r.direct[clean(w.Namespace, maxName)]++
		}
	}
}

// requested reports whether a pod template requests the sidecar.
func requested(labels, annotations map[string]string) bool {
	wanted, err := strconv.ParseBool(annotations[inject.InjectProxyAnnotation])
	return labels[inject.UseLabel] == "true" && wanted && err == nil
}

// written reports whether a pod template has the sidecar itself.
func written(spec corev1.PodSpec) bool {
	return slices.ContainsFunc(slices.Concat(spec.InitContainers, spec.Containers), func(c corev1.Container) bool { return c.Name == inject.ProxyName })
}

// rare is the CronJob of a namespace that runs least often.
type rare struct {
	interval time.Duration
	name     string
}

// periods returns the CronJob of each namespace that runs least often.
func (r *run) periods() map[string]rare {
	longest := map[string]rare{}
	for _, w := range r.survey.AllWorkloads() {
		if interval := r.interval(w.Schedule); interval > longest[w.Namespace].interval {
			longest[w.Namespace] = rare{interval, "cronjob/" + clean(w.Name, maxName)}
		}
	}
	return longest
}

// interval returns the longest time between two runs of a schedule, or 0 if there is none.
func (r *run) interval(text string) time.Duration {
	interval, known := r.intervals[text]
	if !known {
		if schedule := parseSchedule(text, ""); schedule != nil {
			interval = longestInterval(schedule, r.config.Now)
		}
		r.intervals[text] = interval
	}
	return interval
}

// period returns the period of a workload, and the CronJob that requires it. A CronJob's own is the time
// between its runs at least.
func (r *run) period(w *survey.Workload, periods map[string]rare) (time.Duration, string) {
	period, of := r.config.Period, ""
	if period == 0 {
		period = DefaultPeriod
		if longest := periods[w.Namespace]; longest.interval > period {
			period, of = longest.interval, longest.name
		}
	}
	if own := r.interval(w.Schedule); own > period {
		period, of = own, "cronjob/"+clean(w.Name, maxName)
	}
	return period, of
}

// maxRounds is how often the pods are listed and those that are new are asked.
const maxRounds = 3

// askUntilStable asks all pods, and then those that have started or ended meanwhile. What is still new after
// [maxRounds] is not asked.
func (r *run) askUntilStable(ctx context.Context) error {
	answers := map[string]answer{}
	defer func() {
		for _, a := range answers {
			r.answers = append(r.answers, a)
		}
		slices.SortFunc(r.answers, func(a, b answer) int { return strings.Compare(a.pod.key(), b.pod.key()) })
	}()
	for round := range maxRounds + 1 {
		pods, err := r.listPods(ctx)
		if err != nil {
			return err
		}
		fresh := freshOf(pods, answers)
		if len(fresh) == 0 {
			break
		}
		if round == maxRounds {
			for _, p := range fresh {
				answer{pod: p, code: codeEnded, reason: "the pod or its sidecar has started or ended while the others were asked", hint: "run the report again"}.addTo(answers)
			}
			break
		}
		for i, a := range r.askAll(ctx, fresh) {
			if ctx.Err() != nil && (a.pod == nil || a.reason != "") {
				a = answer{pod: fresh[i], code: codeInterrupted, reason: "the report was interrupted", hint: "run the report again"}
			}
			a.keep(answers[a.pod.key()].clients)
			a.addTo(answers)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}

// addTo adds an answer to those of all pods. A pod that is being deleted and does not answer is as good as one
// that is gone: what it has said before is kept.
func (a answer) addTo(answers map[string]answer) {
	if a.reason == "" || !a.pod.deleted {
		answers[a.pod.key()] = a
	}
}

// freshOf returns the pods that were not asked in their present state, and marks those that have ended without an
// answer.
func freshOf(pods []*pod, answers map[string]answer) (fresh []*pod) {
	exists := map[string]bool{}
	for _, p := range pods {
		exists[p.key()] = true
		if a, asked := answers[p.key()]; !asked || a.isOutdated(p) {
			fresh = append(fresh, p)
		}
	}
	for key, a := range answers {
		if !exists[key] && a.reason != "" {
			a.code, a.reason, a.hint = codeEnded, "the pod has ended meanwhile", "run the report again"
			answers[key] = a
		}
	}
	return fresh
}

// isOutdated reports whether a pod's sidecar is in another state than when it was asked: after a restart,
// the answer may be that of the container before or after it, and until its end a Job may ask.
func (a answer) isOutdated(now *pod) bool {
	return !a.pod.started.Equal(now.started) || !a.pod.ended.Equal(now.ended) || a.pod.missing != now.missing
}

// keep adds the clients of an earlier answer, which a restart of the sidecar may have removed.
func (a *answer) keep(earlier []census.Entry) {
	for _, e := range earlier {
		if len(a.clients) < 2*maxClients && !slices.ContainsFunc(a.clients, func(x census.Entry) bool {
			return x.SDK == e.SDK && x.Version == e.Version && x.WorkloadIdentity == e.WorkloadIdentity
		}) {
			a.clients = append(a.clients, e)
		}
	}
}

// listPods lists the pods of the workloads with the sidecar. Of those that are being deleted it lists those whose
// sidecar still runs: their clients are those of the pods that replace them, which are too new to know.
func (r *run) listPods(ctx context.Context) (pods []*pod, err error) {
	r.config.Progress("pods")
	err = survey.EachPod(ctx, r.client, r.config.Namespace, func(p *corev1.Pod) {
		owner := r.survey.Owner(p)
		w := r.workloads[owner]
		if w == nil && owner.Kind == "Job" { // newer than the survey
			w = ownerOf(r.inNamespace[p.Namespace], p.Name)
		}
		if w == nil {
			return
		}
		r.seen[podName{clean(p.Namespace, maxName), clean(p.Name, maxName)}] = true
		if found := newPod(p, w.survey.Ref); found != nil && !(found.deleted && found.missing != "") {
			pods = append(pods, found)
		}
	})
	return pods, err
}

// The exit codes.
const (
	exitNothing = 0
	exitNotRead = 1
	exitWork    = 3
)

// ExitCode returns 3 while a sidecar is needed or has to stay. It returns 1 if no sidecar could be asked,
// and if all can go as far as could be read, but something could not be read.
func ExitCode(r *Report) int {
	switch {
	case r.Summary.Pods > 0 && r.Summary.PodsAsked == 0 && !r.Prometheus:
		return exitNotRead
	case slices.ContainsFunc(r.NotRead, func(n NotRead) bool { return n.Code == codeInterrupted }):
		return exitNotRead
	case slices.ContainsFunc(r.Workloads, func(w Workload) bool { return w.Verdict != CanGo }):
		return exitWork
	case slices.ContainsFunc(r.NotRead, func(n NotRead) bool { return n.Code == codeNotRead }):
		return exitNotRead
	}
	return exitNothing
}
