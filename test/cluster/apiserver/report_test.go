package apiserver

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"imds-oidc-proxy/internal/inject"
	"imds-oidc-proxy/internal/report"
	"imds-oidc-proxy/test/cluster"
	"imds-oidc-proxy/test/kit/entra"
	"imds-oidc-proxy/test/kit/local"
	"imds-oidc-proxy/test/kit/memory"
)

// reportTimeout limits a test that creates thousands of pods, or runs Prometheus.
const reportTimeout = 8 * time.Minute

// migration is the result of a run of imds-migrate.
type migration struct {
	stdout, stderr string
	code           int
	memory         int64 // the most, in bytes
}

// migrate runs a command of imds-migrate.
func migrate(ctx context.Context, t *testing.T, args ...string) migration {
	t.Helper()
	cmd := exec.CommandContext(ctx, program("imds-migrate"), args...)
	var out, messages bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &messages
	peak, err := memory.Run(cmd)
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
		t.Fatal(err)
	}
	return migration{out.String(), messages.String(), cmd.ProcessState.ExitCode(), peak}
}

// report returns the report that was printed.
func (m migration) report(t *testing.T) *report.Report {
	t.Helper()
	r := new(report.Report)
	if err := json.Unmarshal([]byte(m.stdout), r); err != nil || m.stderr != "" {
		t.Fatalf("%v, exit code %d: %s%s", err, m.code, m.stdout, m.stderr)
	}
	return r
}

// workload returns one workload of a report.
func workload(t *testing.T, r *report.Report, key string) report.Workload {
	t.Helper()
	i := slices.IndexFunc(r.Workloads, func(w report.Workload) bool { return w.Key() == key })
	if i < 0 {
		t.Fatalf("no %s in %+v", key, r.Workloads)
	}
	return r.Workloads[i]
}

// strangerID is an identity whose federated credential is that of another service account.
const strangerID = "77777777-8888-4999-aaaa-bbbbbbbbbbbb"

// nodeless is a namespace whose pods have no kubelet: the test runs their proxies, and writes their status.
type nodeless struct {
	namespace, kubeconfig, token, ca string
}

func newNodeless(ctx context.Context, t *testing.T) *nodeless {
	t.Helper()
	n := &nodeless{namespace: appNamespace(ctx, t), kubeconfig: writeKubeconfig(t)}
	running.Entra.AddApplication(entra.Application{ClientID: strangerID, Credentials: []entra.FederatedCredential{{Issuer: cluster.Issuer, Subject: "system:serviceaccount:other:default"}}})
	dir := t.TempDir()
	n.token, n.ca = filepath.Join(dir, "token"), filepath.Join(dir, "ca.pem")
	token := projectedToken(ctx, t, n.namespace, entra.DefaultAudience)
	if err := errors.Join(os.WriteFile(n.token, []byte(token), 0o644), running.Entra.WriteCA(n.ca), os.Chmod(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	return n
}

// deploy creates a Deployment with the sidecar, and returns its pod when the controllers have created it.
func (n *nodeless) deploy(ctx context.Context, t *testing.T, name string, annotations ...string) *corev1.Pod {
	t.Helper()
	pod := injected(func(p *corev1.Pod) { p.Labels["app"] = name })
	for i := 0; i+1 < len(annotations); i += 2 {
		pod.Annotations[annotations[i]] = annotations[i+1]
	}
	_, err := running.Client.AppsV1().Deployments(n.namespace).Create(ctx, &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: appsv1.DeploymentSpec{
		Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": name}},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: pod.Labels, Annotations: pod.Annotations}, Spec: pod.Spec},
	}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	err = cluster.Wait(ctx, func(ctx context.Context) error {
		pods, err := running.Client.CoreV1().Pods(n.namespace).List(ctx, metav1.ListOptions{LabelSelector: "app=" + name})
		if err != nil || len(pods.Items) != 1 {
			return fmt.Errorf("%d pods of %s: %w", len(pods.Items), name, err)
		}
		pod = &pods.Items[0]
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return pod
}

// start writes the status of a pod whose sidecar has started at a time.
func start(ctx context.Context, pod *corev1.Pod, at time.Time) error {
	pod = pod.DeepCopy()
	pod.ResourceVersion = "" // whatever a controller has changed meanwhile
	pod.Status = corev1.PodStatus{Phase: corev1.PodRunning, PodIP: cluster.NodeAddress, PodIPs: []corev1.PodIP{{IP: cluster.NodeAddress}},
		InitContainerStatuses: []corev1.ContainerStatus{{Name: inject.ProxyName, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(at)}}}}}
	_, err := running.Client.CoreV1().Pods(pod.Namespace).UpdateStatus(ctx, pod, metav1.UpdateOptions{})
	return err
}

func started(ctx context.Context, t *testing.T, pod *corev1.Pod, at time.Time) {
	t.Helper()
	if err := start(ctx, pod, at); err != nil {
		t.Fatal(err)
	}
}

// runProxy runs the proxy of a pod, with its admin port on the node's address, and returns the port at which
// it answers token requests.
func (n *nodeless) runProxy(ctx context.Context, t *testing.T, admin string) (port string) {
	t.Helper()
	port = freePort(t)
	env := []string{
		"AZURE_TENANT_ID=" + running.Entra.TenantID(), "AZURE_CLIENT_ID=" + strangerID, "AZURE_AUTHORITY_HOST=" + running.Entra.AuthorityHost(), "AZURE_FEDERATED_TOKEN_FILE=" + n.token,
		"PROXY_CA_FILE=" + n.ca, "PROXY_PORT=" + port, "PROXY_ADMIN_ADDRESS=" + net.JoinHostPort(cluster.NodeAddress, admin), "PROXY_IMDS_PASSTHROUGH=off",
	}
	proxy := exec.Command(program("proxy"))
	proxy.Env = env
	if err := proxy.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = proxy.Process.Signal(syscall.SIGTERM) // it may have exited
		_ = proxy.Wait()                          // the exit code does not matter here
	})
	probe := exec.CommandContext(ctx, program("proxy"), "--probe", "--probe-timeout=20s")
	probe.Env = env
	if output, err := probe.CombinedOutput(); err != nil {
		t.Fatalf("%v, %s", err, output)
	}
	return port
}

func freePort(t *testing.T) string {
	t.Helper()
	port, err := local.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	return strconv.Itoa(port)
}

// askProxy sends a token request as an old SDK does, and returns the status.
func askProxy(ctx context.Context, t *testing.T, port, query string) int {
	t.Helper()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1:"+port+"/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://vault.azure.net"+query, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header = http.Header{"Metadata": {"true"}, "User-Agent": {"azsdk-go-azidentity/v1.1.0 (go1.19; linux)"}}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode
}

// TestReport checks imds-migrate report with the API server's proxy for pods: real proxies, one that a
// client has asked, one that nobody has asked, one without an admin port, a CronJob, and the role of
// docs/report.md.
func TestReport(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 4*testTimeout)
	defer cancel()
	n := newNodeless(ctx, t)
	for _, name := range []string{"asked", "quiet"} {
		admin := freePort(t)
		pod := n.deploy(ctx, t, name, inject.AdminPortAnnotation, admin)
		started(ctx, t, pod, time.Now().Add(-3*24*time.Hour))
		port := n.runProxy(ctx, t, admin)
		if name == "asked" {
			if status := askProxy(ctx, t, port, ""); status != http.StatusInternalServerError { // no federated credential matches
				t.Fatalf("got status %d", status)
			}
			if status := askProxy(ctx, t, port, "&object_id=x"); status != http.StatusBadRequest {
				t.Fatalf("got status %d", status)
			}
		}
	}
	started(ctx, t, n.deploy(ctx, t, "silent"), time.Now())
	n.createCronJob(ctx, t)
	flags := []string{"report", "--kubeconfig=" + n.kubeconfig, "--namespace=" + n.namespace, "--output=json", "--timeout=10s"}

	result := migrate(ctx, t, flags...)
	r := result.report(t)
	asked, quiet, silent, yearly := workload(t, r, "deployment/asked"), workload(t, r, "deployment/quiet"), workload(t, r, "deployment/silent"), workload(t, r, "cronjob/yearly")
	if result.code != 3 || asked.Verdict != report.Needed || asked.Text != "go-azidentity 1.1.0: azidentity (Go) 1.3.0 or later" || len(asked.Clients) != 1 || asked.Clients[0].Requests != 2 || asked.Failed["700213"] == 0 || asked.Refused["identity_not_found"] != 1 {
		t.Errorf("a client has asked: exit code %d, %+v", result.code, asked)
	}
	if days := report.Days(time.Duration(quiet.PeriodSeconds) * time.Second); quiet.Verdict != report.Waiting || quiet.ObservedSeconds/3600/24 != 3 || quiet.PeriodOf != "cronjob/yearly" || days != "366 days" && days != "365 days" {
		t.Errorf("nobody has asked: %+v", quiet)
	}
	if yearly.Verdict != report.Unknown || silent.Verdict != report.Unknown || len(r.NotAsked) != 1 || r.NotAsked[0].Code != "IMDS402" || !strings.HasPrefix(r.NotAsked[0].Pod, "silent-") {
		t.Errorf("without an admin port and a kubelet: %+v, not asked %+v", silent, r.NotAsked)
	}
	if result := migrate(ctx, t, append(flags, "--period=2d")...); workload(t, result.report(t), "deployment/quiet").Verdict != report.CanGo {
		t.Errorf("a period of two days: %s", result.stdout)
	}
	if result := migrate(ctx, t, "report", "--kubeconfig="+n.kubeconfig, "--namespace=gone"); result.code != 1 || result.stderr != "imds-migrate: namespace gone does not exist\n" || result.stdout != "" {
		t.Errorf("a namespace that does not exist: %+v", result)
	}
	t.Run("permissions", func(t *testing.T) { n.permissions(ctx, t, flags) })
}

// createCronJob creates a CronJob that runs once a year.
func (n *nodeless) createCronJob(ctx context.Context, t *testing.T) {
	t.Helper()
	pod := injected()
	pod.Spec.RestartPolicy = corev1.RestartPolicyNever
	_, err := running.Client.BatchV1().CronJobs(n.namespace).Create(ctx, &batchv1.CronJob{ObjectMeta: metav1.ObjectMeta{Name: "yearly"}, Spec: batchv1.CronJobSpec{
		Schedule:    "30 4 1 1 *",
		JobTemplate: batchv1.JobTemplateSpec{Spec: batchv1.JobSpec{Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: pod.Labels, Annotations: pod.Annotations}, Spec: pod.Spec}}},
	}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

// permissions checks the role of docs/report.md: with it the report is the same, and without each of its
// rules the report names what is missing.
func (n *nodeless) permissions(ctx context.Context, t *testing.T, flags []string) {
	page, err := os.ReadFile(repository + "/docs/report.md")
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindSubmatch(page)
	objects, err := cluster.Objects(block[1])
	if err != nil || len(objects) != 1 {
		t.Fatal(err, objects)
	}
	role, err := running.Apply(ctx, objects[0], false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = running.Client.RbacV1().ClusterRoles().Delete(context.Background(), role.GetName(), metav1.DeleteOptions{})
	})
	full, err := running.Client.RbacV1().ClusterRoles().Get(ctx, role.GetName(), metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	as := func(t *testing.T, user string, rules []rbacv1.PolicyRule) migration {
		role := rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: user}
		subject := rbacv1.Subject{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: user}
		_, err := running.Client.RbacV1().Roles(n.namespace).Create(ctx, &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Name: user}, Rules: rules}, metav1.CreateOptions{})
		_, bound := running.Client.RbacV1().RoleBindings(n.namespace).Create(ctx, &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Name: user}, RoleRef: role, Subjects: []rbacv1.Subject{subject}}, metav1.CreateOptions{})
		if err := errors.Join(err, bound); err != nil {
			t.Fatal(err)
		}
		return migrate(ctx, t, append(flags, "--as="+user)...)
	}
	without := func(resource string) (rules []rbacv1.PolicyRule) {
		for _, rule := range full.Rules {
			rule.Resources = slices.DeleteFunc(slices.Clone(rule.Resources), func(r string) bool { return r == resource })
			if len(rule.Resources) > 0 {
				rules = append(rules, rule)
			}
		}
		return rules
	}
	if result := as(t, "all", full.Rules); result.code != 3 || result.report(t).Summary.PodsAsked != 2 {
		t.Errorf("the documented role in the namespace: %+v", result)
	}
	for resource, want := range map[string]string{
		"pods":     "imds-migrate: cannot list pods: you may not list pods\n",
		"cronjobs": "IMDS407 cronjobs.batch: you may not list cronjobs.batch", "deployments": "IMDS407 deployments.apps: you may not list deployments.apps",
		"pods/exec": "IMDS401 you may not create pods/exec", "pods/proxy": "IMDS401 you may not get pods/proxy, and proxy clients cannot be run: ", "pods/log": "IMDS408 logs in namespace " + n.namespace + ": you may not get pods/log: so the errors are not known",
	} {
		result := as(t, "no-"+strings.ReplaceAll(resource, "/", "-"), without(resource))
		if result.stdout == "" {
			if result.stderr != want || result.code != 1 {
				t.Errorf("without %s: got %s%s, want %s", resource, result.stdout, result.stderr, want)
			}
			continue
		}
		var lines []string
		r := result.report(t)
		for _, x := range r.NotRead {
			lines = append(lines, x.Code+" "+x.What+": "+x.Why)
		}
		for _, x := range r.NotAsked {
			lines = append(lines, x.Code+" "+x.Reason)
		}
		if text := strings.Join(lines, "\n"); !strings.Contains(text, want) || result.code == 0 {
			t.Errorf("without %s: exit code %d, got %q, want %q", resource, result.code, text, want)
		}
	}
	lists := full.Rules[:len(full.Rules)-2]
	if result := as(t, "lists", lists); result.code != 1 || result.stderr != "" || strings.Count(result.stdout, "you may neither get pods/proxy nor create pods/exec") != 2 {
		t.Errorf("with lists only: exit code %d, %s%s", result.code, result.stdout, result.stderr)
	}
}

// TestReportPrometheus checks imds-migrate report with a real Prometheus, which scrapes a real proxy and has
// data of pods that are gone.
func TestReportPrometheus(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), reportTimeout)
	defer cancel()
	n := newNodeless(ctx, t)
	admin := freePort(t)
	pod := n.deploy(ctx, t, "web", inject.AdminPortAnnotation, admin)
	n.runProxy(ctx, t, admin)
	const gone, day = "web-5d4f6c7b8-zzzzz", 24 * time.Hour
	for _, c := range []struct {
		name    string
		data    time.Duration // that Prometheus has
		pause   int           // the day on which Prometheus did not run; 0: none
		asked   bool
		target  string
		verdict report.Verdict
		text    string
	}{
		{"36 days of data", 36 * day, 0, false, admin, report.CanGo, "nobody has asked for 35 days: the sidecar can go, if no job runs less often than every 35 days"},
		{"20 days of data", 20*day + 2*time.Hour, 0, false, admin, report.Waiting, "nobody has asked for 20 days; wait until 35 days have passed"},
		{"a pause", 36 * day, 10, false, admin, report.Waiting, "nobody has asked for 9 days; wait until 35 days have passed"},
		{"a pod that is gone has asked", 36 * day, 0, true, admin, report.Needed, "python-azure-identity 1.5.0: upgrade it"},
		{"the pod is not scraped", 36 * day, 0, false, "", report.Waiting, "nobody has asked for 60 minutes; wait until 35 days have passed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			started(ctx, t, pod, time.Now().Add(-time.Hour))
			address := runPrometheus(ctx, t, n.namespace, pod.Name, c.target, history(n.namespace, gone, c.data, c.pause, c.asked))
			result := migrate(ctx, t, "report", "--kubeconfig="+n.kubeconfig, "--namespace="+n.namespace, "--output=json", "--prometheus="+address)
			w := workload(t, result.report(t), "deployment/web")
			if w.Verdict != c.verdict || w.Text != c.text || (result.code == 0) != (c.verdict == report.CanGo) || slices.Contains(w.Codes, "IMDS409") != (c.target == "") {
				t.Errorf("exit code %d, %s: %s %v, want %s: %s", result.code, w.Verdict, w.Text, w.Codes, c.verdict, c.text)
			}
		})
	}
}

// history returns samples of a pod that is gone, every four minutes.
func history(namespace, pod string, data time.Duration, pause int, asked bool) string {
	const day = 24 * time.Hour
	labels := fmt.Sprintf(`namespace=%q,pod=%q`, namespace, pod)
	now := time.Now().Truncate(time.Minute)
	series := map[string]string{"imds_oidc_proxy_build_info": labels + `,version="v0.1.0"`, "up": labels}
	if asked {
		series["imds_oidc_proxy_callers"] = labels + `,sdk="python-azure-identity",version="1.5.0",workload_identity="no"`
	}
	text := new(strings.Builder)
	for name, labels := range series {
		fmt.Fprintf(text, "# TYPE %s gauge\n", name)
		for at := now.Add(-data); at.Before(now.Add(-5 * time.Minute)); at = at.Add(4 * time.Minute) {
			if int(now.Sub(at)/day) != pause || pause == 0 {
				fmt.Fprintf(text, "%s{%s} 1 %d\n", name, labels, at.Unix())
			}
		}
	}
	return text.String() + "# EOF\n"
}

// prometheusProgram returns the path of a program of Prometheus: that of the system, or the one that the
// Makefile has unpacked.
func prometheusProgram(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err == nil {
		return path
	}
	if path, err = filepath.Abs(repository + "/.cache/prometheus/usr/bin/" + name); err == nil {
		_, err = os.Stat(path)
	}
	if err != nil {
		t.Fatalf("%s: not found (tools/debs .cache/prometheus prometheus)", name)
	}
	return path
}

// runPrometheus starts Prometheus with data of the past, and returns its address when it has scraped the pod.
func runPrometheus(ctx context.Context, t *testing.T, namespace, pod, admin, past string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "past"), []byte(past), 0o600); err != nil {
		t.Fatal(err)
	}
	if output, err := exec.CommandContext(ctx, prometheusProgram(t, "promtool"), "tsdb", "create-blocks-from", "openmetrics", "--max-block-duration=400h", filepath.Join(dir, "past"), filepath.Join(dir, "data")).CombinedOutput(); err != nil {
		t.Fatalf("%v, %s", err, output)
	}
	config := "global: {scrape_interval: 1s}\n"
	if admin != "" {
		config += fmt.Sprintf("scrape_configs:\n- job_name: proxies\n  static_configs:\n  - targets: ['%s:%s']\n    labels: {namespace: %s, pod: %s}\n", cluster.NodeAddress, admin, namespace, pod)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.yaml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	listen := "127.0.0.1:" + freePort(t)
	server := exec.Command(prometheusProgram(t, "prometheus"), "--config.file="+filepath.Join(dir, "config.yaml"), "--storage.tsdb.path="+filepath.Join(dir, "data"), "--storage.tsdb.retention.time=60d", "--web.listen-address="+listen)
	var log bytes.Buffer
	server.Stdout, server.Stderr = &log, &log
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = server.Process.Kill()
		_ = server.Wait() // it was killed
		if t.Failed() {
			t.Logf("%.4000s", log.String())
		}
	})
	wanted := "imds_oidc_proxy_build_info"
	if admin != "" {
		wanted += "%7Bpod=%22" + pod + "%22%7D"
	} else {
		wanted = "vector(1)"
	}
	err := cluster.Wait(ctx, func(ctx context.Context) error {
		return answers(ctx, "http://"+listen+"/api/v1/query?query="+wanted, http.StatusOK, `"value":[`)
	})
	if err != nil {
		t.Fatal(err, log.String())
	}
	return "http://" + listen
}

// fakePods answers for the admin ports of all pods: there is no node that could run so many.
type fakePods struct {
	running, most, asked atomic.Int32
	first                sync.Once
	meanwhile            func()                                        // runs before the first answer
	answer               func(http.ResponseWriter, *http.Request) bool // nil, or false: the usual answer
}

// fakeAnswer is the census of a sidecar that an old SDK has asked an hour ago.
var fakeAnswer = strings.NewReplacer("FIRST", time.Now().Add(-20*time.Hour).UTC().Format(time.RFC3339), "LAST", time.Now().Add(-time.Hour).UTC().Format(time.RFC3339)).Replace(`{"clients": [{"sdk": "go-azidentity", "version": "1.1.0", "workload_identity": "no", "upgrade": "azidentity (Go) 1.3.0 or later", "requests": 3, "first_seen": "FIRST", "last_seen": "LAST"}]}` + "\n")

func (f *fakePods) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	n := f.running.Add(1)
	defer f.running.Add(-1)
	for most := f.most.Load(); n > most && !f.most.CompareAndSwap(most, n); most = f.most.Load() {
	}
	f.first.Do(func() {
		if f.meanwhile != nil {
			f.meanwhile()
		}
	})
	switch {
	case f.answer != nil && f.answer(w, r):
	case r.URL.Path == "/debug/clients":
		f.asked.Add(1)
		_, _ = io.WriteString(w, fakeAnswer)
	case r.URL.Path == "/metrics":
		_, _ = io.WriteString(w, "imds_oidc_proxy_build_info{version=\"v0.1.0\",goversion=\"go\"} 1\n")
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}

// listen serves the admin ports, and returns the port.
func (f *fakePods) listen(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", cluster.NodeAddress+":0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: f}
	go func() { _ = server.Serve(listener) }() // it ends with the test
	t.Cleanup(func() { server.Close() })
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	return port
}

// barePod returns a pod without an owner, whose sidecar has an admin port.
func barePod(name, port string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PodSpec{
		AutomountServiceAccountToken: new(bool),
		Containers:                   []corev1.Container{{Name: "app", Image: appImage}},
		InitContainers:               []corev1.Container{{Name: inject.ProxyName, Image: proxyImage, RestartPolicy: new(corev1.ContainerRestartPolicyAlways), Env: []corev1.EnvVar{{Name: "PROXY_ADMIN_ADDRESS", Value: ":" + port}}}},
	}}
}

// createBare creates a pod whose sidecar has started at a time. owner may be nil.
func createBare(ctx context.Context, namespace, name, port string, at time.Time, owner *appsv1.Deployment) error {
	pod := barePod(name, port)
	if owner != nil {
		pod.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(owner, appsv1.SchemeGroupVersion.WithKind("Deployment"))}
	}
	pod, err := running.Client.CoreV1().Pods(namespace).Create(ctx, pod, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	return start(ctx, pod, at)
}

// TestReportManyPods checks the time, the memory and the number of requests at the same time of a report
// about a large namespace.
func TestReportManyPods(t *testing.T) {
	const pods, maxMemory = 2000, 200 << 20
	ctx, cancel := context.WithTimeout(t.Context(), reportTimeout)
	defer cancel()
	fake := new(fakePods)
	port, namespace, at := fake.listen(t), appNamespace(ctx, t, ownWebhookLabel, "none"), time.Now().Add(-24*time.Hour)
	const creators = 20
	failures := make([]error, creators)
	var group sync.WaitGroup
	for c := range creators {
		group.Go(func() {
			for i := c; i < pods && failures[c] == nil; i += creators {
				failures[c] = createBare(ctx, namespace, fmt.Sprintf("pod-%d", i), port, at, nil)
			}
		})
	}
	group.Wait()
	if err := errors.Join(failures...); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	result := migrate(ctx, t, "report", "--kubeconfig="+writeKubeconfig(t), "--namespace="+namespace, "--output=json")
	took := time.Since(began)
	r := result.report(t)
	t.Logf("%d pods in %s, %d MiB, at most %d at the same time", r.Summary.PodsAsked, took.Round(100*time.Millisecond), result.memory>>20, fake.most.Load())
	if result.code != 3 || r.Summary.Needed != pods || fake.asked.Load() != pods || fake.most.Load() > 8 || result.memory > maxMemory || len(r.Upgrades) != 1 || len(r.Upgrades[0].Workloads) != pods {
		t.Errorf("exit code %d, %+v, asked %d, not asked %.1000v", result.code, r.Summary, fake.asked.Load(), r.NotAsked)
	}
	again := migrate(ctx, t, "report", "--kubeconfig="+writeKubeconfig(t), "--namespace="+namespace, "--output=csv")
	if rows := strings.Split(again.stdout, "\n"); len(rows) != pods+2 || !slices.IsSorted(rows[1:pods+1]) {
		t.Errorf("got %d rows, want %d in order", len(rows), pods+2)
	}
}

// TestReportMeanwhile checks a report while a pod starts and another one ends, a hostile pod that redirects to
// another host or sends an endless error, and an interrupt.
func TestReportMeanwhile(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*testTimeout)
	defer cancel()
	kubeconfig, at := writeKubeconfig(t), time.Now().Add(-24*time.Hour)
	t.Run("a pod starts", func(t *testing.T) {
		fake := new(fakePods)
		port, namespace := fake.listen(t), appNamespace(ctx, t, ownWebhookLabel, "none")
		template := injected(func(p *corev1.Pod) { p.Labels["app"] = "web" })
		owner, err := running.Client.AppsV1().Deployments(namespace).Create(ctx, &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: appsv1.DeploymentSpec{
			Replicas: new(int32), Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: template.Labels, Annotations: template.Annotations}, Spec: template.Spec},
		}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(createBare(ctx, namespace, "old", port, at, owner), createBare(ctx, namespace, "going", port, at, owner)); err != nil {
			t.Fatal(err)
		}
		fake.meanwhile = func() {
			err := running.Client.CoreV1().Pods(namespace).Delete(ctx, "going", metav1.DeleteOptions{GracePeriodSeconds: new(int64)})
			if err := errors.Join(err, createBare(ctx, namespace, "new", port, time.Now(), owner)); err != nil {
				t.Error(err)
			}
		}
		fake.answer = func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.Header.Get("X-Forwarded-Uri"), "http:new:") || r.URL.Path != "/debug/clients" {
				return false
			}
			_, err := io.WriteString(w, strings.Replace(fakeAnswer, "go-azidentity", "of-the-new-pod", 1))
			return err == nil
		}
		r := migrate(ctx, t, "report", "--kubeconfig="+kubeconfig, "--namespace="+namespace, "--output=json").report(t)
		if w := workload(t, r, "deployment/web"); len(w.Clients) != 2 || w.Clients[1].SDK != "of-the-new-pod" || w.Pods < 2 || len(r.NotAsked) > 1 {
			t.Errorf("got %+v, not asked %+v", w, r.NotAsked)
		}
		for _, x := range r.NotAsked { // if it was not asked before it ended
			if x.Pod != "going" || x.Code != "IMDS406" {
				t.Errorf("not asked: %+v", x)
			}
		}
	})
	t.Run("a hostile pod", func(t *testing.T) {
		fake := new(fakePods)
		port, namespace := fake.listen(t), appNamespace(ctx, t, ownWebhookLabel, "none")
		elsewhere := new(fakePods)
		target := "http://" + cluster.NodeAddress + ":" + elsewhere.listen(t)
		endless := bytes.Repeat([]byte("<script>\x1b[2J"), 1<<16)
		fake.answer = func(w http.ResponseWriter, r *http.Request) bool {
			if strings.Contains(r.Header.Get("X-Forwarded-Uri"), "http:redirects:") {
				http.Redirect(w, r, target+"/debug/clients", http.StatusTemporaryRedirect)
				return true
			}
			w.WriteHeader(http.StatusInternalServerError)
			for range 1 << 10 {
				if _, err := w.Write(endless); err != nil {
					break
				}
			}
			return true
		}
		if err := errors.Join(createBare(ctx, namespace, "redirects", port, at, nil), createBare(ctx, namespace, "endless", port, at, nil)); err != nil {
			t.Fatal(err)
		}
		result := migrate(ctx, t, "report", "--kubeconfig="+kubeconfig, "--namespace="+namespace, "--output=json", "--timeout=5s")
		r := result.report(t)
		if elsewhere.asked.Load() > 0 || len(r.NotAsked) != 2 || result.code != 1 || len(result.stdout) > 20<<10 || strings.ContainsAny(result.stdout, "\x1b") || result.memory > 200<<20 {
			t.Errorf("exit code %d, %d MiB, the target was asked %d times: %s", result.code, result.memory>>20, elsewhere.asked.Load(), result.stdout)
		}
	})
	t.Run("an interrupt", func(t *testing.T) {
		fake, asked := new(fakePods), make(chan struct{})
		fake.meanwhile = func() { close(asked) }
		fake.answer = func(_ http.ResponseWriter, r *http.Request) bool { <-r.Context().Done(); return true }
		port, namespace := fake.listen(t), appNamespace(ctx, t, ownWebhookLabel, "none")
		if err := createBare(ctx, namespace, "slow", port, at, nil); err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(ctx, program("imds-migrate"), "report", "--kubeconfig="+kubeconfig, "--namespace="+namespace)
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		select {
		case <-asked:
		case <-ctx.Done():
			t.Fatal("the pod was not asked")
		}
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		if code := cmd.ProcessState.ExitCode(); code != 1 || strings.Count(out.String(), "\n") != 1 || !strings.HasPrefix(out.String(), "imds-migrate: interrupt") {
			t.Errorf("exit code %d, %s", code, &out)
		}
	})
}
