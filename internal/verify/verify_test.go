package verify_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"imds-oidc-proxy/internal/verify"
)

// api answers GET requests from memory.
type api map[string]string

func (a api) Get(_ context.Context, path string, query url.Values) (io.ReadCloser, error) {
	body, found := a[path+"?"+query.Get("continue")]
	if !found {
		return nil, apierrors.NewNotFound(schema.GroupResource{}, path)
	}
	return io.NopCloser(strings.NewReader(body)), nil
}

// executor is the result of proxy check in each pod.
type executor struct {
	output  string
	code    int
	err     error
	running *atomic.Int32
	most    *atomic.Int32
	command []string
}

func (e *executor) Exec(ctx context.Context, namespace, pod, container string, command ...string) (string, int, error) {
	if e.running != nil {
		n := e.running.Add(1)
		for most := e.most.Load(); n > most && !e.most.CompareAndSwap(most, n); most = e.most.Load() {
		}
		defer e.running.Add(-1)
	} else {
		e.command = append([]string{namespace, pod, container}, command...)
	}
	return e.output, e.code, e.err
}

const (
	use     = `"labels": {"azure.workload.identity/use": "true"}`
	request = `"annotations": {"azure.workload.identity/inject-proxy-sidecar": "true"}`
	owner   = `"ownerReferences": [{"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "controller": true}]`
	ended   = `{"name": "azwi-proxy-init", "state": {"terminated": {"exitCode": 0}}}`
	started = `{"name": "azwi-proxy", "ready": true, "state": {"running": {}}}`
)

func workload(kind, name, metadata string) string {
	template := `{"metadata": {` + metadata + `}, "spec": {"containers": [{"name": "c"}]}}`
	if kind == "CronJob" {
		return `{"metadata": {"name": "` + name + `", "namespace": "ns"}, "spec": {"jobTemplate": {"spec": {"template": ` + template + `}}}}`
	}
	return `{"metadata": {"name": "` + name + `", "namespace": "ns"}, "spec": {"template": ` + template + `}}`
}

func pod(name, annotations, containers, statuses string) string {
	return `{"metadata": {"name": "` + name + `", "namespace": "ns", ` + owner + `, "annotations": {` + annotations + `}}, "spec": {"initContainers": [` + containers + `], "containers": [{"name": "c"}]}, "status": {"phase": "Running", "initContainerStatuses": [` + statuses + `]}}`
}

const both = `{"name": "azwi-proxy-init"}, {"name": "azwi-proxy", "image": "registry.corp.test/proxy:v1"}`

// cluster has the Deployment web with the given pods, and others.
func cluster(metadata string, pods ...string) api {
	list := `{"items": [` + strings.Join(pods, ",") + `]}`
	return api{
		"/version?": `{"gitVersion": "v1.35.0"}`,
		"/apis?":    `{"groups": [{"name": "apps", "versions": [{"version": "v1"}]}, {"name": "batch", "versions": [{"version": "v1"}]}]}`,
		"/apis/apps/v1/namespaces/ns/deployments?": `{"items": [` + workload("Deployment", "web", metadata) + `, ` + workload("Deployment", "other", "") + `]}`,
		"/apis/batch/v1/namespaces/ns/cronjobs?":   `{"items": [` + workload("CronJob", "nightly", use+", "+request) + `]}`,
		"/api/v1/namespaces/ns/pods?":              list,
	}
}

// TestPods checks the line for each state of a pod.
func TestPods(t *testing.T) {
	healthy := pod("p", "", both, ended+","+started)
	const host = `{"name": "AZURE_POD_IDENTITY_AUTHORITY_HOST", "value": "http://127.0.0.1:8000"}`
	ownHost := func(pod string) string {
		return strings.Replace(pod, `"containers": [{`, `"containers": [{"env": [`+host+`], `, 1)
	}
	for name, c := range map[string]struct {
		cluster api
		exec    executor
		ok      bool
		text    string
		hint    string
	}{
		"healthy":                    {cluster(use+", "+request, healthy), executor{}, true, "the sidecar is ready, the redirect was installed and proven, proxy check succeeds", ""},
		"no redirect":                {cluster(use+", "+request, pod("p", `"imds-oidc-proxy/redirect": "none"`, `{"name": "azwi-proxy"}`, started)), executor{}, true, "the sidecar is ready, there is no redirect, as requested, proxy check succeeds", ""},
		"no redirect, as configured": {cluster(use+", "+request, pod("p", "", `{"name": "azwi-proxy", "env": [`+host+`]}`, started)), executor{}, true, "the sidecar is ready, there is no redirect, as requested, proxy check succeeds", ""},
		"sealed, with the variable":  {cluster(use+", "+request, ownHost(pod("p", `"imds-oidc-proxy/redirect": "sealed"`, `{"name": "azwi-proxy"}`, started))), executor{}, false, "the pod has no container azwi-proxy-init, so there is no redirect", "read its log: kubectl --namespace=ns logs p --container=azwi-proxy-init"},
		"the author's variable":      {cluster(use+", "+request, ownHost(pod("p", "", `{"name": "azwi-proxy"}`, started))), executor{}, false, "the pod has no container azwi-proxy-init, so there is no redirect", "read its log: kubectl --namespace=ns logs p --container=azwi-proxy-init"},
		"sealed, in the sidecar":     {cluster(use+", "+request, pod("p", `"imds-oidc-proxy/redirect": "sealed"`, `{"name": "azwi-proxy", "env": [`+host+`]}`, started)), executor{}, false, "the pod has no container azwi-proxy-init, so there is no redirect", "read its log: kubectl --namespace=ns logs p --container=azwi-proxy-init"},
		"the pod ends":               {cluster(use+", "+request, healthy), executor{err: errors.New(`pods "p" not found`)}, false, "the pod has ended meanwhile", "run verify again"},
		"too slow":                   {cluster(use+", "+request, healthy), executor{err: context.DeadlineExceeded}, false, "proxy check has not ended in time", "set --timeout"},
		"broken":                     {cluster(use+", "+request, healthy), executor{err: errors.New("connection lost")}, false, "proxy check could not be run: connection lost", "kubectl --namespace=ns describe pod p"},
		"no pod":                     {cluster(use + ", " + request), executor{}, false, "no pod runs", "look at its events: kubectl --namespace=ns describe deployment/web"},
		"no sidecar":                 {cluster(use+", "+request, pod("p", "", "", "")), executor{}, false, "the pod has no sidecar, although its template requests it", "restart it: kubectl --namespace=ns rollout restart deployment/web"},
		"not requested":              {cluster(use, pod("p", "", "", "")), executor{}, false, "the pod template does not request the sidecar", "set the label and the annotation of docs/migration.md, step 7"},
		"no init":                    {cluster(use+", "+request, pod("p", "", `{"name": "azwi-proxy"}`, started)), executor{}, false, "the pod has no container azwi-proxy-init, so there is no redirect", "read its log: kubectl --namespace=ns logs p --container=azwi-proxy-init"},
		"no validator":               {cluster(use+", "+request, pod("p", "", `{"name": "azwi-proxy", "env": [{"name": "PROXY_REQUIRE_REDIRECT", "value": "true"}]}`, started)), executor{}, true, "the sidecar is ready, the redirect was installed and proven, proxy check succeeds", ""},
		"init waits":                 {cluster(use+", "+request, pod("p", "", both, `{"name": "azwi-proxy-init", "state": {"waiting": {"reason": "ImagePullBackOff"}}}`)), executor{}, false, "azwi-proxy-init has not ended: ImagePullBackOff", "read its log: kubectl --namespace=ns logs p --container=azwi-proxy-init"},
		"init failed":                {cluster(use+", "+request, pod("p", "", both, `{"name": "azwi-proxy-init", "state": {"terminated": {"exitCode": 5, "message": "no\ncapability"}}}`)), executor{}, false, "azwi-proxy-init has ended with exit code 5: no capability", "read its log: kubectl --namespace=ns logs p --container=azwi-proxy-init"},
		"proxy waits":                {cluster(use+", "+request, pod("p", "", both, ended)), executor{}, false, "azwi-proxy does not run: it is running, or was not started", "read its log: kubectl --namespace=ns logs p --container=azwi-proxy"},
		"proxy not ready":            {cluster(use+", "+request, pod("p", "", both, ended+`,{"name": "azwi-proxy", "state": {"running": {}}}`)), executor{}, false, "azwi-proxy is not ready", "read its log: kubectl --namespace=ns logs p --container=azwi-proxy"},
		"Entra refuses":              {cluster(use+", "+request, healthy), executor{code: 14, output: "x\n"}, false, "proxy check ends with exit code 14: Entra refuses the token request: is there a federated credential? imds-migrate plan --azure", "kubectl --namespace=ns exec p --container=azwi-proxy -- /proxy check"},
		"another failure":            {cluster(use+", "+request, healthy), executor{code: 2, output: "first\nlast  line\n"}, false, "proxy check ends with exit code 2: last line", "kubectl --namespace=ns exec p --container=azwi-proxy -- /proxy check"},
		"no exec":                    {cluster(use+", "+request, healthy), executor{err: errors.New("pods \"p\" is forbidden\n")}, false, `proxy check could not be run: pods "p" is forbidden`, "you need the right to create pods/exec"},
		"azwi's proxy":               {cluster(use+", "+request, strings.Replace(healthy, "registry.corp.test/proxy:v1", "mcr.microsoft.com/oss/v2/azure/workload-identity/proxy:v1.6.0", 1)), executor{}, false, "the sidecar is mcr.microsoft.com/oss/v2/azure/workload-identity/proxy:v1.6.0, which has no command check", "use this project's webhook or images: docs/images.md"},
		"a terminating pod":          {cluster(use+", "+request, healthy, strings.Replace(pod("q", "", "", ""), `"name": "q"`, `"name": "q", "deletionTimestamp": "2026-11-29T00:00:00Z"`, 1)), executor{}, true, "the sidecar is ready, the redirect was installed and proven, proxy check succeeds", ""},
	} {
		lines, err := verify.Run(t.Context(), c.cluster, &c.exec, verify.Config{Namespace: "ns", Workloads: []string{"deploy/web"}})
		if err != nil || len(lines) != 1 {
			t.Errorf("%s: %v, %v", name, err, lines)
			continue
		}
		if l := lines[0]; l.OK != c.ok || l.Text != c.text || l.Hint != c.hint || verify.Failed(lines) == c.ok {
			t.Errorf("%s: got %+v", name, l)
		}
	}
}

// TestCommand checks what is run in the sidecar.
func TestCommand(t *testing.T) {
	e := &executor{}
	if _, err := verify.Run(t.Context(), cluster(use+", "+request, pod("p", "", both, ended+","+started)), e, verify.Config{Namespace: "ns", Workloads: []string{"Deployment/web"}, Resource: "https://vault.azure.net"}); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(e.command, " "); got != "ns p azwi-proxy /proxy check --resource=https://vault.azure.net" {
		t.Errorf("got %q", got)
	}
}

// TestSelection checks which workloads are verified.
func TestSelection(t *testing.T) {
	c := cluster(use+", "+request, pod("p", "", both, ended+","+started))
	lines, err := verify.Run(t.Context(), c, &executor{}, verify.Config{Namespace: "ns"})
	if err != nil || len(lines) != 2 || lines[0].Workload != "cronjob/nightly" || lines[0].Text != "no pod runs now" || lines[1].Workload != "deployment/web" {
		t.Errorf("%v, %+v", err, lines)
	}
	for name, want := range map[string]string{"deploy/gone": "namespace ns has no workload deploy/gone: write KIND/NAME, such as deploy/web", "web": "namespace ns has no workload web: write KIND/NAME, such as deploy/web"} {
		if _, err := verify.Run(t.Context(), c, &executor{}, verify.Config{Namespace: "ns", Workloads: []string{name}}); err == nil || err.Error() != want {
			t.Errorf("%s: got %v", name, err)
		}
	}
	empty := cluster("")
	delete(empty, "/apis/batch/v1/namespaces/ns/cronjobs?")
	if _, err := verify.Run(t.Context(), empty, &executor{}, verify.Config{Namespace: "ns"}); err == nil || err.Error() != "no workload of namespace ns requests the sidecar" {
		t.Errorf("got %v", err)
	}
	delete(empty, "/api/v1/namespaces/ns/pods?")
	if _, err := verify.Run(t.Context(), empty, &executor{}, verify.Config{Namespace: "ns", Workloads: []string{"deploy/web"}}); err == nil || !strings.Contains(err.Error(), "cannot list pods") {
		t.Errorf("got %v", err)
	}
}

// TestNotRead: a kind that may not be listed is a fault, unless the workloads are named.
func TestNotRead(t *testing.T) {
	c := forbidden{cluster(use+", "+request, pod("p", "", both, ended+","+started)), "/apis/apps/v1/namespaces/ns/statefulsets"}
	delete(c.api, "/apis/batch/v1/namespaces/ns/cronjobs?")
	lines, err := verify.Run(t.Context(), c, &executor{}, verify.Config{Namespace: "ns"})
	want := verify.Line{Workload: "statefulsets.apps", Text: "not read, so workloads may be missing: you may not list statefulsets.apps", Hint: "ask for the right to list it, or name the workloads to verify"}
	if err != nil || len(lines) != 2 || !lines[0].OK || lines[1] != want || !verify.Failed(lines) {
		t.Errorf("%v, %+v", err, lines)
	}
	if lines, err = verify.Run(t.Context(), c, &executor{}, verify.Config{Namespace: "ns", Workloads: []string{"deploy/web"}}); err != nil || verify.Failed(lines) {
		t.Errorf("with a name: %v, %+v", err, lines)
	}
	c.api = cluster("")
	delete(c.api, "/apis/batch/v1/namespaces/ns/cronjobs?")
	if lines, err = verify.Run(t.Context(), c, &executor{}, verify.Config{Namespace: "ns"}); err != nil || len(lines) != 1 || lines[0] != want {
		t.Errorf("without another workload: %v, %+v", err, lines)
	}
}

// forbidden is an api that refuses one list.
type forbidden struct {
	api
	path string
}

func (f forbidden) Get(ctx context.Context, path string, query url.Values) (io.ReadCloser, error) {
	if path == f.path {
		return nil, apierrors.NewForbidden(schema.GroupResource{}, "", errors.New("no"))
	}
	return f.api.Get(ctx, path, query)
}

// TestMany checks all pages of pods, their order, and that few are checked at the same time.
func TestMany(t *testing.T) {
	c := cluster(use + ", " + request)
	var all []string
	for page := range 2 {
		var pods []string
		for i := range 20 {
			pods = append(pods, pod(fmt.Sprintf("p%d-%02d", page, i), "", both, ended+","+started))
		}
		key, next := "", "more"
		if page == 1 {
			key, next = "more", ""
		}
		c["/api/v1/namespaces/ns/pods?"+key] = `{"metadata": {"continue": "` + next + `"}, "items": [` + strings.Join(pods, ",") + `]}`
		all = append(all, pods...)
	}
	e := &executor{running: new(atomic.Int32), most: new(atomic.Int32)}
	lines, err := verify.Run(t.Context(), c, e, verify.Config{Namespace: "ns", Workloads: []string{"deploy/web"}})
	if err != nil || len(lines) != len(all) || verify.Failed(lines) || e.most.Load() > 4 {
		t.Fatalf("%v, %d lines, %d at the same time", err, len(lines), e.most.Load())
	}
	for i, l := range lines {
		if want := fmt.Sprintf("p%d-%02d", i/20, i%20); l.Pod != want {
			t.Errorf("line %d: got %s, want %s", i, l.Pod, want)
		}
	}
}
