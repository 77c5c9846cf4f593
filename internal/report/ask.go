package report

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"imds-oidc-proxy/internal/census"
	"imds-oidc-proxy/internal/inject"
	"imds-oidc-proxy/internal/survey"
)

// maxAnswer bounds what a sidecar may answer: the pod may be hostile.
const maxAnswer = 4 << 20

// pod is what is needed to ask a sidecar.
type pod struct {
	namespace, name string
	owner           survey.Ref
	image           string
	admin           string // port, or empty
	started         time.Time
	missing         string // why the sidecar cannot be asked, or empty
}

func newPod(p *corev1.Pod, owner survey.Ref) *pod {
	found := &pod{namespace: p.Namespace, name: p.Name, owner: owner}
	containers := slices.Concat(p.Spec.InitContainers, p.Spec.Containers)
	i := slices.IndexFunc(containers, func(c corev1.Container) bool { return c.Name == inject.ProxyName })
	if i < 0 {
		found.missing = "the pod has no sidecar, although its template requests it"
		return found
	}
	found.image, found.admin = containers[i].Image, adminPort(containers[i])
	statuses := slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses)
	i = slices.IndexFunc(statuses, func(s corev1.ContainerStatus) bool { return s.Name == inject.ProxyName })
	switch {
	case i < 0 || statuses[i].State.Running == nil:
		found.missing = "the sidecar does not run"
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
	return port
}

// answer is what one sidecar says.
type answer struct {
	pod      *pod
	clients  []census.Entry
	counters counters
	faults   []Fault
	reason   string // why it could not be asked, or empty
	hint     string
}

// ask asks one sidecar: through the API server if its admin port is on, and otherwise by a command in it.
func (r *run) ask(ctx context.Context, p *pod) answer {
	a := answer{pod: p}
	if p.missing != "" {
		a.reason, a.hint = p.missing, "imds-migrate verify --namespace="+p.namespace
		return a
	}
	if strings.Contains(p.image, "azure/workload-identity/proxy") {
		a.reason, a.hint = "the sidecar is that of azure-workload-identity, which counts nothing", "use this project's images: docs/images.md"
		return a
	}
	ctx, cancel := context.WithTimeout(ctx, r.config.Timeout)
	defer cancel()
	var refused error
	if p.admin != "" {
		if refused = r.byPort(ctx, &a); refused == nil {
			a.faults = r.readFaults(ctx, &a)
			return a
		}
	}
	if err := r.byCommand(ctx, &a); err != nil {
		a.reason, a.hint = why(err, refused)
		return a
	}
	a.faults = r.readFaults(ctx, &a)
	return a
}

// byPort asks through the API server's proxy for pods.
func (r *run) byPort(ctx context.Context, a *answer) error {
	base := "/api/v1/namespaces/" + a.pod.namespace + "/pods/http:" + a.pod.name + ":" + a.pod.admin + "/proxy"
	clients, err := r.get(ctx, base+"/debug/clients")
	if err != nil {
		return err
	}
	metrics, err := r.get(ctx, base+"/metrics")
	if err != nil {
		return err
	}
	return a.parse(clients + metrics)
}

func (r *run) get(ctx context.Context, path string) (string, error) {
	body, err := r.client.Get(ctx, path, url.Values{})
	if err != nil {
		return "", err
	}
	defer body.Close()
	text, err := io.ReadAll(io.LimitReader(body, maxAnswer))
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
		return fmt.Errorf("proxy clients ends with exit code %d: %s", code, clean(output))
	}
	if err := a.parse(output); err != nil {
		return err
	}
	if a.counters.version == "" || !strings.HasSuffix(output, "\n") {
		return fmt.Errorf("%w: the metrics are cut off", errAnswer)
	}
	return nil
}

// errAnswer marks an answer that is not one of a proxy.
var errAnswer = errors.New("its answer is not complete or not valid")

// parse reads the JSON of the census, and the metrics after it.
func (a *answer) parse(text string) error {
	var found struct{ Clients []census.Entry }
	decoder := json.NewDecoder(strings.NewReader(text))
	if err := decoder.Decode(&found); err != nil {
		return fmt.Errorf("%w: %s", errAnswer, clean(text))
	}
	a.clients = found.Clients
	a.counters = readCounters(text[decoder.InputOffset():])
	return nil
}

// why returns the reason and the hint for a pod that could not be asked. refused is the error of its admin
// port, if that is on.
func why(err, refused error) (reason, hint string) {
	switch {
	case errors.Is(err, errNoCommand):
		return "its version has no command clients, and no admin port", "upgrade the image, or set the annotation " + inject.AdminPortAnnotation
	case apierrors.IsForbidden(err) || strings.Contains(err.Error(), "forbidden"):
		if refused != nil {
			return "you may neither get pods/proxy nor create pods/exec", "ask for the ClusterRole of docs/plan.md#report"
		}
		return "you may not create pods/exec", "ask for the ClusterRole of docs/plan.md#report"
	case errors.Is(err, context.DeadlineExceeded):
		return "it has not answered in time", "set --timeout"
	}
	return clean(err.Error()), ""
}

// maxShown bounds what is kept of a text that a pod has written.
const maxShown = 400

// clean returns a text of a pod in one line, without control characters.
func clean(text string) string {
	text = strings.Join(strings.FieldsFunc(text, func(c rune) bool { return c <= ' ' || c == 0x7f || c >= 0x80 && c < 0xa0 }), " ")
	if len(text) > maxShown {
		text = strings.ToValidUTF8(text[:maxShown], "") + "…"
	}
	return text
}
