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
	everything.Workloads = append(everything.Workloads, report.Workload{Namespace: "ns", Group: "batch", Kind: "Job", Name: "job", Verdict: report.CanGo})
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
	r.Workloads = append(r.Workloads, report.Workload{Namespace: "ns", Group: "batch", Kind: "CronJob", Name: "night", Verdict: report.CanGo},
		report.Workload{Namespace: "ns", Group: "argoproj.io", Kind: "Rollout", Name: "blue", Verdict: report.CanGo})
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
		"ahead":         {-5 * time.Minute, "", ""},
		"future":        {-5*time.Minute - time.Second, "", "the report is from 2026-12-01T10:05:01Z, which is in the future: correct the clock of this machine, or make a new report"},
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
		"KEDA":            {retire.Options{}, []any{direct("web"), "{apiVersion: keda.sh/v9, kind: TriggerAuthentication, metadata: {namespace: ns, name: r}}"}, plan.ExitNotRead},
		"does not matter": {retire.Options{}, []any{direct("web"), "{apiVersion: cert-manager.io/v9, kind: Issuer, metadata: {namespace: ns, name: r}}"}, plan.ExitNothing},
	} {
		if r := retired(t, c.options, c.objects...); r.ExitCode() != c.want {
			t.Errorf("%s: got %d, want %d:\n%s\n%v", name, r.ExitCode(), c.want, outline(r), r.NotRead)
		}
	}
}

// TestGroups checks that a report about a kind of another group does not count, and that it has each workload once.
func TestGroups(t *testing.T) {
	db := sidecar("db")
	db.version, db.kind = "apps.kruise.io/v1beta1", "StatefulSet"
	of := func(group string, v report.Verdict) report.Workload {
		return report.Workload{Namespace: "ns", Group: group, Kind: "StatefulSet", Name: "db", Verdict: v, Text: "because"}
	}
	core := sidecar("db")
	core.version, core.kind = "apps/v1", "StatefulSet"
	r := &report.Report{Time: now, Workloads: []report.Workload{of("apps", report.Needed), of("apps.kruise.io", report.CanGo)}}
	compare(t, "two groups", outline(retired(t, retire.Options{Report: r}, core, strings.ReplaceAll(db.String(), "name: db, labels", "name: db-0, labels"))),
		"remove the sidecar of ns statefulset/db", "stays: ns statefulset/db: report: needed: because")
	r.Workloads[1].Group = "apps"
	s := read(t, core)
	_, err := retire.New(s, plan.New(s, plan.Options{}), retire.Options{Report: r, Now: now})
	if got := errorText(err); got != "the report has statefulset/db of namespace ns twice: make a new one" {
		t.Errorf("the same twice: %s", got)
	}
}

// TestHeld checks that a change which does not replace the pods is a step by hand, without a wait that never ends.
func TestHeld(t *testing.T) {
	for name, c := range map[string]struct{ kind, object, want string }{
		"OnDelete": {"StatefulSet", ", updateStrategy: {type: OnDelete}", "run this command, then delete the pods of statefulset/web one after the other: with the update strategy OnDelete, only new pods have the change"},
		"paused":   {"Deployment", ", paused: true", "run this command, then resume deploy/web: it is paused, so its pods are not replaced"},
		"rolling":  {"StatefulSet", ", updateStrategy: {type: RollingUpdate}", ""},
	} {
		web := direct("web", bound+"web")
		web.version, web.kind, web.object = "apps/v1", c.kind, c.object
		s := retired(t, retire.Options{}, web).Steps[0]
		if s.ByHand != c.want || strings.Contains(commands(s), "rollout") != (c.want == "") || s.Patch == nil || !strings.Contains(commands(s), " patch ") {
			t.Errorf("%s: by hand %q, commands\n%s", name, s.ByHand, commands(s))
		}
	}
}

// TestFlags checks that all commands for the cluster choose the one that was read.
func TestFlags(t *testing.T) {
	r := retired(t, retire.Options{Report: canGo("app"), Flags: []string{"--kubeconfig=/a b", "--context=shop", "--server=https://api.example.test"}},
		sidecar("app"), sidecar("web", bound+"web"), bind("old", "old", ""), assigned("ns/old"), exception("e", "app: gone"), nmi(release), mic)
	r.Steps = append(r.Steps, retired(t, retire.Options{Flags: []string{"--context=shop"}}, bind("old", "old", ""), assigned("ns/old"), nmi(""), mic).Steps...)
	r.Steps = append(r.Steps, retired(t, retire.Options{Flags: []string{"--context=shop"}}, assigned("ns/old")).Steps...)
	seen := map[string]bool{}
	for _, s := range r.Steps {
		for line := range strings.SplitSeq(commands(s), "\n") {
			for _, c := range []struct{ program, flag string }{{"kubectl", "--context=shop"}, {"helm uninstall", "--kube-context=shop"}, {"imds-migrate", "--context=shop"}} {
				n := strings.Count(line, c.program+" ")
				seen[c.program] = seen[c.program] || n > 0
				if strings.Count(line, c.flag+" ") < n {
					t.Errorf("%s: the cluster is not chosen: %s", s.Title, line)
				}
			}
			if strings.HasPrefix(line, "helm") {
				compare(t, "helm", line, "helm uninstall --ignore-not-found --kubeconfig='/a b' --kube-context=shop --kube-apiserver=https://api.example.test --namespace=aad pod-identity")
			}
		}
	}
	if len(seen) != 3 || !seen["helm uninstall"] || !seen["imds-migrate"] {
		t.Errorf("not all programs have a command: %v", seen)
	}
}
