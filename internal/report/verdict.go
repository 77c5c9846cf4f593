package report

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"imds-oidc-proxy/internal/census"
)

// report puts the answers together.
func (r *run) report() *Report {
	out := &Report{
		Time: r.config.Now.UTC().Truncate(time.Second), PeriodSeconds: int64(r.config.Period / time.Second), Prometheus: r.memory != nil,
		Namespaces: []Namespace{}, Workloads: []Workload{}, NotAsked: []NotAsked{},
	}
	for _, w := range r.all {
		r.fill(out, w)
	}
	if r.memory != nil {
		r.remember()
	}
	for _, w := range r.all {
		r.judge(w)
	}
	slices.SortFunc(r.all, func(a, b *Workload) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Kind, b.Kind), strings.Compare(a.Name, b.Name))
	})
	for _, w := range r.all {
		out.Workloads = append(out.Workloads, *w)
	}
	slices.SortFunc(out.NotAsked, func(a, b NotAsked) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Pod, b.Pod))
	})
	r.count(out)
	return out
}

// fill adds what the sidecars of a workload say.
func (r *run) fill(out *Report, w *Workload) {
	w.Refused, w.Failed = map[string]int64{}, map[string]int64{}
	versions := map[string]bool{}
	for _, a := range r.answers[w.ref] {
		w.Pods++
		if a.reason != "" {
			out.NotAsked = append(out.NotAsked, NotAsked{a.pod.namespace, a.pod.name, a.reason, a.hint})
			continue
		}
		w.PodsAsked++
		if age := max(r.config.Now.Sub(a.pod.started), 0); w.PodsAsked == 1 || age < w.observed {
			w.observed = age
		}
		for _, e := range a.clients {
			w.add(clientOf(e))
		}
		for reason, n := range a.counters.refused {
			if !ordinary[reason] {
				w.Refused[reason] += n
			}
		}
		for code, n := range a.counters.failed {
			w.Failed[code] += n
		}
		w.Forwarded += a.counters.forwarded
		w.Faults = append(w.Faults, a.faults...)
		versions[a.counters.version] = true
	}
	delete(versions, "")
	w.Versions = sortedKeys(versions)
	slices.SortFunc(w.Faults, func(a, b Fault) int { return cmp.Or(a.Time.Compare(b.Time), strings.Compare(a.Pod, b.Pod)) })
	if w.silent = w.Pods - w.PodsAsked; w.silent > 0 {
		w.observed = 0
	}
}

func clientOf(e census.Entry) Client {
	return Client{
		SDK: clean(e.SDK), Version: clean(e.Version), WorkloadIdentity: clean(string(e.WorkloadIdentity)), Upgrade: clean(e.Upgrade),
		Pods: 1, Requests: e.Requests, FirstSeen: e.FirstSeen.UTC(), LastSeen: e.LastSeen.UTC(),
	}
}

// add adds a client of one pod.
func (w *Workload) add(c Client) {
	i := slices.IndexFunc(w.Clients, func(x Client) bool {
		return x.SDK == c.SDK && x.Version == c.Version && x.WorkloadIdentity == c.WorkloadIdentity
	})
	if i < 0 {
		w.Clients = append(w.Clients, c)
		return
	}
	x := &w.Clients[i]
	x.Pods += c.Pods
	x.Requests += c.Requests
	x.Upgrade = cmp.Or(x.Upgrade, c.Upgrade)
	if x.FirstSeen.IsZero() || !c.FirstSeen.IsZero() && c.FirstSeen.Before(x.FirstSeen) {
		x.FirstSeen = c.FirstSeen
	}
	if c.LastSeen.After(x.LastSeen) {
		x.LastSeen = c.LastSeen
	}
}

// remember adds what Prometheus knows of the workloads' pods, also of those that are gone.
func (r *run) remember() {
	workloads, asked := map[string][]*Workload{}, map[podName]bool{}
	for _, w := range r.all {
		workloads[w.Namespace] = append(workloads[w.Namespace], w)
		for _, a := range r.answers[w.ref] {
			name := podName{a.pod.namespace, a.pod.name}
			if asked[name] = a.reason == ""; !asked[name] && r.memory.since[name] > 0 {
				w.silent--
			}
		}
	}
	for _, m := range r.memory.clients {
		if w := ownerOf(workloads[m.namespace], m.name); w != nil && !asked[m.podName] {
			w.add(m.client)
		}
	}
	for name, since := range r.memory.since {
		if w := ownerOf(workloads[name.namespace], name.name); w != nil {
			w.observed = max(w.observed, since)
		}
	}
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
		rest, found := strings.CutPrefix(pod, w.Name)
		if suffix := suffixes[w.Kind]; found && suffix != nil && suffix.MatchString(rest) && (owner == nil || len(w.Name) > len(owner.Name)) {
			owner = w
		}
	}
	return owner
}

// judge says whether the sidecar of a workload can go.
func (r *run) judge(w *Workload) {
	order := map[string]int{string(census.No): 0, string(census.Unknown): 1, string(census.Yes): 2}
	slices.SortFunc(w.Clients, func(a, b Client) int {
		return cmp.Or(order[a.WorkloadIdentity]-order[b.WorkloadIdentity], strings.Compare(a.SDK, b.SDK), strings.Compare(a.Version, b.Version))
	})
	asks := false
	for _, c := range w.Clients { // a sidecar names a client until it restarts
		quiet := r.config.Now.Sub(c.LastSeen)
		if c.LastSeen.IsZero() || quiet < r.config.Period {
			asks = true
			continue
		}
		w.observed = min(w.observed, quiet)
	}
	w.ObservedSeconds = int64(w.observed / time.Second)
	covered := w.observed >= r.config.Period
	switch {
	case asks:
		w.Verdict, w.Text = Needed, r.needs(w.Clients)
	case w.silent > 0:
		w.Verdict, w.Text = Unknown, fmt.Sprintf("%d of %d pods were not asked", w.silent, w.Pods)
	case w.Pods == 0 && w.observed == 0:
		w.Verdict, w.Text = Unknown, "no pod runs: ask again while one does, or set --prometheus"
	case !covered:
		w.Verdict, w.Text = Waiting, "nobody has asked for "+Days(w.observed)+"; wait until "+Days(r.config.Period)+" have passed"
	default:
		w.Verdict, w.Text = CanGo, "nobody has asked for "+Days(w.observed)+": the sidecar can go, if no job runs less often than every "+Days(r.config.Period)
	}
}

// needs says what to do about the clients that ask.
func (r *run) needs(clients []Client) string {
	var parts []string
	for _, c := range clients {
		if !c.LastSeen.IsZero() && r.config.Now.Sub(c.LastSeen) >= r.config.Period {
			continue
		}
		part := strings.TrimSpace(c.SDK + " " + c.Version)
		switch {
		case c.Upgrade != "":
			part += ": " + c.Upgrade
		case c.WorkloadIdentity == string(census.Yes):
			part += ": use WorkloadIdentityCredential in place of ManagedIdentityCredential"
		case c.WorkloadIdentity == string(census.No):
			part += ": upgrade it"
		default:
			part += ": find out what it is, docs/metrics.md"
		}
		parts = append(parts, part)
	}
	return strings.Join(parts, "; ")
}

// Days returns a duration for a person: in days from two days on, and otherwise in hours or minutes.
func Days(d time.Duration) string {
	const day = 24 * time.Hour
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
