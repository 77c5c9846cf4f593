// Package verify checks after a change that the pods of workloads have the sidecar and get tokens: they
// are injected as requested, proxy-init has installed the redirect, and proxy check succeeds in each pod.
//
//	lines, err := verify.Run(ctx, client, executor, verify.Config{Namespace: "shop", Workloads: []string{"deploy/web"}})
package verify

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"imds-oidc-proxy/internal/inject"
	"imds-oidc-proxy/internal/survey"
)

// Executor runs programs in containers.
type Executor interface {
	// Exec runs a command, and returns its output and exit code. The error means that it could not be run.
	Exec(ctx context.Context, namespace, pod, container string, command ...string) (output string, code int, err error)
}

// Config says what is verified.
type Config struct {
	// Namespace is the namespace of the workloads. Required.
	Namespace string
	// Workloads are verified, as KIND/NAME, such as deploy/web. Empty: all that request the sidecar.
	Workloads []string
	// Resource is that of the token that proxy check requests. Empty: the default of proxy check.
	Resource string
	// Timeout limits each run of proxy check. The default is [DefaultTimeout].
	Timeout time.Duration
	// Progress is called with what is being done. Nil: it is not called.
	Progress func(string)
}

// DefaultTimeout is enough for a token request that is tried again.
const DefaultTimeout = 30 * time.Second

// parallel is how many pods are checked at the same time: each costs a token request.
const parallel = 4

// Line is the result for one pod, or for a workload without pods.
type Line struct {
	Workload string `json:"workload"`
	Pod      string `json:"pod,omitempty"`
	OK       bool   `json:"ok"`
	Text     string `json:"text"`
	Hint     string `json:"hint,omitempty"`
}

// shortKinds are kubectl's short names of kinds.
var shortKinds = map[string]string{"deploy": "deployment", "deployments": "deployment", "sts": "statefulset", "statefulsets": "statefulset", "ds": "daemonset", "daemonsets": "daemonset", "cj": "cronjob", "po": "pod"}

// Run verifies the workloads. The error means that nothing could be verified.
func Run(ctx context.Context, client survey.Client, executor Executor, config Config) ([]Line, error) {
	if config.Progress == nil {
		config.Progress = func(string) {}
	}
	s := survey.New(survey.Config{Kinds: survey.PodKinds(), Namespace: config.Namespace, Within: true})
	if err := s.ReadCluster(ctx, client, config.Progress); err != nil {
		return nil, err
	}
	s.Finish()
	workloads, err := selected(s, config)
	if err != nil {
		return nil, err
	}
	pods, err := podsOf(ctx, client, config.Namespace, s)
	if err != nil {
		return nil, err
	}
	var tasks []task
	for _, w := range workloads {
		if len(pods[w.Ref]) == 0 {
			tasks = append(tasks, task{workload: w})
		}
		for i := range pods[w.Ref] {
			tasks = append(tasks, task{w, &pods[w.Ref][i]})
		}
	}
	return append(run(ctx, executor, config, tasks), notRead(s, config)...), ctx.Err()
}

// task is one pod, or a workload without one.
type task struct {
	workload *survey.Workload
	pod      *corev1.Pod
}

// run checks the pods in parallel, and returns the lines in order.
func run(ctx context.Context, executor Executor, config Config, tasks []task) []Line {
	lines := make([]Line, len(tasks))
	slots := make(chan struct{}, parallel)
	var group sync.WaitGroup
	for i, t := range tasks {
		slots <- struct{}{}
		if ctx.Err() != nil {
			break
		}
		config.Progress("pod " + strconv.Itoa(i+1) + " of " + strconv.Itoa(len(tasks)))
		group.Go(func() {
			defer func() { <-slots }()
			lines[i] = t.check(ctx, executor, config)
		})
	}
	group.Wait()
	return lines
}

// notRead returns a fault for everything that was not read and may have had workloads to verify.
func notRead(s *survey.Survey, config Config) (lines []Line) {
	if len(config.Workloads) > 0 {
		return nil
	}
	for i, u := range s.Unread {
		if slices.ContainsFunc(s.Unread[i+1:], func(later survey.Unread) bool { return later.What == u.What }) {
			continue // the last try of a kind says why it was not read
		}
		lines = append(lines, Line{Workload: u.What, Text: "not read, so workloads may be missing: " + u.Why, Hint: "ask for the right to list it, or name the workloads to verify"})
	}
	return lines
}

// selected returns the workloads to verify.
func selected(s *survey.Survey, config Config) (found []*survey.Workload, err error) {
	for _, name := range config.Workloads {
		kind, short, _ := strings.Cut(name, "/")
		if full := shortKinds[strings.ToLower(kind)]; full != "" {
			kind = full
		}
		i := slices.IndexFunc(s.AllWorkloads(), func(w *survey.Workload) bool {
			return w.Namespace == config.Namespace && strings.EqualFold(w.Kind, kind) && w.Name == short
		})
		if i < 0 {
			return nil, fmt.Errorf("namespace %s has no workload %s: write KIND/NAME, such as deploy/web", config.Namespace, name)
		}
		found = append(found, s.AllWorkloads()[i])
	}
	if len(config.Workloads) > 0 {
		return found, nil
	}
	for _, w := range s.AllWorkloads() {
		if w.Namespace == config.Namespace && (requested(w.Template.Labels, w.Template.Annotations) || w.Live.Proxy) {
			found = append(found, w)
		}
	}
	if len(found) == 0 && len(s.Unread) == 0 {
		return nil, fmt.Errorf("no workload of namespace %s requests the sidecar", config.Namespace)
	}
	return found, nil
}

func requested(labels, annotations map[string]string) bool {
	wanted, err := strconv.ParseBool(annotations[inject.InjectProxyAnnotation])
	return labels[inject.UseLabel] == "true" && wanted && err == nil
}

// podsOf lists the pods of a namespace by their workload, without those that have ended.
func podsOf(ctx context.Context, client survey.Client, namespace string, s *survey.Survey) (map[survey.Ref][]corev1.Pod, error) {
	pods := map[survey.Ref][]corev1.Pod{}
	err := survey.EachPod(ctx, client, namespace, func(p *corev1.Pod) {
		if owner, known := s.Owners[namespace+"/"+p.Name]; known && p.DeletionTimestamp == nil {
			pods[owner] = append(pods[owner], *p)
		}
	})
	return pods, err
}

// Failed reports whether a line is a fault.
func Failed(lines []Line) bool {
	return slices.ContainsFunc(lines, func(l Line) bool { return !l.OK })
}
