package report

import (
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
	URL    *url.URL
	Client *http.Client
}

// memory is what Prometheus knows about one period.
type memory struct {
	// clients has the kinds of clients by namespace and pod, also of pods that are gone.
	clients []remembered
	// pods has for how long there are data of each pod, or 0 if the pod was too short for that. current has
	// the pods that are scraped now.
	pods    map[podName]time.Duration
	current map[podName]bool
	// reach is for how long there are data of any target, without a pause.
	reach time.Duration

	// podsOf and clientsOf have the same by workload.
	podsOf    map[*Workload][]podName
	clientsOf map[*Workload][]remembered
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

	// step is the resolution of the times. maxPoints is how many times Prometheus returns at most, less
	// some. maxPause is the longest time without data that is no pause.
	step      = time.Hour
	maxPoints = 10_000
	maxPause  = 2 * step
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
	selector := ""
	if namespace != "" {
		selector = "{namespace=" + strconv.Quote(namespace) + "}"
	}
	longest := (period + maxPause).Seconds()
	window := strconv.FormatInt(int64(longest), 10) + "s"
	m := &memory{pods: map[podName]time.Duration{}, current: map[podName]bool{}}
	for _, q := range []struct {
		expression string
		keep       func(series)
	}{
		{"count by (namespace, pod, sdk, version, workload_identity) (last_over_time(imds_oidc_proxy_callers" + selector + "[" + window + "]))", func(s series) {
			m.clients = append(m.clients, remembered{s.pod(), Client{SDK: s.label("sdk"), Version: s.label("version"), WorkloadIdentity: s.label("workload_identity"), Pods: 1}})
		}},
		{"count by (namespace, pod) (last_over_time(imds_oidc_proxy_build_info" + selector + "[" + window + "]))", func(s series) { m.pods[s.pod()] = 0 }},
		{"time() - min by (namespace, pod) (min_over_time(timestamp(imds_oidc_proxy_build_info" + selector + ")[" + window + ":1h]))", func(s series) {
			m.pods[s.pod()] = time.Duration(max(min(s.value, longest), 0) * float64(time.Second))
		}},
		{"count by (namespace, pod) (imds_oidc_proxy_build_info" + selector + ")", func(s series) { m.current[s.pod()] = true }},
	} {
		found, err := p.query(ctx, q.expression, now)
		if err != nil {
			return nil, err
		}
		for _, s := range found {
			q.keep(s)
		}
	}
	times, err := p.times(ctx, period, now)
	m.reach = reach(times, now, max(maxPause, 2*stepOf(period)))
	return m, err
}

// stepOf returns the time between two points of a range query.
func stepOf(period time.Duration) time.Duration { return max(step, period/maxPoints) }

// times returns the times at which Prometheus has data of any target.
func (p *Prometheus) times(ctx context.Context, period time.Duration, now time.Time) ([]time.Time, error) {
	var data struct{ Result []struct{ Values [][2]any } }
	err := p.get(ctx, "query_range", url.Values{
		"query": {`count({__name__=~"up|imds_oidc_proxy_build_info"})`}, "start": {unix(now.Add(-period - maxPause))}, "end": {unix(now)},
		"step": {strconv.FormatInt(int64(stepOf(period)/time.Second), 10)},
	}, &data)
	var times []time.Time
	for _, result := range data.Result {
		for _, v := range result.Values {
			if seconds, ok := v[0].(float64); ok {
				times = append(times, time.Unix(int64(seconds), 0))
			}
		}
	}
	return times, err
}

// reach returns for how long there are times without a pause, back from now.
func reach(times []time.Time, now time.Time, pause time.Duration) time.Duration {
	slices.SortFunc(times, func(a, b time.Time) int { return b.Compare(a) })
	oldest := now
	for _, t := range times {
		if oldest.Sub(t) > pause {
			break
		}
		oldest = t
	}
	return now.Sub(oldest)
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
