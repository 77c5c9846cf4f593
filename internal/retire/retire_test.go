package retire_test

import (
	"strings"
	"testing"
	"time"

	"imds-oidc-proxy/internal/plan"
	"imds-oidc-proxy/internal/report"
	"imds-oidc-proxy/internal/retire"
)

func compare(t *testing.T, name, got string, want ...string) {
	t.Helper()
	if want := strings.Join(want, "\n"); got != want {
		t.Errorf("%s: got\n%s\nwant\n%s", name, got, want)
	}
}

// TestSidecars checks which sidecars are removed, and what is said about the others.
func TestSidecars(t *testing.T) {
	job := sidecar("job")
	job.version, job.kind = "batch/v1", "Job"
	written := sidecar("written")
	written.containers = ", {name: azwi-proxy, image: proxy}"
	variable := sidecar("variable")
	variable.podSpec = ", initContainers: [{name: i, image: i, env: [{name: AZURE_POD_IDENTITY_AUTHORITY_HOST, value: 'http://127.0.0.1:8000'}]}]"
	managed := sidecar("managed")
	managed.metadata = ", ownerReferences: [{controller: true, apiVersion: example.test/v1, kind: Operator, name: op}]"
	rest := sidecar("rest")
	rest.annotations = nil
	everything := canGo("web", "written", "variable", "managed", "rest")
	everything.Workloads = append(everything.Workloads, report.Workload{Namespace: "ns", Kind: "Job", Name: "job", Verdict: report.CanGo})
	for name, c := range map[string]struct {
		report *report.Report
		app    app
		want   string
	}{
		"can go":      {everything, sidecar("web"), "remove the sidecar of ns deploy/web"},
		"needed":      {verdicts(map[string]report.Verdict{"web": report.Needed}), sidecar("web"), "stays: ns deploy/web: report: needed: because"},
		"waiting":     {verdicts(map[string]report.Verdict{"web": report.Waiting}), sidecar("web"), "stays: ns deploy/web: report: waiting: because"},
		"not known":   {verdicts(map[string]report.Verdict{"web": report.Unknown}), sidecar("web"), "stays: ns deploy/web: report: unknown: because"},
		"other name":  {canGo("other"), sidecar("web"), "stays: ns deploy/web: the report does not have it: make one of all namespaces"},
		"no report":   {nil, sidecar("web"), "stays: ns deploy/web: nothing was observed: set --report to the output of imds-migrate report --output=json"},
		"immutable":   {everything, job, "remove the sidecar of ns job/job (by hand)"},
		"in manifest": {everything, written, "remove the sidecar of ns deploy/written (by hand)"},
		"variable":    {everything, variable, "remove the sidecar of ns deploy/variable (by hand)"},
		"managed":     {everything, managed, "remove the sidecar of ns deploy/managed (by hand)"},
		"old pods":    {everything, rest, "stays: ns deploy/rest: the pods have the sidecar and their template does not request it: restart them"},
		"no sidecar":  {everything, direct("web"), ""},
	} {
		compare(t, name, outline(retired(t, retire.Options{Report: c.report}, c.app)), c.want)
	}
}

// TestCommands checks the commands of a workload: all annotations of the sidecar go in one restart, together
// with the label of aad-pod-identity, and all others stay.
func TestCommands(t *testing.T) {
	cron := sidecar("night")
	cron.version, cron.kind = "batch/v1", "CronJob"
	rollout := sidecar("blue")
	rollout.version, rollout.kind = "argoproj.io/v1alpha1", "Rollout"
	r := canGo("web")
	for kind, name := range map[string]string{"CronJob": "night", "Rollout": "blue"} {
		r.Workloads = append(r.Workloads, report.Workload{Namespace: "ns", Kind: kind, Name: name, Verdict: report.CanGo})
	}
	const annotations = `"annotations":{"azure.workload.identity/inject-proxy-sidecar":null,"imds-oidc-proxy/redirect":null}`
	for name, c := range map[string]struct {
		app  app
		want []string
	}{
		"Deployment": {sidecar("web", bound+"web"), []string{
			`[ "$(date +%s)" -lt 1796202000 ]`,
			"kubectl --namespace=ns rollout status deploy/web --timeout=10m",
			"kubectl --namespace=ns patch deploy/web --type=merge --patch='" + `{"spec":{"template":{"metadata":{` + annotations + `,"labels":{"aadpodidbinding":null}}}}}'`,
			"kubectl --namespace=ns rollout status deploy/web --timeout=10m"}},
		"CronJob": {cron, []string{
			`[ "$(date +%s)" -lt 1796202000 ]`,
			"kubectl --namespace=ns patch cronjob/night --type=merge --patch='" + `{"spec":{"jobTemplate":{"spec":{"template":{"metadata":{` + annotations + `}}}}}}'`}},
		"Rollout": {rollout, []string{
			`[ "$(date +%s)" -lt 1796202000 ]`,
			"kubectl --namespace=ns patch rollouts.argoproj.io/blue --type=merge --patch='" + `{"spec":{"template":{"metadata":{` + annotations + `}}}}'`}},
	} {
		compare(t, name, commands(retired(t, retire.Options{Report: r}, c.app).Steps[0]), c.want...)
	}
}

func commands(s retire.Step) string {
	var all []string
	for _, c := range s.Checks {
		all = append(all, c.Command)
	}
	return strings.Join(append(all, s.Commands...), "\n")
}

// TestReportAge checks the age of the oldest report, and the cluster that it is about.
func TestReportAge(t *testing.T) {
	s := read(t, sidecar("web"))
	p := plan.New(s, plan.Options{ClusterName: "shop"})
	for name, c := range map[string]struct {
		age     time.Duration
		cluster string
		want    string
	}{
		"new":           {0, "", ""},
		"a day":         {24 * time.Hour, "shop", ""},
		"too old":       {24*time.Hour + time.Second, "shop", "the report is 24 hours old, and somebody may have asked since: make a new one (it may be 24 hours old)"},
		"other cluster": {0, "bank", `the report is about cluster "bank", and this is "shop": make a report of this cluster`},
	} {
		r := canGo("web")
		r.Time, r.Cluster = now.Add(-c.age), c.cluster
		_, err := retire.New(s, p, retire.Options{Report: r, Now: now})
		if got := errorText(err); got != c.want {
			t.Errorf("%s: got %q, want %q", name, got, c.want)
		}
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// TestLabels checks when the label of aad-pod-identity is removed.
func TestLabels(t *testing.T) {
	selected := direct("web", bound+"web")
	selected.object = ", selector: {matchLabels: {aadpodidbinding: web}}"
	mounts := sidecar("web", bound+"web")
	mounts.podSpec = ", volumes: [{name: s, csi: {driver: secrets-store.csi.k8s.io, volumeAttributes: {secretProviderClass: vault}}}]"
	const class = "{apiVersion: secrets-store.csi.x-k8s.io/v1, kind: SecretProviderClass, metadata: {namespace: ns, name: vault}, spec: {provider: azure, parameters: {usePodIdentity: 'true'}}}"
	stays := "stays: ns deploy/web: nothing was observed: set --report to the output of imds-migrate report --output=json"
	for name, c := range map[string]struct {
		objects []any
		want    []string
	}{
		"direct":      {[]any{direct("web", bound+"web")}, []string{"remove the label aadpodidbinding of ns deploy/web"}},
		"sidecar":     {[]any{sidecar("web", bound+"web")}, []string{"remove the label aadpodidbinding of ns deploy/web", stays}},
		"in selector": {[]any{selected}, nil},
		"no label":    {[]any{direct("web")}, nil},
		"not yet":     {[]any{app{name: "web", labels: []string{bound + "web"}}}, []string{"stays: ns deploy/web: not migrated yet (node identity); next: the identity is not known"}},
		"volume":      {[]any{mounts, class}, []string{stays, "stays: ns deploy/web, label aadpodidbinding: secretproviderclass/vault uses aad-pod-identity in the name of its pods: change the class first"}},
	} {
		compare(t, name, outline(retired(t, retire.Options{}, c.objects...)), c.want...)
	}
	r := retired(t, retire.Options{}, sidecar("web", bound+"web"))
	if got := r.Steps[0].Checks[0].Command; got != "imds-migrate verify --namespace=ns deployment/web" {
		t.Errorf("check of a sidecar: %s", got)
	}
}

// TestHostile checks that names which the API server would refuse are not in commands, and cannot forge a
// line or control the terminal.
func TestHostile(t *testing.T) {
	const name = `"a'; touch x #\n\e[2J"`
	identity := "{apiVersion: aadpodidentity.k8s.io/v1, kind: AzureIdentity, metadata: {namespace: ns, name: " + name + "}, spec: {clientID: 00000001-0000-4000-8000-000000000001}}"
	binding := "{apiVersion: aadpodidentity.k8s.io/v1, kind: AzureIdentityBinding, metadata: {namespace: ns, name: " + name + "}, spec: {azureIdentity: " + name + ", selector: x}}"
	selector := strings.Replace(bind("web", "x", ""), `selector: "x"`, `selector: "$(touch x)"`, 1)
	report := canGo("a'; touch x #\n\x1b[2J")
	r := retired(t, retire.Options{Report: report}, sidecar(name), direct(name, bound+"web"), identity, binding, selector, nmi(""), mic)
	for _, s := range r.Steps {
		if text := commands(s); strings.Contains(text, "touch") {
			t.Errorf("%s", text)
		}
	}
	got := outline(r)
	if strings.Count(got, "the API server does not allow this name") != 3 || strings.Contains(got, "\x1b") || strings.Contains(got, "#\n") {
		t.Errorf("got\n%q", got)
	}
}

// TestExitCodes checks the exit codes.
func TestExitCodes(t *testing.T) {
	for name, c := range map[string]struct {
		options retire.Options
		objects []any
		want    int
	}{
		"nothing":         {retire.Options{}, []any{direct("web")}, plan.ExitNothing},
		"a step":          {retire.Options{Report: canGo("web")}, []any{sidecar("web"), sidecar("app")}, plan.ExitWork},
		"all stays":       {retire.Options{}, []any{sidecar("web")}, plan.ExitBlocked},
		"not everything":  {retire.Options{}, []any{direct("web"), "{apiVersion: argoproj.io/v9, kind: Rollout, metadata: {namespace: ns, name: r}}"}, plan.ExitNotRead},
		"does not matter": {retire.Options{}, []any{direct("web"), "{apiVersion: keda.sh/v9, kind: TriggerAuthentication, metadata: {namespace: ns, name: r}}"}, plan.ExitNothing},
	} {
		if r := retired(t, c.options, c.objects...); r.ExitCode() != c.want {
			t.Errorf("%s: got %d, want %d:\n%s\n%v", name, r.ExitCode(), c.want, outline(r), r.NotRead)
		}
	}
}
