package report_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"imds-oidc-proxy/internal/report"
)

// changing is a cluster whose pods are others in each list. The last list stays.
type changing struct {
	api
	lists []string
	reads int
}

func (c *changing) Get(ctx context.Context, path string, query url.Values) (io.ReadCloser, error) {
	if path != "/api/v1/pods" {
		return c.api.Get(ctx, path, query)
	}
	list := c.lists[min(c.reads, len(c.lists)-1)]
	c.reads++
	return io.NopCloser(strings.NewReader(`{"items": [` + list + `]}`)), nil
}

// TestComeAndGo: pods that start, restart and end while the report is made. The first list is the survey's.
func TestComeAndGo(t *testing.T) {
	a, b := sidecar("web", "aaaaa", 40*day, ""), sidecar("web", "bbbbb", time.Hour, "")
	restarted := sidecar("web", "aaaaa", 2*time.Hour, "")
	going := strings.Replace(a, `"metadata": {`, `"metadata": {"deletionTimestamp": "2026-11-29T12:00:00Z", `, 1)
	again := func(uid string) string {
		return strings.Replace(b, `"metadata": {`, `"metadata": {"uid": "`+uid+`", `, 1)
	}
	known := map[string]string{"web-5d4f-aaaaa": census(), "web-5d4f-bbbbb": census(old)}
	for name, c := range map[string]struct {
		lists    []string
		answers  map[string]string
		want     string
		notAsked []string
	}{
		"stable":                   {[]string{a}, known, "can go: nobody has asked for 40 days", nil},
		"one starts":               {[]string{a, a, a + "," + b}, known, "needed: go-azidentity 1.1.0", nil},
		"one restarts":             {[]string{a, a, restarted}, known, "waiting: nobody has asked for 2 hours", nil},
		"one restarts and forgets": {[]string{b, b, strings.ReplaceAll(b, "11:00:00Z", "11:59:00Z")}, map[string]string{"web-5d4f-bbbbb": census(old), "again": census()}, "needed: go-azidentity 1.1.0", nil},
		"one ends, and was asked":  {[]string{a + "," + b, a + "," + b, a}, known, "needed: go-azidentity 1.1.0", nil},
		"one ends before":          {[]string{a + "," + b, a + "," + b, a}, map[string]string{"web-5d4f-aaaaa": census()}, "unknown: 1 of 2 pods were not asked", []string{"web-5d4f-bbbbb IMDS406 the pod has ended meanwhile"}},
		"one is being deleted":     {[]string{going + "," + b}, known, "needed: go-azidentity 1.1.0", nil},
		"one that still asks":      {[]string{strings.Replace(b, `"metadata": {`, `"metadata": {"deletionTimestamp": "2026-11-29T12:00:00Z", `, 1) + "," + a}, known, "needed: go-azidentity 1.1.0", nil},
		"one that is nearly gone":  {[]string{going + "," + b}, map[string]string{"web-5d4f-bbbbb": census()}, "waiting: nobody has asked for 60 minutes", nil},
		"one restarts and goes":    {[]string{b, b, strings.NewReplacer("11:00:00Z", "11:59:00Z", `"metadata": {`, `"metadata": {"deletionTimestamp": "2026-11-29T12:00:00Z", `).Replace(b)}, map[string]string{"web-5d4f-bbbbb": census(old), "again": "x"}, "needed: go-azidentity 1.1.0", nil},
		"new ones all the time": {[]string{b, again("1"), again("2"), again("3"), again("4"), again("5")}, map[string]string{"web-5d4f-bbbbb": census()}, "unknown: 1 of 4 pods were not asked",
			[]string{"web-5d4f-bbbbb IMDS406 the pod or its sidecar has started or ended while the others were asked"}},
	} {
		cluster := &changing{api: cluster("", "web"), lists: c.lists}
		e := &executor{answers: c.answers, then: c.answers["again"]}
		r, err := report.Run(t.Context(), cluster, e, report.Config{Now: now, Timeout: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		var notAsked []string
		for _, n := range r.NotAsked {
			notAsked = append(notAsked, n.Pod+" "+n.Code+" "+n.Reason)
		}
		if got := verdict(r); !strings.HasPrefix(got, c.want) || !slices.Equal(notAsked, c.notAsked) || cluster.reads > 5 {
			t.Errorf("%s: got %q, %q after %d lists, want %q, %q", name, got, notAsked, cluster.reads, c.want, c.notAsked)
		}
	}
}

// TestJobEndsMeanwhile: a Job that has asked nobody when it was asked, and then asked and ended, is asked again by
// its log.
func TestJobEndsMeanwhile(t *testing.T) {
	runs, over := jobPod("once", "Running", time.Hour, 0), jobPod("once", "Succeeded", time.Hour, 0)
	c := &changing{api: cluster(""), lists: []string{runs, runs, over}}
	c.api["/apis/batch/v1/jobs"] = `{"items": [{"metadata": {"name": "once", "namespace": "shop"}, "spec": {` + templateWith + `}}]}`
	c.api["/api/v1/namespaces/shop/pods/once-x7k2p/log"] = logBegins + logCaller
	r, err := report.Run(t.Context(), c, &executor{answers: map[string]string{"once-x7k2p": census()}}, report.Config{Now: now, Timeout: time.Minute})
	if err != nil || !strings.HasPrefix(verdict(r), "needed: go-azidentity 1.1.0") {
		t.Errorf("got %v, %+v", err, r)
	}
}

// jobPod is a pod of a Job, which has ended or runs.
func jobPod(job, phase string, from, to time.Duration) string {
	state := fmt.Sprintf(`"terminated": {"startedAt": %q, "finishedAt": %q}`, now.Add(-from).Format(time.RFC3339), now.Add(-to).Format(time.RFC3339))
	if phase == "Running" {
		state = fmt.Sprintf(`"running": {"startedAt": %q}`, now.Add(-from).Format(time.RFC3339))
	}
	return fmt.Sprintf(`{"metadata": {"name": "%s-x7k2p", "namespace": "shop", "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": "%[1]s", "controller": true}]},
		"spec": {"containers": [{"name": "c"}], "initContainers": [{"name": "azwi-proxy", "image": "registry.corp.test/proxy:v1"}]},
		"status": {"phase": %[2]q, "initContainerStatuses": [{"name": "azwi-proxy", "state": {%[3]s}}]}}`, job, phase, state)
}

const (
	logBegins = `{"level":"info","time":"2026-11-20T10:00:00Z","msg":"starting the proxy server","version":"v1.2.0","client_id":"a"}` + "\n"
	logCaller = `{"level":"info","time":"2026-11-20T10:00:01Z","msg":"new caller","sdk":"go-azidentity","workload_identity":"no","version":"1.1.0","upgrade":"azidentity (Go) 1.3.0 or later"}` + "\n"
)

// TestJobs: the log of a Job's pod that has ended says who asked. The runs of a CronJob count as long as
// none is missing.
func TestJobs(t *testing.T) {
	run := func(days int) string { // at three o'clock
		return fmt.Sprintf("nightly-%d", now.Add(-time.Duration(days)*day-9*time.Hour).Unix()/60)
	}
	ended := func(days int) string {
		age := time.Duration(days)*day + 9*time.Hour
		return jobPod(run(days), "Succeeded", age, age-time.Minute)
	}
	cron := `{"metadata": {"name": "nightly", "namespace": "shop"}, "spec": {"schedule": "0 3 * * *", "jobTemplate": {"spec": {` + templateWith + `}}}}`
	job := func(name, owner, status string) string {
		return `{"metadata": {"name": "` + name + `", "namespace": "shop"` + owner + `}, "spec": {` + templateWith + `}, "status": {` + status + `}}`
	}
	const ofCron = `, "ownerReferences": [{"apiVersion": "batch/v1", "kind": "CronJob", "name": "nightly", "controller": true}]`
	const complete = `"conditions": [{"type": "Complete", "status": "True"}]`
	second := func(name, phase string, from, to time.Duration) string {
		return strings.Replace(jobPod("once", phase, from, to), "once-x7k2p", name, 1)
	}
	three := ended(2) + "," + ended(1) + "," + ended(0)
	owned := job(run(2), ofCron, complete) + "," + job(run(1), ofCron, complete) + "," + job(run(0), ofCron, complete)
	for name, c := range map[string]struct {
		crons, jobs, pods string
		log               any
		period            time.Duration
		want              string
	}{
		"nobody has asked":               {cron, owned, three, logBegins, 0, "waiting: nobody has asked for 2 days; wait until 35 days have passed, and keep so many runs (successfulJobsHistoryLimit), or set --period"},
		"the period of a daily job":      {cron, owned, three, logBegins, day, "can go: nobody has asked for 2 days: the sidecar can go, if no job runs less often than every 24 hours"},
		"a client has asked":             {cron, owned, three, logBegins + logCaller, day, "needed: go-azidentity 1.1.0: azidentity (Go) 1.3.0 or later"},
		"a run is missing":               {cron, owned, ended(2) + "," + ended(0), logBegins, day, "can go: nobody has asked for 32 hours: the sidecar can go, if no job runs less often than every 24 hours"},
		"a sidecar that was restarted":   {cron, owned, strings.ReplaceAll(three, `"name": "azwi-proxy", "state"`, `"name": "azwi-proxy", "restartCount": 1, "state"`), logBegins, day, "unknown: 3 of 3 pods were not asked"},
		"a log without its beginning":    {cron, owned, three, logCaller, day, "unknown: 3 of 3 pods were not asked"},
		"no right to read logs":          {cron, owned, three, apierrors.NewForbidden(schema.GroupResource{}, "", errors.New("no")), day, "unknown: 3 of 3 pods were not asked"},
		"no pod":                         {cron, "", "", nil, 0, "unknown: no run is known: ask while one runs, or after it"},
		"a Job newer than the survey":    {cron, "", three, logBegins + logCaller, 0, "needed: go-azidentity 1.1.0: azidentity (Go) 1.3.0 or later"},
		"a Job that runs":                {"", job("once", "", ""), jobPod("once", "Running", time.Hour, 0), nil, 0, "waiting: nobody has asked for 60 minutes; wait until 35 days have passed"},
		"a Job that has ended":           {"", job("once", "", complete), jobPod("once", "Succeeded", time.Hour, 0), logBegins, 0, "can go: the Job has ended, and has asked nothing"},
		"a Job that has asked and ended": {"", job("once", "", complete), jobPod("once", "Failed", time.Hour, 0), logBegins + logCaller, 0, "needed: go-azidentity 1.1.0: azidentity (Go) 1.3.0 or later"},
		"a Job that tries again":         {"", job("once", "", ""), second("once-aaaaa", "Running", 5*time.Minute, 0) + "," + second("once-bbbbb", "Failed", 40*day, 40*day-time.Minute), logBegins, 0, "waiting: nobody has asked for 5 minutes; wait until 35 days have passed"},
		"a Job that tries again, too":    {"", job("once", "", ""), second("once-bbbbb", "Running", 5*time.Minute, 0) + "," + second("once-aaaaa", "Failed", 40*day, 40*day-time.Minute), logBegins, 0, "waiting: nobody has asked for 5 minutes; wait until 35 days have passed"},
		"runs without a schedule":        {strings.Replace(cron, "0 3 * * *", "TZ=UTC 0 3 * * *", 1), owned, three, logBegins, day, "unknown: no run is known: ask while one runs, or after it"},
		"a Job that has failed so far":   {"", job("once", "", ""), second("once-aaaaa", "Failed", 40*day, 40*day-time.Minute), logBegins, 0, "unknown: no pod runs: ask again while one does, or set --prometheus"},
		"a Job whose pods are gone":      {"", job("once", "", complete), "", nil, 0, "0 workloads"},
	} {
		a := cluster(c.pods)
		a["/apis/batch/v1/cronjobs"], a["/apis/batch/v1/jobs"] = `{"items": [`+c.crons+`]}`, `{"items": [`+c.jobs+`]}`
		for _, pod := range regexp.MustCompile(`"name": "([a-z]+(?:-[0-9]+)?-(?:x7k2p|aaaaa|bbbbb))"`).FindAllStringSubmatch(c.pods, -1) {
			a["/api/v1/namespaces/shop/pods/"+pod[1]+"/log"] = c.log
		}
		r, err := report.Run(t.Context(), a, &executor{answers: map[string]string{"once-x7k2p": census(), "once-aaaaa": census(), "once-bbbbb": census()}}, report.Config{Now: now, Timeout: time.Minute, Period: c.period})
		if err != nil {
			t.Fatal(err)
		}
		if got := verdict(r); got != c.want {
			t.Errorf("%s: got %q, want %q; %+v", name, got, c.want, r.NotAsked)
		}
	}
}

// TestPeriod: a CronJob that runs less often than every 35 days makes the period of its namespace longer,
// unless the person says the period. Its own is always the time between its runs at least.
func TestPeriod(t *testing.T) {
	a := cluster(sidecar("web", "aaaaa", 40*day, ""), "web")
	a["/apis/batch/v1/cronjobs"] = `{"items": [
		{"metadata": {"name": "yearly", "namespace": "shop"}, "spec": {"schedule": "0 0 1 1 *", "jobTemplate": {"spec": {` + templateWith + `}}}},
		{"metadata": {"name": "broken", "namespace": "shop"}, "spec": {"schedule": "TZ=", "jobTemplate": {"spec": {"template": {"spec": {"containers": [{"name": "c"}]}}}}}},
		{"metadata": {"name": "rarely", "namespace": "other"}, "spec": {"schedule": "0 0 29 2 *", "jobTemplate": {"spec": {"template": {"spec": {"containers": [{"name": "c"}]}}}}}}]}`
	e := &executor{answers: map[string]string{"web-5d4f-aaaaa": census()}}
	for period, want := range map[time.Duration]string{
		0:        "cronjob/yearly 366 days, deployment/web 366 days cronjob/yearly waiting: nobody has asked for 40 days; wait until 366 days (cronjob/yearly) have passed",
		35 * day: "cronjob/yearly 366 days, deployment/web 35 days can go: nobody has asked for 40 days: the sidecar can go, if no job runs less often than every 35 days",
		41 * day: "cronjob/yearly 366 days, deployment/web 41 days waiting: nobody has asked for 40 days; wait until 41 days have passed",
	} {
		r := run(t, a, e, func(c *report.Config) { c.Period = period })
		yearly, web := r.Workloads[0], r.Workloads[1]
		days := func(w report.Workload) string { return report.Days(time.Duration(w.PeriodSeconds) * time.Second) }
		got := fmt.Sprintf("%s %s, %s %s%s %s: %s", yearly.Key(), days(yearly), web.Key(), days(web), strings.TrimRight(" "+web.PeriodOf, " "), web.Verdict, web.Text)
		if got != want {
			t.Errorf("%s: got %q, want %q", period, got, want)
		}
		if from := web.CanGoFrom; web.Verdict == report.Waiting && !from.Equal(now.Add(time.Duration(web.PeriodSeconds)*time.Second-40*day)) {
			t.Errorf("%s: can go from %s", period, from)
		}
	}
}

// TestNotRead: a report that has not seen everything says so, and does not end with 0.
func TestNotRead(t *testing.T) {
	a := cluster(sidecar("web", "aaaaa", 40*day, ""), "web")
	e := &executor{answers: map[string]string{"web-5d4f-aaaaa": census()}}
	a["/apis/batch/v1/cronjobs"] = apierrors.NewForbidden(schema.GroupResource{}, "", errors.New("no"))
	r := run(t, a, e, nil)
	if len(r.NotRead) != 1 || r.NotRead[0] != (report.NotRead{Code: "IMDS407", What: "cronjobs.batch", Why: "you may not list cronjobs.batch"}) || report.ExitCode(r) != 1 {
		t.Errorf("got %+v, exit code %d", r.NotRead, report.ExitCode(r))
	}
	e.answers["web-5d4f-aaaaa"] = census(old)
	if r = run(t, a, e, nil); report.ExitCode(r) != 3 {
		t.Errorf("a sidecar is needed: got exit code %d", report.ExitCode(r))
	}
	if _, err := report.Run(t.Context(), cluster(""), e, report.Config{Namespace: "shpo", Now: now}); err == nil || !strings.Contains(err.Error(), "shpo") {
		t.Errorf("a namespace that does not exist: got %v", err)
	}
}

// TestNamespace: only the namespace is read, and workloads of others are not part of it.
func TestNamespace(t *testing.T) {
	a := cluster(sidecar("web", "aaaaa", 40*day, ""), "web")
	for path, body := range maps.Clone(a) {
		if strings.HasPrefix(path, "/apis/") || path == "/api/v1/pods" {
			delete(a, path)
			at := strings.LastIndex(path, "/")
			a[path[:at]+"/namespaces/shop"+path[at:]] = body
		}
	}
	a["/api/v1/namespaces/shop"] = `{}`
	r, err := report.Run(t.Context(), a, &executor{answers: map[string]string{"web-5d4f-aaaaa": census()}}, report.Config{Namespace: "shop", Now: now, Timeout: time.Minute})
	if err != nil || len(r.NotRead) > 0 || !strings.HasPrefix(verdict(r), "can go: ") {
		t.Errorf("got %v, %+v", err, r)
	}
	a["/apis/apps/v1/namespaces/shop/statefulsets"] = apierrors.NewForbidden(schema.GroupResource{}, "", errors.New("no"))
	r, err = report.Run(t.Context(), a, &executor{answers: map[string]string{"web-5d4f-aaaaa": census()}}, report.Config{Namespace: "shop", Now: now, Timeout: time.Minute})
	if err != nil || len(r.NotRead) != 1 || r.NotRead[0].What != "statefulsets.apps" {
		t.Errorf("a forbidden kind: got %v, %+v", err, r.NotRead)
	}
}

// TestWritten: a sidecar that is in the pod template itself counts, also without pods.
func TestWritten(t *testing.T) {
	a := cluster("")
	a["/apis/apps/v1/statefulsets"] = `{"items": [{"metadata": {"name": "db", "namespace": "shop"}, "spec": {"template": {"spec": {"containers": [{"name": "c"}], "initContainers": [{"name": "azwi-proxy"}]}}}}]}`
	if got := verdict(run(t, a, &executor{}, nil)); got != "unknown: no pod runs: ask again while one does, or set --prometheus" {
		t.Errorf("got %q", got)
	}
}

// TestHostileAnswers: what a pod says cannot make the report long, invalid or wrong for others.
func TestHostileAnswers(t *testing.T) {
	huge := strings.Repeat("<script>\u202e\x1b]0;", 100_000)
	many := make([]string, 41)
	for i := range many {
		many[i] = client(fmt.Sprint("sdk", i), "", "unknown", "", 1, day, day)
	}
	reasons := new(strings.Builder)
	for i := range 10_000 {
		fmt.Fprintf(reasons, "imds_oidc_proxy_refused_requests_total{reason=\"r%d%s\"} 1e300\n", i, strings.Repeat("x", 100))
	}
	const version = "imds_oidc_proxy_build_info{version=\"v1\",goversion=\"go\"} 1\n"
	for name, c := range map[string]struct{ answer, want string }{
		"a long text":        {census(client(huge, huge, huge, huge, 1<<62, day, -day)), "needed: "},
		"a time of year 10k": {`{"clients": [{"sdk": "x", "first_seen": "0001-01-01T00:00:00Z", "last_seen": "9999-12-31T23:59:59-23:00"}]}` + "\n", "needed: x: find out what it is"},
		"no name":            {census(client("", "", "", "", 0, day, day)), "needed: unknown: find out what it is"},
		"many clients":       {census(many...), "unknown: 1 of 1 pods"},
		"40 clients":         {census(many[1:]...), "needed: "},
		"many reasons":       {census() + reasons.String() + version, "can go: "},
		"no census":          {"{}\n" + version, "unknown: 1 of 1 pods"},
		"null":               {"{\"clients\": null}\n" + version, "unknown: 1 of 1 pods"},
		"another JSON":       {"[1]\n" + version, "unknown: 1 of 1 pods"},
	} {
		r := run(t, cluster(sidecar("web", "aaaaa", 40*day, ""), "web"), &executor{answers: map[string]string{"web-5d4f-aaaaa": c.answer}}, nil)
		text, err := json.Marshal(r)
		if got := verdict(r); err != nil || !strings.HasPrefix(got, c.want) || len(text) > 64<<10 || strings.ContainsAny(string(text), "\u202e\x1b") {
			t.Errorf("%s: got %.200q, %v, %d bytes, want %q", name, got, err, len(text), c.want)
		}
		for _, client := range r.Workloads[0].Clients {
			if client.LastSeen.After(now) {
				t.Errorf("%s: last seen at %s, which is in the future", name, client.LastSeen)
			}
		}
	}
}

// TestHostileNames: the people of a namespace choose the owner that their pod names.
func TestHostileNames(t *testing.T) {
	pod := strings.NewReplacer(`"ReplicaSet"`, `"Evil\u001b[2J\u202e`+strings.Repeat("<b>", 1000)+`"`, `"web-5d4f", "controller"`, `"`+strings.Repeat("x\\n", 500_000)+`", "controller"`).Replace(sidecar("web", "aaaaa", 40*day, ""))
	r := run(t, cluster(pod), &executor{answers: map[string]string{"web-5d4f-aaaaa": census()}}, nil)
	text, err := json.Marshal(r)
	if err != nil || len(r.Workloads) != 1 || len(text) > 4096 || strings.ContainsAny(string(text), "\u202e\x1b") || strings.Contains(string(text), `\n`) {
		t.Errorf("got %v, %d bytes: %.300s", err, len(text), text)
	}
}

// TestThousandsOfPods: 5,000 pods, each with the longest answer that is accepted, are asked 8 at a time, and
// the report needs little memory.
func TestThousandsOfPods(t *testing.T) {
	const pods, maxMemory = 5000, 300 << 20
	long := make([]string, 40)
	for i := range long {
		long[i] = client(fmt.Sprint(i, strings.Repeat("s", 60)), strings.Repeat("9", 60), "no", strings.Repeat("u", 300), 1, day, day)
	}
	answer := census(long...)
	e := &executor{answers: map[string]string{}}
	var names, list []string
	for i := range pods {
		name := fmt.Sprintf("w%d", i/50)
		if i%50 == 0 {
			names = append(names, name)
		}
		suffix := fmt.Sprintf("a%04d", i)
		list, e.answers[name+"-5d4f-"+suffix] = append(list, sidecar(name, suffix, 40*day, "")), answer
	}
	a := cluster(strings.Join(list, ", "), names...)
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	r := run(t, a, e, func(c *report.Config) {
		c.Progress = func(what string) {
			if what == "sidecar 5000 of 5000" { // the answers of nearly all others are kept
				runtime.GC()
				runtime.ReadMemStats(&after)
			}
		}
	})
	grown := int64(after.HeapInuse) - int64(before.HeapInuse)
	t.Logf("%d pods of %d workloads: %d MiB are kept", r.Summary.PodsAsked, len(r.Workloads), grown>>20)
	if r.Summary.PodsAsked != pods || len(r.Workloads) != pods/50 || e.most.Load() > 8 || grown > maxMemory {
		t.Errorf("asked %d pods, %d at the same time, %d MiB", r.Summary.PodsAsked, e.most.Load(), grown>>20)
	}
	runtime.KeepAlive(r)
}

// TestCancel: a report that is cancelled asks no further pods, and has the answers of the others.
func TestCancel(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var list []string
	for i := range 100 {
		list = append(list, sidecar("web", fmt.Sprintf("a%04d", i), 40*day, ""))
	}
	asked := 0
	e := &executor{answers: map[string]string{"web-5d4f-a0000": census(old)}}
	r, err := report.Run(ctx, cluster(strings.Join(list, ", "), "web"), e, report.Config{Now: now, Timeout: time.Minute, Progress: func(what string) {
		if strings.HasPrefix(what, "sidecar ") {
			if asked++; asked == 3 {
				cancel()
			}
		}
	}})
	if !errors.Is(err, context.Canceled) || asked > 4 {
		t.Errorf("got %v after %d pods", err, asked)
	}
	if r == nil || report.ExitCode(r) != 1 || !strings.HasPrefix(verdict(r), "needed: go-azidentity 1.1.0") || r.Summary.PodsAsked == 0 || len(r.NotAsked) != 100-r.Summary.PodsAsked {
		t.Fatalf("got %+v", r)
	}
	if n := r.NotAsked[len(r.NotAsked)-1]; n.Code != "IMDS410" || n.Reason != "the report was interrupted" || r.NotRead[0].Code != "IMDS410" {
		t.Errorf("got %+v, %+v", n, r.NotRead)
	}
}

// TestCancelBeforeEnd: no sidecar can go by a report that has not looked for new pods.
func TestCancelBeforeEnd(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	lists := 0
	a := cluster(sidecar("web", "aaaaa", 40*day, ""), "web")
	r, err := report.Run(ctx, a, &executor{answers: map[string]string{"web-5d4f-aaaaa": census()}}, report.Config{Now: now, Timeout: time.Minute, Progress: func(what string) {
		if what == "pods" {
			if lists++; lists == 3 { // the survey, before the pods were asked, and after it
				a["/api/v1/pods"] = context.Canceled
				cancel()
			}
		}
	}})
	if !errors.Is(err, context.Canceled) || r == nil || verdict(r) != "unknown: the report was interrupted before the pods were listed again" {
		t.Errorf("got %v, %+v", err, r)
	}
}

// TestDocumentedCodes: docs/report.md has a section for each code, with its title, and no other.
func TestDocumentedCodes(t *testing.T) {
	page, err := os.ReadFile("../../docs/report.md")
	if err != nil {
		t.Fatal(err)
	}
	sections := map[string]string{}
	for _, part := range regexp.MustCompile(`(?m)^### (IMDS4..)\n`).FindAllStringSubmatchIndex(string(page), -1) {
		text, _, _ := strings.Cut(string(page)[part[1]:], "\n#")
		sections[string(page)[part[2]:part[3]]] = text
	}
	for code, title := range report.Codes() {
		if text, found := sections[code]; !found || !strings.Contains(text, title) {
			t.Errorf("docs/report.md must have a section `### %s` with %q; found: %t", code, title, found)
		}
		delete(sections, code)
	}
	if len(sections) > 0 {
		t.Errorf("docs/report.md has sections of codes that do not exist: %v", sections)
	}
}
