package main

import (
	"net/http"
	"runtime"
	"time"

	"go.uber.org/zap"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/census"
	"imds-oidc-proxy/internal/exchange"
	"imds-oidc-proxy/internal/imds"
	"imds-oidc-proxy/internal/logging"
	"imds-oidc-proxy/internal/loglimit"
	"imds-oidc-proxy/internal/metrics"
	"imds-oidc-proxy/internal/tokens"
)

// observer passes events of the packages imds and tokens to the metrics and the census.
// Only observer knows both sides.
type observer struct {
	exchanger *exchange.Exchanger // read by sample, like tokens; both are set before the first request
	tokens    *tokens.Service
	limit     *loglimit.Limit
	lines     *logging.Queue
	metrics   *metrics.Metrics
	census    *census.Census
}

func newObserver(limit *loglimit.Limit, lines *logging.Queue, log *zap.Logger) *observer {
	o := &observer{
		limit:  limit,
		lines:  lines,
		census: census.New(census.Config{New: func(c census.Caller) { logCaller(log, c) }}),
	}
	o.metrics = metrics.New(metrics.Config{
		Version:   version,
		GoVersion: runtime.Version(),
		Handlers: []string{imds.EndpointToken, imds.EndpointAppService, imds.EndpointInfo, imds.EndpointVersions, imds.EndpointForward, imds.EndpointInstance,
			imds.EndpointOwn, imds.EndpointNone},
		Sample: o.sample,
	})
	return o
}

// request counts a request of any endpoint.
func (o *observer) request(r *http.Request, e imds.Event) {
	o.metrics.Request(e.Endpoint, e.Duration)
	if e.Refusal != "" {
		o.metrics.RefusedRequest(e.Refusal)
	}
	switch e.Endpoint {
	case imds.EndpointToken, imds.EndpointAppService:
		o.metrics.TokenRequest(result(e), string(e.Source))
		if fromCaller(r, e) {
			o.census.Count(r.Header)
		}
	case imds.EndpointForward:
		o.metrics.ForwardedRequest(result(e))
	}
}

// fromCaller reports whether a token request was made by a client that depends on the
// sidecar. Requests that are refused count too. Two kinds do not count: probes, which have no
// Metadata header, and forged requests (SSRF, DNS rebinding), which have X-Forwarded-For or a
// foreign Host header, or not the secret of App Service's protocol.
func fromCaller(r *http.Request, e imds.Event) bool {
	switch e.Refusal {
	case "no_metadata_header", "no_secret_header", "wrong_secret_header", "forwarded_for", "foreign_host":
		return false
	}
	// A request with another method is refused before its header is checked.
	return len(r.Header["Metadata"])+len(r.Header["X-Identity-Header"])+len(r.Header["Secret"]) > 0
}

func result(e imds.Event) string {
	switch {
	case e.ClientLeft():
		return metrics.ClientLeft
	case e.Refusal != "":
		return metrics.Refused
	case e.Status >= http.StatusBadRequest:
		return metrics.Failed
	default:
		return metrics.Success
	}
}

// exchanges returns the observer of package tokens.
func (o *observer) exchanges() tokens.Observer {
	return tokens.Observer{
		Exchanged: func(took time.Duration, err *exchange.Error) {
			code := ""
			if err != nil {
				code = err.Label()
			}
			o.metrics.Exchange(took, code)
		},
		Refreshed: func(err *exchange.Error) {
			if err != nil {
				o.metrics.Refresh(metrics.Failed)
				return
			}
			o.metrics.Refresh(metrics.Success)
		},
		Limited: func(limit tokens.Limit) { o.metrics.LimitedRequest(string(limit)) },
		Learned: func(selector azure.Selector) {
			if selector.IsResourceID() {
				o.metrics.LearnedIdentity(metrics.ResourceID)
				return
			}
			o.metrics.LearnedIdentity(metrics.ObjectID)
		},
	}
}

// sample returns the values that are read at the time of a scrape. If the federated token
// cannot be read, its times are zero, and /readyz reports why.
func (o *observer) sample() metrics.Sample {
	stats := o.tokens.Stats()
	s := metrics.Sample{
		CacheEntries:       stats.Entries,
		SoonestTokenExpiry: stats.SoonestExpiry,
		LogLinesLeftOut:    o.limit.LeftOut() + o.lines.LeftOut(),
	}
	if token, err := o.exchanger.FederatedToken(); err == nil {
		s.FederatedTokenIssued, s.FederatedTokenExpiry = token.IssuedAt, token.ExpiresOn
	}
	for _, e := range o.census.Entries() {
		s.Callers = append(s.Callers, metrics.Caller{SDK: e.SDK, Version: e.Version, WorkloadIdentity: string(e.WorkloadIdentity)})
	}
	return s
}

// logCaller logs a kind of client when it is first seen, with the SDK version that would
// not need the proxy.
func logCaller(log *zap.Logger, c census.Caller) {
	fields := []zap.Field{zap.String("sdk", c.SDK), zap.String("workload_identity", string(c.WorkloadIdentity))}
	if c.Version != "" {
		fields = append(fields, zap.String("version", c.Version))
	}
	if c.Upgrade != "" {
		fields = append(fields, zap.String("upgrade", c.Upgrade))
	}
	log.Info("new caller", fields...)
}
