package report

import (
	"cmp"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"imds-oidc-proxy/internal/census"
	"imds-oidc-proxy/internal/survey"
)

// report puts the answers together.
func (r *run) report() *Report {
	period := r.config.Period
	if period == 0 {
		period = DefaultPeriod
	}
	out := &Report{
		Schema: Schema, Time: r.config.Now.UTC().Truncate(time.Second), PeriodSeconds: int64(period / time.Second), Prometheus: r.memories != nil,
		Namespaces: []Namespace{}, Workloads: []Workload{}, Upgrades: []Upgrade{}, NotAsked: []NotAsked{}, NotRead: []NotRead{},
	}
	for _, u := range r.survey.Unread {
		out.NotRead = append(out.NotRead, NotRead{codeNotRead, clean(u.What, maxName), clean(u.Why, maxText)})
	}
	if r.interrupted {
		out.NotRead = append(out.NotRead, NotRead{codeInterrupted, "sidecars", "the report was interrupted: what happened meanwhile is not known, nor what Prometheus knows"})
	}
	answers := map[*Workload][]answer{}
	for _, a := range r.answers {
		w := r.workloads[a.pod.owner]
		answers[w] = append(answers[w], a)
	}
	for _, ref := range slices.SortedFunc(maps.Keys(r.workloads), func(a, b survey.Ref) int { return a.Compare(b) }) {
		w := r.workloads[ref]
		if w.survey.Ended && len(answers[w]) == 0 {
			continue // a Job that has ended, and whose pods are gone
		}
		r.fill(out, w, answers[w])
		r.observe(w, answers[w])
		r.judge(w)
		out.Workloads = append(out.Workloads, *w)
	}
	slices.SortStableFunc(out.NotRead, func(a, b NotRead) int {
		return cmp.Or(strings.Compare(a.Code, b.Code), strings.Compare(a.What, b.What), strings.Compare(a.Why, b.Why))
	})
	out.NotRead = slices.Compact(out.NotRead)
	r.count(out)
	r.upgrades(out)
	return out
}

// fill adds what the sidecars of a workload say.
func (r *run) fill(out *Report, w *Workload, answers []answer) {
	w.Refused, w.Failed = map[string]int64{}, map[string]int64{}
	versions := map[string]bool{}
	for _, a := range answers {
		w.Pods++
		if a.noLog != "" {
			out.NotRead = append(out.NotRead, NotRead{codeNoLog, "logs in namespace " + w.Namespace, a.noLog + ": so the errors are not known"})
			w.code(codeNoLog)
		}
		if a.reason != "" {
			w.code(a.code)
			out.NotAsked = append(out.NotAsked, NotAsked{a.pod.namespace, a.pod.name, a.code, a.reason, a.hint})
			continue
		}
		w.PodsAsked++
		for _, e := range a.clients {
			w.add(Client{
				SDK: e.SDK, Version: e.Version, WorkloadIdentity: string(e.WorkloadIdentity), Upgrade: e.Upgrade,
				Pods: 1, Requests: e.Requests, FirstSeen: r.past(e.FirstSeen), LastSeen: r.past(e.LastSeen),
			})
		}
		for reason, n := range a.counters.refused {
			if !ordinary[reason] {
				count(w.Refused, reason, n)
			}
		}
		for code, n := range a.counters.failed {
			count(w.Failed, code, n)
		}
		w.Forwarded = min(w.Forwarded+a.counters.forwarded, maxCount)
		for _, f := range a.faults {
			f.Time = r.past(f.Time)
			w.Faults = append(w.Faults, f)
		}
		versions[a.counters.version] = true
	}
	delete(versions, "")
	w.Versions = sortedKeys(versions)
	w.Faults = newest(w.Faults)
	w.silent = w.Pods - w.PodsAsked
}

// past returns a time that a pod says: one in the future is now. A time too long ago is none.
func (r *run) past(t time.Time) time.Time {
	switch {
	case t.After(r.config.Now):
		t = r.config.Now
	case t.Year() < 2000:
		return time.Time{}
	}
	return t.UTC().Truncate(time.Second)
}

func compareFaults(a, b Fault) int {
	return cmp.Or(a.Time.Compare(b.Time), strings.Compare(a.Pod, b.Pod), strings.Compare(a.Text, b.Text), strings.Compare(a.Resource, b.Resource))
}

// maxKinds bounds the kinds of clients of one workload. Further ones are counted as other.
const maxKinds = 256

// add adds a client of one pod.
func (w *Workload) add(c Client) {
	key := [3]string{c.SDK, c.Version, c.WorkloadIdentity}
	if w.clients[key] == nil && len(w.clients) >= maxKinds {
		c.SDK, c.Version, c.WorkloadIdentity, c.Upgrade = "other", "", string(census.Unknown), ""
		key = [3]string{c.SDK, c.Version, c.WorkloadIdentity}
	}
	x := w.clients[key]
	if x == nil {
		w.clients[key] = &c
		return
	}
	x.Pods += c.Pods
	x.Requests = min(x.Requests+c.Requests, maxCount)
	x.Upgrade = cmp.Or(x.Upgrade, c.Upgrade)
	if x.FirstSeen.IsZero() || !c.FirstSeen.IsZero() && c.FirstSeen.Before(x.FirstSeen) {
		x.FirstSeen = c.FirstSeen
	}
	if c.LastSeen.After(x.LastSeen) {
		x.LastSeen = c.LastSeen
	}
}

// scrapeDelay is how old a pod is before Prometheus must know it.
const scrapeDelay = 10 * time.Minute

// observe finds out for how long all requests of a workload are known: from its sidecars, and from
// Prometheus if that knows all of its pods.
func (r *run) observe(w *Workload, answers []answer) {
	m := r.memories[w.period]
	usable := r.remember(m, w, answers)
	now := r.config.Now
	if schedule := parseSchedule(w.survey.Schedule, w.survey.TimeZone); schedule != nil {
		runs := map[int64]bool{} // not those of Prometheus: a run may ask after the last scrape
		for _, a := range answers {
			if a.reason == "" && !a.pod.restarted {
				w.addRun(runs, a.pod.job)
			}
		}
		w.observed = max(now.Sub(knownSince(schedule, runs, now)), 0)
		return
	}
	// Pods that have ended prove nothing without a schedule: others that are gone may have run since.
	started := time.Time{}
	for _, a := range answers {
		if w.runs = w.runs || a.pod.ended.IsZero(); a.pod.ended.IsZero() && a.pod.started.After(started) {
			started = a.pod.started
		}
	}
	if w.silent == 0 && !started.IsZero() {
		w.observed = max(now.Sub(started), 0)
	}
	if !usable || w.Kind == "Job" { // which may ask after the last scrape
		return
	}
	w.observed = max(w.observed, m.reach(w))
}

// addRun adds the run of a Job, whose name has the minute at which it was scheduled.
func (w *Workload) addRun(runs map[int64]bool, job string) {
	digits, found := strings.CutPrefix(job, w.survey.Name+"-")
	if minute, err := strconv.ParseInt(digits, 10, 64); found && err == nil && minute > 0 && minute < 1<<33 {
		runs[minute] = true
	}
}

// remember adds the clients that Prometheus knows, also of pods that are gone, and of containers before a
// restart. It reports whether Prometheus scrapes all pods of the workload, and no others of the same name: those
// would be of another cluster.
func (r *run) remember(m *memory, w *Workload, answers []answer) bool {
	if m == nil {
		return false
	}
	type client struct {
		pod  string
		kind [3]string
	}
	known, usable := map[client]bool{}, true
	for _, a := range answers {
		name := podName{a.pod.namespace, a.pod.name}
		for _, e := range a.clients {
			known[client{a.pod.name, [3]string{e.SDK, e.Version, string(e.WorkloadIdentity)}}] = true
		}
		switch scraped := m.pods[name] != nil && m.pods[name].current > 0; {
		case scraped && a.reason != "" && a.pod.missing == "":
			w.silent--
		case !scraped && a.pod.ended.IsZero() && r.config.Now.Sub(a.pod.started) > scrapeDelay:
			usable = false
		}
	}
	for _, name := range m.podsOf[w] {
		if current := m.pods[name].current; current > 1 || current > 0 && !r.seen[name] {
			usable = false
		}
	}
	if !usable {
		w.code(codeNoMemory)
	}
	for _, c := range m.clientsOf[w] {
		if !known[client{c.name, [3]string{c.client.SDK, c.client.Version, c.client.WorkloadIdentity}}] {
			w.add(c.client)
		}
	}
	return usable
}

// suffixes match what the controllers add to a workload's name.
var suffixes = map[string]*regexp.Regexp{
	"Deployment": regexp.MustCompile(`^-[a-z0-9]{1,10}-[a-z0-9]{5}$`), "Rollout": regexp.MustCompile(`^-[a-z0-9]{1,10}-[a-z0-9]{5}$`),
	"StatefulSet": regexp.MustCompile(`^-[0-9]+$`), "DaemonSet": regexp.MustCompile(`^-[a-z0-9]{5}$`), "ReplicaSet": regexp.MustCompile(`^-[a-z0-9]{5}$`),
	"Job": regexp.MustCompile(`^-([0-9]+-)?[a-z0-9]{5}$`), "CronJob": regexp.MustCompile(`^-[a-z0-9]{5,10}-([0-9]+-)?[a-z0-9]{5}$`), "Pod": regexp.MustCompile(`^$`),
}

// ownerOf returns the workload of a pod that may be gone, by its name: the one with the longest name.
func ownerOf(workloads []*Workload, pod string) (owner *Workload) {
	for _, w := range workloads {
		rest, found := strings.CutPrefix(pod, w.survey.Name)
		if suffix := suffixes[w.Kind]; found && suffix != nil && suffix.MatchString(rest) && (owner == nil || len(w.survey.Name) > len(owner.survey.Name)) {
			owner = w
		}
	}
	return owner
}

// judge says whether the sidecar of a workload can go.
func (r *run) judge(w *Workload) {
	for _, c := range w.clients {
		w.Clients = append(w.Clients, *c)
	}
	order := map[string]int{string(census.No): 0, string(census.Unknown): 1, string(census.Yes): 2}
	slices.SortFunc(w.Clients, func(a, b Client) int {
		return cmp.Or(order[a.WorkloadIdentity]-order[b.WorkloadIdentity], strings.Compare(a.SDK, b.SDK), strings.Compare(a.Version, b.Version))
	})
	asks := false
	for _, c := range w.Clients { // a sidecar names a client until it restarts
		if r.asks(w, c) {
			asks = true
			w.code(codeOf(c))
			continue
		}
		w.observed = min(w.observed, r.config.Now.Sub(c.LastSeen))
	}
	if len(w.Failed) > 0 {
		w.code(codeFailed)
	}
	if len(w.Refused) > 0 {
		w.code(codeRefused)
	}
	w.ObservedSeconds, w.PeriodSeconds = int64(w.observed/time.Second), int64(w.period/time.Second)
	period := Days(w.period)
	if w.PeriodOf != "" {
		period += " (" + w.PeriodOf + ")"
	}
	switch {
	case asks:
		w.Verdict, w.Text = Needed, r.needs(w)
	case w.silent > 0:
		w.Verdict, w.Text = Unknown, fmt.Sprintf("%d of %d pods were not asked", w.silent, w.Pods)
	case w.survey.Ended:
		w.Verdict, w.Text = CanGo, "the Job has ended, and has asked nothing"
	case w.observed == 0 && w.survey.Schedule != "":
		w.Verdict, w.Text = Unknown, "no run is known: ask while one runs, or after it"
		w.code(codeNoPod)
	case w.observed == 0 && !w.runs:
		w.Verdict, w.Text = Unknown, "no pod runs: ask again while one does, or set --prometheus"
		w.code(codeNoPod)
	case w.observed < w.period:
		w.Verdict, w.Text = Waiting, "nobody has asked for "+Days(w.observed)+"; wait until "+period+" have passed"
		if w.survey.Schedule != "" {
			w.Text += ", and keep so many runs (successfulJobsHistoryLimit), or set --period"
		}
		w.CanGoFrom = r.config.Now.Add(w.period - w.observed).UTC().Truncate(time.Second)
		w.code(codeTooShort)
	default:
		w.Verdict, w.Text = CanGo, "nobody has asked for "+Days(w.observed)+": the sidecar can go, if no job runs less often than every "+period
	}
	if r.interrupted && w.Verdict == CanGo { // pods may have started that were not asked
		w.Verdict, w.Text = Unknown, "the report was interrupted before the pods were listed again"
		w.code(codeInterrupted)
	}
}

// asks reports whether a client has asked in the period. Prometheus knows no times.
func (r *run) asks(w *Workload, c Client) bool {
	return c.LastSeen.IsZero() || r.config.Now.Sub(c.LastSeen) < w.period
}

func codeOf(c Client) string {
	switch c.WorkloadIdentity {
	case string(census.No):
		return codeOldSDK
	case string(census.Yes):
		return codeNewSDK
	}
	return codeNoSDK
}

// needs says what to do about the clients that ask.
func (r *run) needs(w *Workload) string {
	var parts []string
	for _, c := range w.Clients {
		if r.asks(w, c) {
			parts = append(parts, c.Name()+": "+c.advice())
		}
	}
	return strings.Join(parts, "; ")
}

// advice says what to upgrade to, or what to set.
func (c Client) advice() string {
	switch {
	case c.Upgrade != "":
		return c.Upgrade
	case c.WorkloadIdentity == string(census.Yes):
		return "use WorkloadIdentityCredential in place of ManagedIdentityCredential"
	case c.WorkloadIdentity == string(census.No):
		return "upgrade it"
	}
	return "find out what it is, docs/metrics.md"
}

// upgrades lists the clients that are asking, those of most workloads first.
func (r *run) upgrades(out *Report) {
	found := map[[2]string]*Upgrade{}
	for i := range out.Workloads {
		w := &out.Workloads[i]
		for _, c := range w.Clients {
			if !r.asks(w, c) {
				continue
			}
			key := [2]string{c.Name(), c.advice()}
			if found[key] == nil {
				found[key] = &Upgrade{SDK: c.SDK, Version: c.Version, To: c.advice()}
			}
			name := w.Namespace + " " + w.Key()
			if u := found[key]; !slices.Contains(u.Workloads, name) {
				u.Workloads = append(u.Workloads, name)
			}
		}
	}
	for _, u := range found {
		out.Upgrades = append(out.Upgrades, *u)
	}
	slices.SortFunc(out.Upgrades, func(a, b Upgrade) int {
		return cmp.Or(len(b.Workloads)-len(a.Workloads), strings.Compare(a.SDK, b.SDK), strings.Compare(a.Version, b.Version), strings.Compare(a.To, b.To))
	})
}

// Days returns a duration for a person: in days from two days on, and otherwise in hours or minutes.
func Days(d time.Duration) string {
	switch {
	case d >= 2*day:
		return fmt.Sprintf("%d days", d/day)
	case d >= 2*time.Hour:
		return fmt.Sprintf("%d hours", d/time.Hour)
	}
	return fmt.Sprintf("%d minutes", d/time.Minute)
}

// count counts the verdicts.
func (r *run) count(out *Report) {
	namespaces := map[string]*Namespace{}
	of := func(name string) *Namespace {
		if namespaces[name] == nil {
			namespaces[name] = &Namespace{Name: name}
		}
		return namespaces[name]
	}
	for i := range out.Workloads {
		w := &out.Workloads[i]
		out.Summary.Workloads++
		out.Summary.Pods += w.Pods
		out.Summary.PodsAsked += w.PodsAsked
		for _, c := range []*Counts{&out.Summary.Counts, &of(w.Namespace).Counts} {
			c.add(w.Verdict)
		}
	}
	for name, n := range r.direct {
		of(name).Direct += n
		out.Summary.Direct += n
	}
	for _, name := range sortedKeys(namespaces) {
		out.Namespaces = append(out.Namespaces, *namespaces[name])
	}
}

func (c *Counts) add(v Verdict) {
	switch v {
	case Needed:
		c.Needed++
	case Waiting:
		c.Waiting++
	case Unknown:
		c.Unknown++
	case CanGo:
		c.CanGo++
	}
}

func sortedKeys[T any](set map[string]T) []string {
	keys := make([]string, 0, len(set))
	for k := range set {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
