// Package preflight checks whether a cluster, or a namespace of it, is ready for the sidecar and for
// workload identity.
//
//	results, err := preflight.Run(ctx, client, preflight.Config{Pre: true, Namespaces: []string{"shop"}})
//
// It reads objects, asks the API server which rights the person has, and creates pods as dry runs: the
// API server runs admission for these and stores nothing. So its own verdict is reported, with all
// policies, and not a guess about it.
package preflight

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"imds-oidc-proxy/internal/inject"
	"imds-oidc-proxy/internal/survey"
)

// Status is the result of one check.
type Status string

// The statuses. Note and Skipped do not count.
const (
	OK      Status = "ok"
	Note    Status = "note"
	Skipped Status = "skipped"
	Warning Status = "warning"
	Fault   Status = "fault"
)

// Result is one check.
type Result struct {
	// Group is what was checked, such as cluster or namespace shop.
	Group  string `json:"group"`
	Status Status `json:"status"`
	// Text says what is the case, and Hint what to do about it.
	Text string `json:"text"`
	Hint string `json:"hint,omitempty"`
	// Docs is where the documentation says more.
	Docs string `json:"docs,omitempty"`
}

// Config says what is checked.
type Config struct {
	// Pre checks before the installation: a missing webhook is no fault, and the pod of the dry run is
	// injected here. Otherwise the webhook has to inject it.
	Pre bool
	// Namespaces are checked. Without one, those are with a workload that requests a token.
	Namespaces []string
	// Inject has the images and the tenant. With empty images, those of the webhook are used, or
	// placeholders.
	Inject inject.Config
	// HTTP reads the issuer's documents. It must have a timeout.
	HTTP *http.Client
	// Now is the current time.
	Now time.Time
	// Progress is called before each list. It may be nil.
	Progress survey.Progress
}

// run is one run of all checks.
type run struct {
	Config
	client  survey.Creator
	survey  *survey.Survey
	group   string
	results []Result
	// installed means that a webhook adds tokens, and plugin that the nodes get the CNI plugin.
	installed, plugin bool
	nodes             []corev1.Node // empty: not known
}

// kinds are read: what is about the cluster, the webhooks and the namespaces.
var kinds = []string{
	"namespaces", "serviceaccounts", "mutatingwebhookconfigurations.admissionregistration.k8s.io", "deployments.apps", "statefulsets.apps", "daemonsets.apps",
	"cronjobs.batch", "securitycontextconstraints.security.openshift.io", "replicasets.apps", "jobs.batch", "pods",
	"azureidentities.aadpodidentity.k8s.io", "azureidentitybindings.aadpodidentity.k8s.io",
}

// Run runs all checks. The error means that the cluster could not be read.
func Run(ctx context.Context, client survey.Creator, config Config) ([]Result, error) {
	if config.Progress == nil {
		config.Progress = func(string) {}
	}
	r := &run{Config: config, client: client, group: "cluster"}
	r.survey = survey.New(survey.Config{Kinds: kinds})
	if err := r.survey.ReadCluster(ctx, client, config.Progress); err != nil {
		return nil, err
	}
	r.survey.Finish()
	r.versions(ctx)
	r.rights()
	if r.Pre {
		r.mayInstall(ctx)
	}
	r.podIdentity()
	r.group = "issuer"
	r.issuer(ctx)
	r.group = "webhook"
	r.webhooks(ctx)
	r.group = "images"
	r.images()
	r.group = "CNI plugin"
	r.cniPlugin(ctx)
	for _, namespace := range r.namespaces() {
		r.group = "namespace " + namespace
		r.namespace(ctx, namespace)
	}
	return r.results, ctx.Err()
}

// namespaces returns the namespaces to check.
func (r *run) namespaces() []string {
	if len(r.Namespaces) > 0 {
		return r.Namespaces
	}
	found := map[string]bool{}
	for _, w := range r.survey.AllWorkloads() {
		if w.Template.Labels[inject.UseLabel] == "true" {
			found[w.Namespace] = true
		}
	}
	if len(found) == 0 {
		r.group = "namespaces"
		r.add(Note, "set --namespace to check one", "", "no workload requests a token yet")
	}
	return sortedKeys(found)
}

func (r *run) add(status Status, hint, docs, format string, args ...any) {
	r.results = append(r.results, Result{r.group, status, fmt.Sprintf(format, args...), hint, docs})
}

func (r *run) ok(format string, args ...any) { r.add(OK, "", "", format, args...) }

// Exit codes, as those of a plan.
const (
	exitOK       = 0
	exitWarnings = 3
	exitFaults   = 4
)

// ExitCode returns 4 if there is a fault, and 3 if there are warnings alone.
func ExitCode(results []Result) int {
	has := func(s Status) bool { return slices.ContainsFunc(results, func(r Result) bool { return r.Status == s }) }
	switch {
	case has(Fault):
		return exitFaults
	case has(Warning):
		return exitWarnings
	}
	return exitOK
}
