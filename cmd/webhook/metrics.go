package main

import (
	"context"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/semaphore"
)

// metrics are the metrics of this program, in addition to those of controller-runtime. The label
// has the five values of answer.result, and never a value from a request.
type metrics struct {
	admissions *prometheus.CounterVec
	duration   *prometheus.HistogramVec
	expiry     prometheus.Gauge
	native     prometheus.Gauge
	current    prometheus.Gauge
	watches    *prometheus.GaugeVec
	evicted    prometheus.Counter
}

func newMetrics() *metrics {
	const prefix = "imds_oidc_proxy_webhook_"
	m := &metrics{
		admissions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: prefix + "admissions_total", Help: "Answers to the API server, by result.",
		}, []string{"result"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: prefix + "admission_duration_seconds", Help: "Time that an answer took, by result.",
			// From an account in the cache to the API server's timeout of 10 s.
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}, []string{"result"}),
		expiry: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: prefix + "certificate_expiry_timestamp_seconds", Help: "When the certificate that is being served expires; 0 while there is none.",
		}),
		native: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: prefix + "native_sidecar", Help: "1 while proxies are injected as native sidecars, 0 while they are ordinary containers.",
		}),
		current: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: prefix + "service_accounts_current", Help: "1 while the service accounts in memory follow the API server, 0 when they have not for a minute.",
		}),
		watches: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: prefix + "certificate_current", Help: "1 while the object that the webhook uses to renew its certificate follows the API server, 0 when it has not for a minute.",
		}, []string{"object"}),
		evicted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: prefix + "connections_evicted_total", Help: "Connections that were closed because the client sent or read slowly while others waited.",
		}),
	}
	// Counters that exist from the start have a rate at the first failure.
	for _, result := range []string{resultInjected, resultUnchanged, resultSkipped, resultRefused, resultError} {
		m.admissions.WithLabelValues(result)
	}
	return m
}

// collectors returns all metrics, for a registry.
func (m *metrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{m.admissions, m.duration, m.expiry, m.native, m.current, m.watches, m.evicted}
}

func (m *metrics) observe(result string, took time.Duration) {
	m.admissions.WithLabelValues(result).Inc()
	m.duration.WithLabelValues(result).Observe(took.Seconds())
}

// metricsHandler answers requests for /metrics, one at a time, because all metrics are in memory for
// each.
func metricsHandler(from prometheus.Gatherer) http.Handler {
	one := semaphore.NewWeighted(1)
	metrics := promhttp.HandlerFor(from, promhttp.HandlerOpts{ErrorHandling: promhttp.HTTPErrorOnError})
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), plainTimeout)
		defer cancel()
		if err := one.Acquire(ctx, 1); err != nil {
			writeError(w, err)
			return
		}
		leave := sync.OnceFunc(func() { one.Release(1) })
		defer leave()
		complete := &answerBuffer{ResponseWriter: w}
		metrics.ServeHTTP(complete, r)
		if err := complete.send(ctx, peerOf(r), leave); err != nil {
			writeError(w, err)
		}
	})
	return mux
}
