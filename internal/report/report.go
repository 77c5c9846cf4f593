// Package report asks all sidecars of a cluster which clients still need them.
//
//	r, err := report.Run(ctx, client, executor, report.Config{Namespace: "shop", Period: 35 * 24 * time.Hour, Now: time.Now()})
//
// A sidecar counts since its container started. So "nobody has asked" means little without the time in
// which nobody did: the verdict that a sidecar can go needs a time as long as the longest period of the
// application's jobs. Prometheus, if there is one, remembers longer than the containers.
package report

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"imds-oidc-proxy/internal/inject"
	"imds-oidc-proxy/internal/survey"
)

// Executor runs a command in a container.
type Executor interface {
	// Exec runs a command, and returns its output and exit code. The error means that it could not be run.
	Exec(ctx context.Context, namespace, pod, container string, command ...string) (output string, code int, err error)
}

// Config says what is asked.
type Config struct {
	// Namespace limits the report to one namespace. Empty: all.
	Namespace string
	// Period is the longest period of the applications' jobs.
	Period time.Duration
	Now    time.Time
	// Timeout limits the questions to one pod.
	Timeout time.Duration
	// Prometheus is the longer memory. Nil: there is none.
	Prometheus *Prometheus
	// Progress is called with what is being done. Nil: it is not called.
	Progress func(string)
}

// parallel is the number of pods that are asked at the same time.
const parallel = 8

// Report is what the sidecars say.
type Report struct {
	Cluster string    `json:"cluster,omitempty"`
	Time    time.Time `json:"time"`
	// PeriodSeconds is the longest period of the applications' jobs.
	PeriodSeconds int64 `json:"periodSeconds"`
	// Prometheus means that Prometheus was asked too.
	Prometheus bool        `json:"prometheus"`
	Summary    Summary     `json:"summary"`
	Namespaces []Namespace `json:"namespaces"`
	Workloads  []Workload  `json:"workloads"`
	// NotAsked are the pods with a sidecar that could not be asked.
	NotAsked []NotAsked `json:"notAsked"`
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
	Namespace string  `json:"namespace"`
	Kind      string  `json:"kind"`
	Name      string  `json:"name"`
	Pods      int     `json:"pods"`
	PodsAsked int     `json:"podsAsked"`
	Verdict   Verdict `json:"verdict"`
	// Text says why, and what to do.
	Text string `json:"text"`
	// ObservedSeconds is for how long all requests of the workload are known.
	ObservedSeconds int64    `json:"observedSeconds"`
	Clients         []Client `json:"clients"`
	// Refused counts requests that were refused by reason, and Failed those by the code of Entra's error.
	Refused map[string]int64 `json:"refused,omitempty"`
	Failed  map[string]int64 `json:"failed,omitempty"`
	// Forwarded counts requests for instance metadata.
	Forwarded int64 `json:"forwarded,omitempty"`
	// Faults are the newest errors in the log, which name the identity and the remedy.
	Faults []Fault `json:"faults,omitempty"`
	// Versions are those of the sidecars.
	Versions []string `json:"versions,omitempty"`

	ref      survey.Ref
	observed time.Duration
	// silent is the number of pods of which nothing is known.
	silent int
}

// Key returns KIND/NAME for a person.
func (w *Workload) Key() string { return strings.ToLower(w.Kind) + "/" + w.Name }

// Client is one kind of client.
type Client struct {
	SDK              string `json:"sdk"`
	Version          string `json:"version"`
	WorkloadIdentity string `json:"workloadIdentity"`
	Upgrade          string `json:"upgrade,omitempty"`
	// Pods is how many pods it asked from. Requests and the times are zero if only Prometheus knows it.
	Pods      int       `json:"pods"`
	Requests  uint64    `json:"requests,omitempty"`
	FirstSeen time.Time `json:"firstSeen,omitzero"`
	LastSeen  time.Time `json:"lastSeen,omitzero"`
}

// Fault is an error of a token request.
type Fault struct {
	Pod  string    `json:"pod"`
	Time time.Time `json:"time"`
	// Text is the line's error, with the remedy.
	Text string `json:"text"`
}

// NotAsked is a pod that could not be asked.
type NotAsked struct {
	Namespace string `json:"namespace"`
	Pod       string `json:"pod"`
	Reason    string `json:"reason"`
	Hint      string `json:"hint,omitempty"`
}

// kinds are those with pods.
var kinds = []string{"deployments.apps", "statefulsets.apps", "daemonsets.apps", "replicasets.apps", "cronjobs.batch", "jobs.batch", "rollouts.argoproj.io", "pods"}

// Run asks all sidecars. The error means that the cluster or Prometheus could not be read.
func Run(ctx context.Context, client survey.Client, executor Executor, config Config) (*Report, error) {
	if config.Progress == nil {
		config.Progress = func(string) {}
	}
	s := survey.New(survey.Config{Kinds: kinds, Namespace: config.Namespace})
	if err := s.ReadCluster(ctx, client, config.Progress); err != nil {
		return nil, err
	}
	s.Finish()
	r := &run{config: config, client: client, executor: executor, answers: map[survey.Ref][]answer{}}
	r.workloads(s)
	if err := r.readPods(ctx, s); err != nil {
		return nil, err
	}
	r.askAll(ctx)
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if config.Prometheus != nil {
		config.Progress("Prometheus")
		memory, err := config.Prometheus.read(ctx, config.Namespace, config.Period)
		if err != nil {
			return nil, err
		}
		r.memory = memory
	}
	return r.report(), nil
}

// run is one run.
type run struct {
	config   Config
	client   survey.Client
	executor Executor
	all      []*Workload
	direct   map[string]int // by namespace
	pods     []*pod
	answers  map[survey.Ref][]answer
	memory   *memory
}

// workloads finds the workloads with the sidecar, and counts those with workload identity alone.
func (r *run) workloads(s *survey.Survey) {
	r.direct = map[string]int{}
	for _, w := range s.AllWorkloads() {
		switch {
		case w.Live.Proxy || requested(w.Template.Labels, w.Template.Annotations):
			r.all = append(r.all, &Workload{Namespace: w.Namespace, Kind: w.Kind, Name: w.Name, Clients: []Client{}, ref: w.Ref})
		case w.Template.Labels[inject.UseLabel] == "true":
			r.direct[w.Namespace]++
		}
	}
}

// requested reports whether a pod template requests the sidecar.
func requested(labels, annotations map[string]string) bool {
	wanted, err := strconv.ParseBool(annotations[inject.InjectProxyAnnotation])
	return labels[inject.UseLabel] == "true" && wanted && err == nil
}

// readPods finds the pods of the workloads with the sidecar.
func (r *run) readPods(ctx context.Context, s *survey.Survey) error {
	known := map[survey.Ref]bool{}
	for _, w := range r.all {
		known[w.ref] = true
	}
	return survey.EachPod(ctx, r.client, r.config.Namespace, func(p *corev1.Pod) {
		owner, found := s.Owners[p.Namespace+"/"+p.Name]
		if found && known[owner] && p.DeletionTimestamp == nil {
			r.pods = append(r.pods, newPod(p, owner))
		}
	})
}

// askAll asks all pods, some at the same time.
func (r *run) askAll(ctx context.Context) {
	answers := make([]answer, len(r.pods))
	slots := make(chan struct{}, parallel)
	var group sync.WaitGroup
	for i, p := range r.pods {
		slots <- struct{}{}
		r.config.Progress("sidecar " + strconv.Itoa(i+1) + " of " + strconv.Itoa(len(r.pods)))
		group.Go(func() {
			defer func() { <-slots }()
			answers[i] = r.ask(ctx, p)
		})
	}
	group.Wait()
	for i, a := range answers {
		r.answers[r.pods[i].owner] = append(r.answers[r.pods[i].owner], a)
	}
}

// The exit codes.
const (
	exitNothing = 0
	exitNotRead = 1
	exitWork    = 3
)

// ExitCode returns 3 while a sidecar is needed or has to stay, and 1 if no sidecar could be asked.
func ExitCode(r *Report) int {
	switch {
	case r.Summary.Pods > 0 && r.Summary.PodsAsked == 0 && !r.Prometheus:
		return exitNotRead
	case slices.ContainsFunc(r.Workloads, func(w Workload) bool { return w.Verdict != CanGo }):
		return exitWork
	}
	return exitNothing
}
