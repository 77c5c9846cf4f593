package report

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Prometheus answers queries about the past.
type Prometheus struct {
	// URL is its address, such as http://prometheus.monitoring:9090.
	URL *url.URL
	// Labels are those of the cluster's series, if Prometheus has data of several clusters.
	Labels []Label
	Client *http.Client
}

// Label is a label of series, such as cluster="prod".
type Label struct{ Name, Value string }

// memory is what Prometheus knows about one period.
type memory struct {
	// clients has the kinds of clients by namespace and pod, also of pods that are gone.
	clients []remembered
	pods    map[podName]*scrapes

	// podsOf and clientsOf have the same by workload.
	podsOf    map[*Workload][]podName
	clientsOf map[*Workload][]remembered
}

// scrapes says when there are data of a pod, as ages. Before first there is a gap, or nothing. Both are zero
// if the pod was too short for that.
type scrapes struct {
	first, last time.Duration
	// current is the number of series at present. More than one are those of several clusters, or Prometheus
	// scrapes the pod twice.
	current float64
}

type podName struct{ namespace, name string }

type remembered struct {
	podName
	client Client
}

const (
	maxQueryAnswer = 64 << 20

	// maxPeriods bounds the periods that are asked for: each costs a few queries.
	maxPeriods = 8

	// maxPause is the longest time without data of a workload that is no gap. The data are looked at once an
	// hour.
	maxPause = 2 * time.Hour
)

// readPrometheus asks for each period of a workload.
func (r *run) readPrometheus(ctx context.Context) error {
	r.config.Progress("Prometheus")
	var periods []time.Duration
	for _, w := range r.workloads {
		periods = append(periods, w.period)
	}
	slices.Sort(periods)
	periods = slices.Compact(periods)
	r.memories = map[time.Duration]*memory{}
	for i, period := range periods {
		if i >= maxPeriods {
			period = periods[len(periods)-1] // what was asked longer ago than needed is no harm
		}
		if r.memories[period] == nil {
			m, err := r.config.Prometheus.read(ctx, r.config.Namespace, period, r.config.Now)
			if err != nil {
				return err
			}
			m.assign(r.inNamespace)
			r.memories[period] = m
		}
		r.memories[periods[i]] = r.memories[period]
	}
	return nil
}

// assign finds the workload of each pod, by its name: many are gone.
func (m *memory) assign(workloads map[string][]*Workload) {
	owners := map[podName]*Workload{}
	m.podsOf, m.clientsOf = map[*Workload][]podName{}, map[*Workload][]remembered{}
	for name := range m.pods {
		owners[name] = ownerOf(workloads[name.namespace], name.name)
		m.podsOf[owners[name]] = append(m.podsOf[owners[name]], name)
	}
	for _, c := range m.clients {
		w, found := owners[c.podName]
		if !found {
			w = ownerOf(workloads[c.namespace], c.name)
		}
		m.clientsOf[w] = append(m.clientsOf[w], c)
	}
}

// read asks for the clients of the whole period.
func (p *Prometheus) read(ctx context.Context, namespace string, period time.Duration, now time.Time) (*memory, error) {
	labels := p.Labels
	if namespace != "" {
		labels = append(slices.Clip(labels), Label{"namespace", namespace})
	}
	selector := ""
	for _, l := range labels {
		selector += "," + l.Name + "=" + strconv.Quote(l.Value)
	}
	if selector != "" {
		selector = "{" + selector[1:] + "}"
	}
	// Per pod, whatever else the labels say.
	scraped := func(offset string) string {
		return "count by (namespace, pod) (imds_oidc_proxy_build_info" + selector + offset + ")"
	}
	longest := period + maxPause
	window := strconv.FormatInt(int64(longest/time.Second), 10) + "s"
	hourly := "[" + window + ":1h]"
	m := &memory{pods: map[podName]*scrapes{}}
	of := func(s series) *scrapes {
		if m.pods[s.pod()] == nil {
			m.pods[s.pod()] = &scrapes{}
		}
		return m.pods[s.pod()]
	}
	age := func(s series) time.Duration {
		return time.Duration(max(min(s.value, longest.Seconds()), 0) * float64(time.Second))
	}
	for _, q := range []struct {
		expression string
		keep       func(series)
	}{
		{"count by (namespace, pod, sdk, version, workload_identity) (last_over_time(imds_oidc_proxy_callers" + selector + "[" + window + "]))", func(s series) {
			m.clients = append(m.clients, remembered{s.pod(), Client{SDK: s.label("sdk"), Version: s.label("version"), WorkloadIdentity: s.label("workload_identity"), Pods: 1}})
		}},
		{"time() - max_over_time(timestamp(" + scraped("") + ")" + hourly + ")", func(s series) { of(s).first, of(s).last = longest, age(s) }},
		// The newest time before which there are no data for two hours. Without one there are data since
		// the window began.
		{"time() - max_over_time(timestamp(" + scraped("") + " unless (" + scraped(" offset 1h") + " or " + scraped(" offset 2h") + "))" + hourly + ")", func(s series) { of(s).first = age(s) }},
		{scraped(""), func(s series) { of(s).current = s.value }},
	} {
		found, err := p.query(ctx, q.expression, now)
		if err != nil {
			return nil, err
		}
		for _, s := range found {
			q.keep(s)
		}
	}
	return m, nil
}

// reach returns for how long there are data of the pods of a workload without a gap, back from now.
func (m *memory) reach(w *Workload) (known time.Duration) {
	var all []*scrapes
	for _, name := range m.podsOf[w] {
		all = append(all, m.pods[name])
	}
	slices.SortFunc(all, func(a, b *scrapes) int { return cmp.Compare(a.last, b.last) })
	for _, s := range all {
		if s.last > known+maxPause {
			break
		}
		known = max(known, s.first)
	}
	return known
}

// unix is a time of Prometheus, in seconds.
func unix(t time.Time) string { return strconv.FormatFloat(float64(t.UnixMilli())/1000, 'f', 3, 64) }

type series struct {
	labels map[string]string
	value  float64
}

func (s series) label(name string) string { return clean(s.labels[name], maxName) }

func (s series) pod() podName { return podName{s.label("namespace"), s.label("pod")} }

// query runs an instant query.
func (p *Prometheus) query(ctx context.Context, expression string, now time.Time) ([]series, error) {
	var data struct {
		Result []struct {
			Metric map[string]string
			Value  [2]any
		}
	}
	if err := p.get(ctx, "query", url.Values{"query": {expression}, "time": {unix(now)}}, &data); err != nil {
		return nil, err
	}
	found := make([]series, 0, len(data.Result))
	for _, r := range data.Result {
		text, _ := r.Value[1].(string)
		value, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
		if err != nil || math.IsNaN(value) {
			return nil, errors.New("prometheus: its answer has a value that is no number")
		}
		found = append(found, series{r.Metric, value})
	}
	return found, nil
}

// get decodes the data of an answer.
func (p *Prometheus) get(ctx context.Context, path string, query url.Values, data any) error {
	address := p.URL.JoinPath("api", "v1", path)
	address.RawQuery = query.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address.String(), nil)
	if err != nil {
		return err
	}
	resp, err := p.Client.Do(req)
	if err != nil {
		return fmt.Errorf("prometheus: %w", withoutURL(err))
	}
	defer resp.Body.Close()
	answer := struct {
		Status, Error string
		Data          any
	}{Data: data}
	err = json.NewDecoder(io.LimitReader(resp.Body, maxQueryAnswer)).Decode(&answer)
	switch {
	case err != nil:
		return fmt.Errorf("prometheus answers %s, and no JSON: is %s its address?", resp.Status, p.URL.Redacted())
	case answer.Status != "success":
		return fmt.Errorf("prometheus answers %s: %s", resp.Status, clean(answer.Error, maxText))
	}
	return nil
}

// withoutURL returns an error of package net/http without the query, which is long.
func withoutURL(err error) error {
	if wrapped, ok := errors.AsType[*url.Error](err); ok {
		return wrapped.Err
	}
	return err
}
