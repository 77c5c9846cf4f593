package report_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"imds-oidc-proxy/internal/report"
)

var now = time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)

const day = 24 * time.Hour

// api has the bodies of answers by path. An error is returned as it is.
type api map[string]any

func (a api) Get(_ context.Context, path string, _ url.Values) (io.ReadCloser, error) {
	switch found := a[path].(type) {
	case string:
		return io.NopCloser(strings.NewReader(found)), nil
	case error:
		return nil, found
	}
	return nil, apierrors.NewNotFound(schema.GroupResource{}, path)
}

// executor answers by the name of the pod.
type executor struct {
	answers       map[string]string
	code          int
	err           error
	lost          int    // so many runs lose their output
	then          string // the answer from the second run on, if not empty
	runs          atomic.Int32
	running, most atomic.Int32
}

func (e *executor) Exec(_ context.Context, _, pod, container string, command ...string) (string, int, error) {
	n := e.running.Add(1)
	defer e.running.Add(-1)
	for most := e.most.Load(); n > most && !e.most.CompareAndSwap(most, n); most = e.most.Load() {
	}
	if got := container + " " + strings.Join(command, " "); got != "azwi-proxy /proxy clients --metrics" {
		return "", 0, errors.New("unexpected command " + got)
	}
	if e.lost > 0 {
		e.lost--
		return "", 0, nil
	}
	output := e.answers[pod]
	if e.runs.Add(1) > 1 && e.then != "" {
		output = e.then
	}
	if strings.HasPrefix(output, "{") && !strings.Contains(output, "build_info") {
		output += "imds_oidc_proxy_build_info{version=\"v1\",goversion=\"go\"} 1\n"
	}
	return output, e.code, e.err
}

const templateWith = `"template": {"metadata": {"labels": {"azure.workload.identity/use": "true"}, "annotations": {"azure.workload.identity/inject-proxy-sidecar": "true"}}, "spec": {"containers": [{"name": "c"}]}}`

func deployment(name string) string {
	return `{"metadata": {"name": "` + name + `", "namespace": "shop"}, "spec": {` + templateWith + `}}`
}

func replicaSet(name string) string {
	return `{"metadata": {"name": "` + name + `-5d4f", "namespace": "shop", "ownerReferences": [{"apiVersion": "apps/v1", "kind": "Deployment", "name": "` + name + `", "controller": true}]}, "spec": {"template": {"spec": {"containers": [{"name": "c"}]}}}}`
}

// sidecar is a pod of a Deployment whose sidecar started some time ago.
func sidecar(of, suffix string, age time.Duration, env string) string {
	return fmt.Sprintf(`{"metadata": {"name": "%s-5d4f-%s", "namespace": "shop", "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "%[1]s-5d4f", "controller": true}]},
		"spec": {"containers": [{"name": "c"}], "initContainers": [{"name": "azwi-proxy", "image": "registry.corp.test/proxy:v1", "env": [%[3]s]}]},
		"status": {"phase": "Running", "initContainerStatuses": [{"name": "azwi-proxy", "state": {"running": {"startedAt": "%[4]s"}}}]}}`, of, suffix, env, now.Add(-age).Format(time.RFC3339))
}

// cluster is a cluster with one Deployment for each name.
func cluster(pods string, names ...string) api {
	var deployments, sets []string
	for _, name := range names {
		deployments, sets = append(deployments, deployment(name)), append(sets, replicaSet(name))
	}
	return api{
		"/version":                  `{"gitVersion": "v1.35.2"}`,
		"/apis":                     `{"groups": [{"name": "apps", "versions": [{"version": "v1"}]}, {"name": "batch", "versions": [{"version": "v1"}]}]}`,
		"/apis/apps/v1/deployments": `{"items": [` + strings.Join(deployments, ", ") + `]}`, "/apis/apps/v1/replicasets": `{"items": [` + strings.Join(sets, ", ") + `]}`,
		"/apis/apps/v1/statefulsets": `{"items": []}`, "/apis/apps/v1/daemonsets": `{"items": []}`, "/apis/batch/v1/jobs": `{"items": []}`, "/apis/batch/v1/cronjobs": `{"items": []}`,
		"/api/v1/pods": `{"items": [` + pods + `]}`,
	}
}

// client is one entry of the census.
func client(sdk, version, identity, upgrade string, requests int, first, last time.Duration) string {
	text, err := json.Marshal(map[string]any{"sdk": sdk, "version": version, "workload_identity": identity, "upgrade": upgrade, "requests": requests,
		"first_seen": now.Add(-first), "last_seen": now.Add(-last)})
	if err != nil {
		panic(err)
	}
	return string(text)
}

func census(clients ...string) string {
	return `{"clients": [` + strings.Join(clients, ", ") + `]}` + "\n"
}

var old = client("go-azidentity", "1.1.0", "no", "azidentity (Go) 1.3.0 or later", 7, 3*day, time.Hour)

func run(t *testing.T, a api, e *executor, change func(*report.Config)) *report.Report {
	t.Helper()
	config := report.Config{Period: 35 * day, Now: now, Timeout: time.Minute}
	if change != nil {
		change(&config)
	}
	r, err := report.Run(t.Context(), a, e, config)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// verdict is the result for the only workload.
func verdict(r *report.Report) string {
	if len(r.Workloads) != 1 {
		return fmt.Sprintf("%d workloads", len(r.Workloads))
	}
	return fmt.Sprintf("%s: %s", r.Workloads[0].Verdict, r.Workloads[0].Text)
}

func TestVerdicts(t *testing.T) {
	forbidden := errors.New(`pods "web-5d4f-aaaaa" is forbidden: User "u" cannot create resource "pods/exec"`)
	for name, c := range map[string]struct {
		pods     string
		executor *executor
		want     string
		notAsked string
		code     int
	}{
		"needed":                  {sidecar("web", "aaaaa", 40*day, ""), &executor{answers: map[string]string{"web-5d4f-aaaaa": census(old)}}, "needed: go-azidentity 1.1.0: azidentity (Go) 1.3.0 or later", "", 3},
		"an upgraded SDK":         {sidecar("web", "aaaaa", 40*day, ""), &executor{answers: map[string]string{"web-5d4f-aaaaa": census(client("python-azure-identity", "1.15.0", "yes", "", 1, day, day))}}, "needed: python-azure-identity 1.15.0: use WorkloadIdentityCredential in place of ManagedIdentityCredential", "", 3},
		"can go":                  {sidecar("web", "aaaaa", 36*day, ""), &executor{answers: map[string]string{"web-5d4f-aaaaa": census()}}, "can go: nobody has asked for 36 days: the sidecar can go, if no job runs less often than every 35 days", "", 0},
		"nobody asks any more":    {sidecar("web", "aaaaa", 90*day, ""), &executor{answers: map[string]string{"web-5d4f-aaaaa": census(client("curl", "8.5.0", "unknown", "", 1, 80*day, 40*day))}}, "can go: nobody has asked for 40 days: the sidecar can go, if no job runs less often than every 35 days", "", 0},
		"one of two clients asks": {sidecar("web", "aaaaa", 90*day, ""), &executor{answers: map[string]string{"web-5d4f-aaaaa": census(client("curl", "8.5.0", "unknown", "", 1, 80*day, 40*day), old)}}, "needed: go-azidentity 1.1.0: azidentity (Go) 1.3.0 or later", "", 3},
		"waiting":                 {sidecar("web", "aaaaa", 3*day, ""), &executor{answers: map[string]string{"web-5d4f-aaaaa": census()}}, "waiting: nobody has asked for 3 days; wait until 35 days have passed", "", 3},
		"the youngest pod counts": {sidecar("web", "aaaaa", 40*day, "") + ", " + sidecar("web", "bbbbb", 90*time.Minute, ""),
			&executor{answers: map[string]string{"web-5d4f-aaaaa": census(), "web-5d4f-bbbbb": census()}}, "waiting: nobody has asked for 90 minutes; wait until 35 days have passed", "", 3},
		"one pod asks": {sidecar("web", "aaaaa", 40*day, "") + ", " + sidecar("web", "bbbbb", 40*day, ""),
			&executor{answers: map[string]string{"web-5d4f-aaaaa": census(), "web-5d4f-bbbbb": census(old)}}, "needed: go-azidentity 1.1.0: azidentity (Go) 1.3.0 or later", "", 3},
		"no pod":                       {"", &executor{}, "unknown: no pod runs: ask again while one does, or set --prometheus", "", 3},
		"no right":                     {sidecar("web", "aaaaa", 40*day, ""), &executor{err: forbidden}, "unknown: 1 of 1 pods were not asked", "you may not create pods/exec -> ask for the ClusterRole of docs/report.md#permissions", 1},
		"an old proxy":                 {sidecar("web", "aaaaa", 40*day, ""), &executor{code: 2, answers: map[string]string{"web-5d4f-aaaaa": `proxy: unexpected argument "clients"`}}, "unknown: 1 of 1 pods were not asked", "its version has no command clients, and no admin port -> upgrade the image, or set the annotation imds-oidc-proxy/admin-port", 1},
		"a proxy that is stuck":        {sidecar("web", "aaaaa", 40*day, ""), &executor{code: 1, answers: map[string]string{"web-5d4f-aaaaa": "proxy: connection\x1b[31m refused\n"}}, "unknown: 1 of 1 pods were not asked", "proxy clients ends with exit code 1: proxy: connection [31m refused", 1},
		"a file that is not found":     {sidecar("web", "aaaaa", 40*day, ""), &executor{code: 1, answers: map[string]string{"web-5d4f-aaaaa": "config file not found"}}, "unknown: 1 of 1 pods were not asked", "proxy clients ends with exit code 1: config file not found", 1},
		"an upstream that refuses":     {sidecar("web", "aaaaa", 40*day, ""), &executor{answers: map[string]string{"web-5d4f-aaaaa": "upstream said forbidden"}}, "unknown: 1 of 1 pods were not asked", "its answer is not complete or not valid: upstream said forbidden", 1},
		"an answer without JSON":       {sidecar("web", "aaaaa", 40*day, ""), &executor{answers: map[string]string{"web-5d4f-aaaaa": "<html>"}}, "unknown: 1 of 1 pods were not asked", "its answer is not complete or not valid: <html>", 1},
		"an output that is lost twice": {sidecar("web", "aaaaa", 40*day, ""), &executor{lost: 2, answers: map[string]string{"web-5d4f-aaaaa": census()}}, "can go: nobody has asked for 40 days: the sidecar can go, if no job runs less often than every 35 days", "", 0},
		"an output that is lost":       {sidecar("web", "aaaaa", 40*day, ""), &executor{lost: 3, answers: map[string]string{"web-5d4f-aaaaa": census()}}, "unknown: 1 of 1 pods were not asked", "its answer is not complete or not valid:", 1},
		"metrics that are cut off":     {sidecar("web", "aaaaa", 40*day, ""), &executor{answers: map[string]string{"web-5d4f-aaaaa": census() + "imds_oidc_proxy_build_info{ver"}}, "unknown: 1 of 1 pods were not asked", "its answer is not complete or not valid: the metrics are cut off", 1},
		"azwi's sidecar": {strings.Replace(sidecar("web", "aaaaa", 40*day, ""), "registry.corp.test/proxy:v1", "mcr.microsoft.com/oss/azure/workload-identity/proxy:v1.5.1", 1), &executor{}, "unknown: 1 of 1 pods were not asked",
			"the sidecar is that of azure-workload-identity, which counts nothing -> use this project's images: docs/images.md", 1},
		"a sidecar that waits": {strings.Replace(sidecar("web", "aaaaa", 40*day, ""), `"running": {`, `"waiting": {`, 1), &executor{}, "unknown: 1 of 1 pods were not asked", "the sidecar does not run -> imds-migrate verify --namespace=shop", 1},
		"no sidecar in the pod": {strings.Replace(sidecar("web", "aaaaa", 40*day, ""), `"azwi-proxy", "image"`, `"other", "image"`, 1), &executor{}, "unknown: 1 of 1 pods were not asked",
			"the pod has no sidecar, although its template requests it -> imds-migrate verify --namespace=shop", 1},
		"one of two is silent": {sidecar("web", "aaaaa", 40*day, "") + ", " + sidecar("web", "bbbbb", 40*day, ""), &executor{answers: map[string]string{"web-5d4f-aaaaa": census()}}, "unknown: 1 of 2 pods were not asked", "its answer is not complete or not valid:", 3},
	} {
		r := run(t, cluster(c.pods, "web"), c.executor, nil)
		notAsked := ""
		for _, n := range r.NotAsked {
			notAsked += strings.TrimSuffix(n.Reason+" -> "+n.Hint, " -> ")
		}
		if got := verdict(r); got != c.want || strings.TrimSpace(notAsked) != c.notAsked || report.ExitCode(r) != c.code {
			t.Errorf("%s: got %q, %q, exit code %d, want %q, %q, %d", name, got, notAsked, report.ExitCode(r), c.want, c.notAsked, c.code)
		}
	}
}

// TestAdminPort: the admin port is asked through the API server, and the command if that is refused.
func TestAdminPort(t *testing.T) {
	const base = "/api/v1/namespaces/shop/pods/http:web-5d4f-aaaaa:8001/proxy"
	pods := sidecar("web", "aaaaa", 40*day, `{"name": "PROXY_ADMIN_ADDRESS", "value": ":8001"}`)
	a := cluster(pods, "web")
	a[base+"/debug/clients"], a[base+"/metrics"] = census(old), "imds_oidc_proxy_build_info{version=\"v1\",goversion=\"go\"} 1\n"
	r := run(t, a, &executor{err: errors.New("not to be run")}, nil)
	if got := verdict(r); !strings.HasPrefix(got, "needed: ") || !slices.Equal(r.Workloads[0].Versions, []string{"v1"}) {
		t.Errorf("by the port: got %q, versions %q", got, r.Workloads[0].Versions)
	}
	a[base+"/debug/clients"] = apierrors.NewForbidden(schema.GroupResource{}, "", errors.New("no"))
	r = run(t, a, &executor{answers: map[string]string{"web-5d4f-aaaaa": census()}}, nil)
	if got := verdict(r); !strings.HasPrefix(got, "can go: ") {
		t.Errorf("by the command: got %q", got)
	}
	r = run(t, a, &executor{err: errors.New("unable to upgrade connection: Forbidden: forbidden")}, nil)
	if len(r.NotAsked) != 1 || r.NotAsked[0].Reason != "you may neither get pods/proxy nor create pods/exec" {
		t.Errorf("neither way: got %+v", r.NotAsked)
	}
	r = run(t, a, &executor{err: errors.New("the kubelet is away")}, nil)
	if len(r.NotAsked) != 1 || r.NotAsked[0].Code != "IMDS401" || r.NotAsked[0].Reason != "you may not get pods/proxy, and proxy clients cannot be run: the kubelet is away" {
		t.Errorf("one way is forbidden, and the other one fails: got %+v", r.NotAsked)
	}
	a[base+"/debug/clients"] = errors.New("connection refused")
	r = run(t, a, &executor{err: errors.New("the kubelet is away")}, nil)
	if len(r.NotAsked) != 1 || r.NotAsked[0].Code != "IMDS402" || r.NotAsked[0].Reason != "neither its admin port answers (connection refused) nor the command proxy clients: the kubelet is away" {
		t.Errorf("both ways fail: got %+v", r.NotAsked)
	}
	for _, address := range []string{"127.0.0.1:8001", "", "x"} {
		pods := sidecar("web", "aaaaa", 40*day, `{"name": "PROXY_ADMIN_ADDRESS", "value": "`+address+`"}`)
		if got := verdict(run(t, cluster(pods, "web"), &executor{answers: map[string]string{"web-5d4f-aaaaa": census()}}, nil)); !strings.HasPrefix(got, "can go: ") {
			t.Errorf("admin address %q: got %q", address, got)
		}
	}
}

// TestClients adds the same client of two pods, and keeps no control characters of what a pod says.
func TestClients(t *testing.T) {
	pods := sidecar("web", "aaaaa", 40*day, "") + ", " + sidecar("web", "bbbbb", 40*day, "")
	r := run(t, cluster(pods, "web"), &executor{answers: map[string]string{
		"web-5d4f-aaaaa": census(old, client("evil\x1b[2J", "1\n2", "unknown", "", 1, day, day)),
		"web-5d4f-bbbbb": census(client("go-azidentity", "1.1.0", "no", "azidentity (Go) 1.3.0 or later", 5, 9*day, time.Minute)),
	}}, nil)
	w := r.Workloads[0]
	if len(w.Clients) != 2 || w.Clients[0].SDK != "go-azidentity" || w.Clients[0].Requests != 12 || w.Clients[0].Pods != 2 ||
		!w.Clients[0].FirstSeen.Equal(now.Add(-9*day)) || !w.Clients[0].LastSeen.Equal(now.Add(-time.Minute)) {
		t.Errorf("got %+v", w.Clients)
	}
	if c := w.Clients[1]; c.SDK != "evil [2J" || c.Version != "1 2" {
		t.Errorf("got %q %q, want no control characters", c.SDK, c.Version)
	}
}

const metrics = `# HELP x
imds_oidc_proxy_refused_requests_total{reason="no_metadata_header"} 9
imds_oidc_proxy_refused_requests_total{reason="identity_not_found"} 2
imds_oidc_proxy_exchange_errors_total{code="700213"} 3
imds_oidc_proxy_forwarded_requests_total{result="success"} 4
imds_oidc_proxy_forwarded_requests_total{result="error"} 5
imds_oidc_proxy_build_info{version="v1.2.0",goversion="go1.27"} 1
`

// TestFaults: the log says which identities are refused, and what still fails.
func TestFaults(t *testing.T) {
	log := strings.Join([]string{
		`{"level":"error","time":"2026-11-29T10:00:00Z","msg":"request failed","client_id":"a","resource":"r","error":"has recovered"}`,
		`{"level":"info","time":"2026-11-29T10:01:00Z","msg":"successfully acquired token","client_id":"a","resource":"r"}`,
		`{"level":"error","time":"2026-11-29T10:02:00Z","msg":"request failed","client_id":"b","resource":"r","error":"older"}`,
		`{"level":"error","time":"2026-11-29T10:03:00Z","msg":"request failed","client_id":"b","resource":"r","error":"AADSTS700213: create a federated credential"}`,
		`{"level":"warn","time":"2026-11-29T10:04:00Z","msg":"refused request","error":"object_id 6666: not known: set --identity"}`,
		`{"level":"info","time":"2026-11-29T10:05:00Z","msg":"successfully acquired token","client_id":"c","resource":"r"}`, `no JSON`,
	}, "\n")
	a := cluster(sidecar("web", "aaaaa", 40*day, ""), "web")
	a["/api/v1/namespaces/shop/pods/web-5d4f-aaaaa/log"] = log
	r := run(t, a, &executor{answers: map[string]string{"web-5d4f-aaaaa": census(old) + metrics}}, nil)
	w := r.Workloads[0]
	var texts []string
	for _, f := range w.Faults {
		texts = append(texts, f.Time.Format("15:04")+" "+f.Text)
	}
	want := []string{"10:03 AADSTS700213: create a federated credential", "10:04 object_id 6666: not known: set --identity"}
	if !slices.Equal(texts, want) {
		t.Errorf("got %q, want %q", texts, want)
	}
	if len(w.Refused) != 1 || w.Refused["identity_not_found"] != 2 || w.Failed["700213"] != 3 || w.Forwarded != 4 || !slices.Equal(w.Versions, []string{"v1.2.0"}) {
		t.Errorf("got %+v", w)
	}
	delete(a, "/api/v1/namespaces/shop/pods/web-5d4f-aaaaa/log")
	if r = run(t, a, &executor{answers: map[string]string{"web-5d4f-aaaaa": census(old) + metrics}}, nil); len(r.Workloads[0].Faults) > 0 {
		t.Errorf("without the right to read logs: got %+v", r.Workloads[0].Faults)
	}
}

// TestRemedies: a failed exchange has the remedy, and the request that failed because of it the time. An
// exchange that works again is no fault. A refused request names the identity.
func TestRemedies(t *testing.T) {
	log := strings.Join([]string{
		`{"time":"2026-11-29T10:00:00Z","msg":"token exchange failed","client_id":"a","resource":"r","error":"no federated credential matches","aadsts":700213,"hint":"az identity federated-credential create"}`,
		`{"time":"2026-11-29T10:00:01Z","msg":"request failed","client_id":"a","resource":"r","error":"no federated credential matches (AADSTS700213)"}`,
		`{"time":"2026-11-29T10:01:00Z","msg":"token exchange failed","client_id":"b","resource":"r","error":"x","hint":"y"}`,
		`{"time":"2026-11-29T10:02:00Z","msg":"token exchange works again","client_id":"b","resource":"r","failures":1}`,
		`{"time":"2026-11-29T10:03:00Z","msg":"refused request","identity":"66666666-0000-4000-8000-000000000000","error":"Identity not found: object_id is not configured; see --identity"}`,
		`{"time":"9999-12-31T23:59:59-23:00","msg":"refused request","error":"` + strings.Repeat("é\\u202e\\n", 10_000) + `","hint":"` + strings.Repeat("x", 10_000) + `"}`,
	}, "\n")
	a := cluster(sidecar("web", "aaaaa", 40*day, ""), "web")
	a["/api/v1/namespaces/shop/pods/web-5d4f-aaaaa/log"] = log
	r := run(t, a, &executor{answers: map[string]string{"web-5d4f-aaaaa": census() + metrics}}, nil)
	faults := r.Workloads[0].Faults
	if len(faults) != 3 || !slices.Equal(r.Workloads[0].Codes, []string{"IMDS416", "IMDS417"}) {
		t.Fatalf("got %+v, %v", faults, r.Workloads[0].Codes)
	}
	at := func(minute, second int) time.Time { return time.Date(2026, 11, 29, 10, minute, second, 0, time.UTC) }
	if want := (report.Fault{Pod: "web-5d4f-aaaaa", Time: at(0, 1), ClientID: "a", Resource: "r", AADSTS: 700213, Text: "no federated credential matches", Remedy: "az identity federated-credential create"}); faults[0] != want {
		t.Errorf("got %+v, want %+v", faults[0], want)
	}
	if f := faults[1]; f.Identity != "66666666-0000-4000-8000-000000000000" || !f.Time.Equal(at(3, 0)) {
		t.Errorf("got %+v", f)
	}
	if f := faults[2]; f.Time.After(now) || len(f.Text) > 620 || len(f.Remedy) > 620 || strings.ContainsAny(f.Text, "\u202e\n") {
		t.Errorf("a hostile line: got %+v", f)
	}
}

// prometheus answers the queries for clients, for the last time with data, for the time since which there is no
// gap, and for the pods that are scraped now.
func prometheus(t *testing.T, clients, last, since, current string) *report.Prometheus {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		query, result := r.FormValue("query"), ""
		switch {
		case r.URL.Path != "/base/api/v1/query" || r.FormValue("time") != strconv.FormatInt(now.Unix(), 10)+".000":
			t.Errorf("got %s", r.URL)
		case query == "count by (namespace, pod) (imds_oidc_proxy_build_info)":
			result = current
		case !strings.Contains(query, "[3031200s"):
			t.Errorf("got %s", query)
		case strings.Contains(query, "imds_oidc_proxy_callers"):
			result = clients
		case strings.Contains(query, " unless "):
			result = since
		default:
			result = last
		}
		fmt.Fprintf(w, `{"status": "success", "data": {"result": [%s]}}`, result)
	}))
	t.Cleanup(server.Close)
	address, err := url.Parse(server.URL + "/base/")
	if err != nil {
		t.Fatal(err)
	}
	return &report.Prometheus{URL: address, Client: server.Client()}
}

func sample(pod, labels string, value time.Duration) string {
	return fmt.Sprintf(`{"metric": {"namespace": "shop", "pod": %q%s}, "value": [1, "%d"]}`, pod, labels, value/time.Second)
}

// TestPrometheus: Prometheus knows the pods that are gone.
func TestPrometheus(t *testing.T) {
	const caller = `, "sdk": "curl", "version": "", "workload_identity": "unknown"`
	young := sidecar("web", "aaaaa", 2*day, "")
	const gone, lives = "web-6c5f-zzzzz", "web-5d4f-aaaaa"
	one := sample(lives, "", time.Second)
	for name, c := range map[string]struct {
		pods, clients string
		scraped       string // pods, with the days ago of the time since which there is no gap (0: none), and of the last time
		current       string
		asked         string // the answer of the pod; empty: it cannot be asked
		want          string
		code          int
	}{
		"long enough":                    {young, "", "zzzzz 36 2, aaaaa 2 0", one, census(), "can go: nobody has asked for 35 days: the sidecar can go, if no job runs less often than every 35 days", 0},
		"data since the window began":    {young, "", "zzzzz 0 2, aaaaa 2 0", one, census(), "can go: nobody has asked for 35 days: the sidecar can go, if no job runs less often than every 35 days", 0},
		"not long enough":                {young, "", "zzzzz 10 2, aaaaa 2 0", one, census(), "waiting: nobody has asked for 10 days; wait until 35 days have passed", 3},
		"a gap before the newest pod":    {young, "", "zzzzz 36 30, aaaaa 2 0", one, census(), "waiting: nobody has asked for 2 days; wait until 35 days have passed", 3},
		"a gap between older pods":       {young, "", "zzzzz 36 30, yyyyy 20 1, aaaaa 2 0", one, census(), "waiting: nobody has asked for 20 days; wait until 35 days have passed", 3},
		"pods that overlap":              {young, "", "zzzzz 36 11, yyyyy 12 1, aaaaa 2 0", one, census(), "can go: nobody has asked for 35 days: the sidecar can go, if no job runs less often than every 35 days", 0},
		"a pod that is gone has asked":   {young, sample(gone, caller, 1), "zzzzz 36 2, aaaaa 2 0", one, census(), "needed: curl: find out what it is, docs/metrics.md", 3},
		"a pod of another workload":      {young, sample("web-api-6c5f-zzzzz", caller, 1), "api 36 0, aaaaa 2 0", one, census(), "waiting: nobody has asked for 2 days; wait until 35 days have passed", 3},
		"no pod runs":                    {"", "", "zzzzz 36 0", "", "", "can go: nobody has asked for 35 days: the sidecar can go, if no job runs less often than every 35 days", 0},
		"no pod has run for long":        {"", "", "zzzzz 36 10", "", "", "unknown: no pod runs: ask again while one does, or set --prometheus", 3},
		"a pod that was scraped":         {young, "", "zzzzz 36 2, aaaaa 2 0", one, "", "can go: nobody has asked for 35 days: the sidecar can go, if no job runs less often than every 35 days", 0},
		"a pod that was scraped once":    {young, "", "zzzzz 36 2, aaaaa 2 0", "", "", "unknown: 1 of 1 pods were not asked", 3},
		"a sidecar that has failed":      {strings.Replace(young, `"running": {`, `"waiting": {`, 1), "", "zzzzz 36 2, aaaaa 2 0", one, "", "unknown: 1 of 1 pods were not asked", 3},
		"a pod that is not scraped":      {young, "", "zzzzz 36 0", "", census(), "waiting: nobody has asked for 2 days; wait until 35 days have passed", 3},
		"a pod of another cluster":       {young, "", "zzzzz 36 0, aaaaa 2 0", one + "," + sample(gone, "", time.Second), census(), "waiting: nobody has asked for 2 days; wait until 35 days have passed", 3},
		"two series of one pod":          {young, "", "zzzzz 36 2, aaaaa 36 0", sample(lives, "", 2*time.Second), census(), "waiting: nobody has asked for 2 days; wait until 35 days have passed", 3},
		"a container before a restart":   {young, sample(lives, caller, 1), "aaaaa 36 0", one, census(), "needed: curl: find out what it is, docs/metrics.md", 3},
		"a client that is quiet by now":  {sidecar("web", "aaaaa", 50*day, ""), sample(lives, caller, 1), "aaaaa 36 0", one, census(client("curl", "", "unknown", "", 1, 49*day, 40*day)), "can go: nobody has asked for 40 days: the sidecar can go, if no job runs less often than every 35 days", 0},
		"a new pod that is not seen yet": {sidecar("web", "aaaaa", time.Minute, ""), "", "zzzzz 36 0", "", census(), "can go: nobody has asked for 35 days: the sidecar can go, if no job runs less often than every 35 days", 0},
	} {
		var last, since []string
		for text := range strings.SplitSeq(c.scraped, ", ") {
			var pod string
			var from, to int
			if _, err := fmt.Sscan(text, &pod, &from, &to); err != nil {
				t.Fatal(err)
			}
			pod = map[string]string{"aaaaa": lives, "yyyyy": "web-6c5f-yyyyy", "zzzzz": gone, "api": "web-api-6c5f-zzzzz"}[pod]
			if last = append(last, sample(pod, "", time.Duration(to)*day)); from > 0 {
				since = append(since, sample(pod, "", time.Duration(from)*day))
			}
		}
		e := &executor{answers: map[string]string{lives: c.asked}}
		r := run(t, cluster(c.pods, "web"), e, func(config *report.Config) {
			config.Prometheus = prometheus(t, c.clients, strings.Join(last, ","), strings.Join(since, ","), c.current)
		})
		if got := verdict(r); got != c.want || report.ExitCode(r) != c.code {
			t.Errorf("%s: got %q, exit code %d, want %q, %d", name, got, report.ExitCode(r), c.want, c.code)
		}
		unusable := []string{"a pod that is not scraped", "a pod that was scraped once", "a pod of another cluster", "two series of one pod"}
		if got := strings.Contains(strings.Join(r.Workloads[0].Codes, " "), "IMDS409"); got != slices.Contains(unusable, name) {
			t.Errorf("%s: got the codes %v", name, r.Workloads[0].Codes)
		}
	}
}

// TestPrometheusLabels: only the series of the cluster are asked for.
func TestPrometheusLabels(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		const want = `{cluster="a\"b",region="west"}`
		if query := r.FormValue("query"); strings.Count(query, "imds_oidc_proxy_") != strings.Count(query, want) {
			t.Errorf("got %s", query)
		}
		io.WriteString(w, `{"status": "success", "data": {"result": []}}`)
	}))
	defer server.Close()
	address, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	run(t, cluster("", "web"), &executor{}, func(c *report.Config) {
		c.Prometheus = &report.Prometheus{URL: address, Client: server.Client(), Labels: []report.Label{{Name: "cluster", Value: `a"b`}, {Name: "region", Value: "west"}}}
	})
}

// TestPrometheusFails: what Prometheus does not say is no reason to let a sidecar go.
func TestPrometheusFails(t *testing.T) {
	for name, c := range map[string]struct{ body, want string }{
		"no JSON":     {"<html>", "prometheus answers 200 OK, and no JSON: is ADDRESS its address?"},
		"an error":    {`{"status": "error", "error": "too many samples"}`, "prometheus answers 200 OK: too many samples"},
		"no number":   {`{"status": "success", "data": {"result": [{"metric": {}, "value": [1, null]}]}}`, "prometheus: its answer has a value that is no number"},
		"no server":   {"", "prometheus: dial tcp HOST: connect: connection refused"},
		"another one": {"[]", "prometheus answers 200 OK, and no JSON: is ADDRESS its address?"},
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, c.body) }))
		address, err := url.Parse(server.URL)
		if err != nil {
			t.Fatal(err)
		}
		if c.body == "" {
			server.Close()
		}
		_, err = report.Run(t.Context(), cluster("", "web"), &executor{}, report.Config{Period: day, Now: now, Timeout: time.Minute, Prometheus: &report.Prometheus{URL: address, Client: server.Client()}})
		server.Close()
		want := strings.NewReplacer("ADDRESS", server.URL, "HOST", address.Host).Replace(c.want)
		if err == nil || err.Error() != want {
			t.Errorf("%s: got %v, want %s", name, err, want)
		}
	}
}

// TestManyPods: some pods are asked at the same time, and not all. The result does not depend on the order.
func TestManyPods(t *testing.T) {
	var pods []string
	e := &executor{answers: map[string]string{}}
	for i := range 100 {
		suffix := fmt.Sprintf("aa%03d", i)
		pods = append(pods, sidecar("web", suffix, 40*day, ""))
		e.answers["web-5d4f-"+suffix] = census(old)
	}
	first, err := json.Marshal(run(t, cluster(strings.Join(pods, ", "), "web"), e, nil))
	if err != nil {
		t.Fatal(err)
	}
	slices.Reverse(pods)
	second, err := json.Marshal(run(t, cluster(strings.Join(pods, ", "), "web"), e, nil))
	if err != nil {
		t.Fatal(err)
	}
	if string(first) != string(second) || e.most.Load() > 8 {
		t.Errorf("the results differ, or %d pods were asked at the same time:\n%s\n%s", e.most.Load(), first, second)
	}
}

// TestCounts: the progress has workloads without a sidecar, too.
func TestCounts(t *testing.T) {
	a := cluster(sidecar("web", "aaaaa", 40*day, "")+", "+sidecar("api", "aaaaa", 40*day, ""), "web", "api")
	a["/apis/apps/v1/statefulsets"] = `{"items": [{"metadata": {"name": "db", "namespace": "data"}, "spec": {"template": {"metadata": {"labels": {"azure.workload.identity/use": "true"}}, "spec": {"containers": [{"name": "c"}]}}}}]}`
	r := run(t, a, &executor{answers: map[string]string{"web-5d4f-aaaaa": census(), "api-5d4f-aaaaa": census(old)}}, nil)
	want := []report.Namespace{{Name: "data", Counts: report.Counts{Direct: 1}}, {Name: "shop", Counts: report.Counts{Needed: 1, CanGo: 1}}}
	if !slices.Equal(r.Namespaces, want) || r.Summary != (report.Summary{Workloads: 2, Pods: 2, PodsAsked: 2, Counts: report.Counts{Needed: 1, CanGo: 1, Direct: 1}}) {
		t.Errorf("got %+v, %+v", r.Namespaces, r.Summary)
	}
	if r := run(t, cluster(""), &executor{}, nil); report.ExitCode(r) != 0 || r.Summary.Workloads != 0 {
		t.Errorf("without a sidecar: got %+v", r.Summary)
	}
	a["/api/v1/pods"] = apierrors.NewForbidden(schema.GroupResource{Resource: "pods"}, "", errors.New("no"))
	if _, err := report.Run(t.Context(), a, &executor{}, report.Config{Now: now, Timeout: time.Minute}); err == nil {
		t.Error("pods cannot be listed: got no error")
	}
}
