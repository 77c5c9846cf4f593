package report

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"imds-oidc-proxy/internal/census"
	"imds-oidc-proxy/internal/inject"
	"imds-oidc-proxy/internal/survey"
)

// What is kept of an answer is bounded, because the pod may be hostile.
const (
	// maxAnswer bounds the bytes of an answer. A proxy's are a few ten kilobytes.
	maxAnswer = 4 << 20
	// maxClients bounds the kinds of clients of one sidecar: a proxy counts 32, and all others as one.
	maxClients = 40
	// maxReasons bounds the reasons of refusals and the codes of errors of one sidecar: a proxy has less
	// than two hundred.
	maxReasons = 256
	// maxCount bounds a number, so that the sum of many pods' does not overflow.
	maxCount = 1 << 40
	// The length of a word, of a name, of what to upgrade to, and of a text, in bytes. A name of Kubernetes
	// has at most 253.
	maxWord, maxName, maxUpgrade, maxText = 64, 256, 300, 600
)

// parallel is the number of pods that are asked at the same time.
const parallel = 8

// pod is what is needed to ask a sidecar.
type pod struct {
	namespace, name, uid string
	owner                survey.Ref
	job                  string // name of the Job that created it, or empty
	image                string
	admin                string    // port, or empty
	started, ended       time.Time // of the sidecar; ended is zero while it runs
	restarted            bool      // so that what its container before has counted is lost
	deleted              bool      // it is being deleted, and has a grace period to end
	code, missing        string    // why the sidecar cannot be asked, or empty
}

// key identifies a pod: the pods of a StatefulSet have the same names again.
func (p *pod) key() string { return p.namespace + "/" + p.name + "/" + p.uid }

// newPod returns what is needed to ask the sidecar of a pod, or nil if there is nothing to ask: if the pod
// has ended, and is not one of a Job, whose kind of pods always ends.
func newPod(p *corev1.Pod, owner survey.Ref) *pod {
	found := &pod{namespace: p.Namespace, name: p.Name, uid: string(p.UID), owner: owner, deleted: p.DeletionTimestamp != nil}
	for _, o := range p.OwnerReferences {
		if o.Kind == "Job" {
			found.job = o.Name
		}
	}
	over := p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
	containers := slices.Concat(p.Spec.InitContainers, p.Spec.Containers)
	i := slices.IndexFunc(containers, func(c corev1.Container) bool { return c.Name == inject.ProxyName })
	switch {
	case over && (found.job == "" || i < 0):
		return nil
	case i < 0:
		found.code, found.missing = codeNoSidecar, "the pod has no sidecar, although its template requests it"
		return found
	}
	found.image, found.admin = containers[i].Image, adminPort(containers[i])
	statuses := slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses)
	i = slices.IndexFunc(statuses, func(s corev1.ContainerStatus) bool { return s.Name == inject.ProxyName })
	found.restarted = i >= 0 && statuses[i].RestartCount > 0
	switch {
	case i >= 0 && over && found.restarted:
		found.code, found.missing = codeNoLog, "the sidecar was restarted, and only the log of its last container is kept"
	case i >= 0 && over && statuses[i].State.Terminated != nil:
		found.started, found.ended = statuses[i].State.Terminated.StartedAt.Time, statuses[i].State.Terminated.FinishedAt.Time
	case over:
		found.code, found.missing = codeEnded, "the pod has ended, and left no state of its sidecar"
	case i < 0 || statuses[i].State.Running == nil:
		found.code, found.missing = codeNotRun, "the sidecar does not run"
	default:
		found.started = statuses[i].State.Running.StartedAt.Time
	}
	return found
}

// adminPort returns the port that serves the census on the pod's address, or "".
func adminPort(c corev1.Container) string {
	address := ""
	for _, e := range c.Env {
		if e.Name == "PROXY_ADMIN_ADDRESS" {
			address = e.Value
		}
	}
	for _, a := range c.Args {
		if value, found := strings.CutPrefix(a, "--admin-address="); found {
			address = value
		}
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil || host != "" && net.ParseIP(host).IsLoopback() {
		return ""
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil { // it becomes a part of a path
		return ""
	}
	return port
}

// answer is what one sidecar says.
type answer struct {
	pod      *pod
	clients  []census.Entry
	counters counters
	faults   []Fault
	noLog    string // why the log could not be read, or empty

	// code and reason are why it could not be asked, or empty.
	code, reason, hint string
}

// askAll asks pods, some at the same time.
func (r *run) askAll(ctx context.Context, pods []*pod) []answer {
	answers := make([]answer, len(pods))
	slots := make(chan struct{}, parallel)
	var group sync.WaitGroup
	for i, p := range pods {
		slots <- struct{}{}
		if ctx.Err() != nil {
			break
		}
		r.config.Progress("sidecar " + strconv.Itoa(i+1) + " of " + strconv.Itoa(len(pods)))
		group.Go(func() {
			defer func() { <-slots }()
			answers[i] = r.ask(ctx, p)
		})
	}
	group.Wait()
	return answers
}

// ask asks one sidecar: through the API server if its admin port is on, and otherwise by a command in it. If
// it has ended, its log says what it knew.
func (r *run) ask(ctx context.Context, p *pod) answer {
	a := answer{pod: p}
	if p.missing != "" {
		a.code, a.reason, a.hint = p.code, p.missing, "imds-migrate verify --namespace="+p.namespace
		return a
	}
	if strings.Contains(p.image, "azure/workload-identity/proxy") {
		a.code, a.reason, a.hint = codeNoCensus, "the sidecar is that of azure-workload-identity, which counts nothing", "use this project's images: docs/images.md"
		return a
	}
	ctx, cancel := context.WithTimeout(ctx, r.config.Timeout)
	defer cancel()
	if !p.ended.IsZero() {
		if err := r.byLog(ctx, &a); err != nil {
			a.code, a.reason, a.hint = why(err, nil, "get pods/log")
		}
		return a
	}
	var refused error
	if p.admin != "" {
		if refused = r.byPort(ctx, &a); refused == nil {
			r.readFaults(ctx, &a)
			return a
		}
	}
	if err := r.byCommand(ctx, &a); err != nil {
		a.code, a.reason, a.hint = why(err, refused, "create pods/exec")
		return a
	}
	r.readFaults(ctx, &a)
	return a
}

// byPort asks through the API server's proxy for pods.
func (r *run) byPort(ctx context.Context, a *answer) error {
	base := "/api/v1/namespaces/" + a.pod.namespace + "/pods/http:" + a.pod.name + ":" + a.pod.admin + "/proxy"
	clients, err := r.get(ctx, base+"/debug/clients", nil, maxAnswer)
	if err != nil {
		return err
	}
	metrics, err := r.get(ctx, base+"/metrics", nil, maxAnswer)
	if err != nil {
		return err
	}
	return a.parse(clients + metrics)
}

func (r *run) get(ctx context.Context, path string, query url.Values, limit int64) (string, error) {
	body, err := r.client.Get(ctx, path, query)
	if err != nil {
		return "", err
	}
	defer body.Close()
	text, err := io.ReadAll(io.LimitReader(body, limit))
	return string(text), err
}

var errNoCommand = errors.New("its version has no command clients")

// tries is how often the command runs if its output is not complete: container runtimes sometimes lose the
// output of a command that ends quickly.
const tries = 3

// byCommand runs `proxy clients` in the sidecar.
func (r *run) byCommand(ctx context.Context, a *answer) (err error) {
	for range tries {
		if err = r.tryCommand(ctx, a); !errors.Is(err, errAnswer) {
			return err
		}
	}
	return err
}

func (r *run) tryCommand(ctx context.Context, a *answer) error {
	output, code, err := r.executor.Exec(ctx, a.pod.namespace, a.pod.name, inject.ProxyName, "/proxy", "clients", "--metrics")
	switch {
	case err != nil:
		return err
	case code == 2 && strings.Contains(output, "clients"):
		return errNoCommand
	case code != 0:
		return fmt.Errorf("%w %d: %s", errExit, code, clean(output, maxText))
	}
	return a.parse(output)
}

// errAnswer marks an answer that is not one of a proxy. Like errExit, it has text that the pod has written.
var (
	errAnswer = errors.New("its answer is not complete or not valid")
	errExit   = errors.New("proxy clients ends with exit code")
)

// parse reads the JSON of the census, and the metrics after it, which end with a line break.
func (a *answer) parse(text string) error {
	var found struct{ Clients *[]census.Entry }
	decoder := json.NewDecoder(strings.NewReader(text))
	if err := decoder.Decode(&found); err != nil || found.Clients == nil {
		return fmt.Errorf("%w: %s", errAnswer, clean(text, maxText))
	}
	if len(*found.Clients) > maxClients {
		return fmt.Errorf("%w: it has more than %d kinds of clients", errAnswer, maxClients)
	}
	a.clients = slices.Clone(*found.Clients)
	for i := range a.clients {
		bound(&a.clients[i])
	}
	a.counters = readCounters(text[decoder.InputOffset():])
	if a.counters.version == "" || !strings.HasSuffix(text, "\n") {
		return fmt.Errorf("%w: the metrics are cut off", errAnswer)
	}
	return nil
}

// bound bounds what a pod says about a client.
func bound(e *census.Entry) {
	e.SDK, e.Version, e.Upgrade = cmp.Or(clean(e.SDK, maxWord), "unknown"), clean(e.Version, maxWord), clean(e.Upgrade, maxUpgrade)
	if e.WorkloadIdentity != census.Yes && e.WorkloadIdentity != census.No {
		e.WorkloadIdentity = census.Unknown
	}
	e.Requests = min(e.Requests, maxCount)
}

// why returns the code, the reason and the hint for a pod that could not be asked. refused is the error of
// its admin port, if that is on, and right is what its other way needs. An error that comes through a stream of
// exec has no status, only the API server's text. What the pod has written says nothing about the API server.
func why(err, refused error, right string) (code, reason, hint string) {
	written := errors.Is(err, errAnswer) || errors.Is(err, errExit)
	contains := func(text string) bool { return !written && strings.Contains(err.Error(), text) }
	switch {
	case errors.Is(err, errNoCommand):
		return codeNoCensus, "its version has no command clients, and no admin port", "upgrade the image, or set the annotation " + inject.AdminPortAnnotation
	case apierrors.IsForbidden(err) || contains("forbidden"):
		reason = "you may not " + right
		if apierrors.IsForbidden(refused) {
			reason = "you may neither get pods/proxy nor " + right
		}
		return codeForbidden, reason, "ask for the ClusterRole of docs/report.md#permissions"
	case errors.Is(err, context.DeadlineExceeded):
		return codeNoAnswer, "it has not answered in time", "set --timeout"
	case apierrors.IsNotFound(err) || contains("not found"):
		return codeEnded, "the pod has ended meanwhile", "run the report again"
	case apierrors.IsForbidden(refused):
		return codeForbidden, clean("you may not get pods/proxy, and proxy clients cannot be run: "+err.Error(), maxText), "ask for the ClusterRole of docs/report.md#permissions"
	case refused != nil:
		return codeNoAnswer, clean("neither its admin port answers ("+refused.Error()+") nor the command proxy clients: "+err.Error(), maxText), ""
	}
	return codeNoAnswer, clean(err.Error(), maxText), ""
}

// clean returns a text of at most max bytes in one line, with printable characters only: pods and the people
// who create them choose it.
func clean(text string, max int) string {
	if len(text) <= max && !strings.Contains(text, "  ") && strings.IndexFunc(text, func(c rune) bool { return c < ' ' || c > '~' }) < 0 {
		return strings.TrimSpace(text) // most texts
	}
	cut := text
	if limit := 4 * max; len(cut) > limit { // of a megabyte, not more is looked at
		cut = cut[:limit]
	}
	cut = strings.Join(strings.FieldsFunc(strings.ToValidUTF8(cut, "?"), func(c rune) bool { return c == ' ' || !unicode.IsPrint(c) }), " ")
	if len(cut) > max || len(text) > 4*max {
		cut = strings.ToValidUTF8(cut[:min(len(cut), max)], "") + "…"
	}
	return cut
}
