package report

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
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

// memory is what Prometheus knows.
type memory struct {
	// clients has the kinds of clients by namespace and pod, also of pods that are gone.
	clients []remembered
	// since says for how long there are data of each pod.
	since map[podName]time.Duration
}

type podName struct{ namespace, name string }

type remembered struct {
	podName
	client Client
}

const maxQueryAnswer = 64 << 20

// read asks for the clients of the whole period.
func (p *Prometheus) read(ctx context.Context, namespace string, period time.Duration) (*memory, error) {
	selector, window := "", seconds(period)
	if namespace != "" {
		selector = "{namespace=" + strconv.Quote(namespace) + "}"
	}
	m := &memory{since: map[podName]time.Duration{}}
	series, err := p.query(ctx, "count by (namespace, pod, sdk, version, workload_identity) (last_over_time(imds_oidc_proxy_callers"+selector+"["+window+"]))")
	if err != nil {
		return nil, err
	}
	for _, s := range series {
		m.clients = append(m.clients, remembered{s.pod(), Client{SDK: s.label("sdk"), Version: s.label("version"), WorkloadIdentity: s.label("workload_identity"), Pods: 1}})
	}
	series, err = p.query(ctx, "time() - min by (namespace, pod) (min_over_time(timestamp(imds_oidc_proxy_build_info"+selector+")["+window+":1h]))")
	if err != nil {
		return nil, err
	}
	for _, s := range series {
		m.since[s.pod()] = time.Duration(s.value * float64(time.Second))
	}
	return m, nil
}

// seconds is a duration of Prometheus: the whole period and two steps more.
func seconds(d time.Duration) string {
	return strconv.FormatInt(int64((d+2*time.Hour)/time.Second), 10) + "s"
}

type series struct {
	labels map[string]string
	value  float64
}

func (s series) label(name string) string { return clean(s.labels[name]) }

func (s series) pod() podName { return podName{s.label("namespace"), s.label("pod")} }

// query runs an instant query.
func (p *Prometheus) query(ctx context.Context, expression string) ([]series, error) {
	address := p.URL.JoinPath("api", "v1", "query")
	address.RawQuery = url.Values{"query": {expression}}.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address.String(), nil)
	if err != nil {
		return nil, err
	}
	resp, err := p.Client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("prometheus: %w", withoutURL(err))
	}
	defer resp.Body.Close()
	var answer struct {
		Status, Error string
		Data          struct {
			ResultType string
			Result     []struct {
				Metric map[string]string
				Value  [2]any
			}
		}
	}
	err = json.NewDecoder(io.LimitReader(resp.Body, maxQueryAnswer)).Decode(&answer)
	switch {
	case err != nil:
		return nil, fmt.Errorf("prometheus answers %s, and no JSON: is %s its address?", resp.Status, p.URL.Redacted())
	case answer.Status != "success":
		return nil, fmt.Errorf("prometheus answers %s: %s", resp.Status, clean(answer.Error))
	}
	found := make([]series, 0, len(answer.Data.Result))
	for _, r := range answer.Data.Result {
		text, _ := r.Value[1].(string)
		value, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
		if err != nil {
			return nil, errors.New("prometheus: its answer has a value that is no number")
		}
		found = append(found, series{r.Metric, value})
	}
	return found, nil
}

// withoutURL returns an error of package net/http without the query, which is long.
func withoutURL(err error) error {
	if wrapped, ok := errors.AsType[*url.Error](err); ok {
		return wrapped.Err
	}
	return err
}
