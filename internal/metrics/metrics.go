// Package metrics counts what the proxy does and writes the counts in Prometheus' text
// format.
//
// Callers report events by the methods of [Metrics]. Values that are known only at the
// time of a scrape come from [Sample]. The package imports no other package of this
// module, and no other package depends on the format. docs/metrics.md explains each
// metric, and docs/adr/0030 explains why the package uses no library.
//
// # Security considerations
//
// Everybody who can connect to the endpoint can read it, possibly the whole cluster. The
// values of labels are from short lists: no client ID, no resource, no text from a
// request.
package metrics

import (
	"cmp"
	"net/http"
	"strconv"
	"sync"
	"time"
)

const prefix = "imds_oidc_proxy_"

// Config configures Metrics.
type Config struct {
	// Version and GoVersion are the labels of build_info.
	Version, GoVersion string

	// Handlers are the names of handlers that have their own histogram of request
	// durations. All other handlers share the histogram "other".
	Handlers []string

	// Sample is called at each scrape. Nil: the scrape has no metrics of a Sample.
	Sample func() Sample

	// Now is the clock. Nil: time.Now.
	Now func() time.Time
}

// Sample is the state of the proxy at the time of a scrape. A zero time means unknown:
// the scrape does not have its metric.
type Sample struct {
	CacheEntries         int
	SoonestTokenExpiry   time.Time
	FederatedTokenIssued time.Time
	FederatedTokenExpiry time.Time
	LogLinesLeftOut      uint64
	Callers              []Caller
}

// Caller is one kind of client seen since the start.
type Caller struct{ SDK, Version, WorkloadIdentity string }

// The values of the label result.
const (
	Success    = "success"
	Refused    = "refused"     // the request is invalid
	Failed     = "error"       // any other failure
	ClientLeft = "client_left" // the client closed the connection before the answer
)

// The values of the label selector.
const (
	ObjectID   = "object_id"
	ResourceID = "resource_id"
)

// NoSource is the value of the label source for a request that got no token.
const NoSource = "none"

// Metrics holds the counts. Its methods are safe for concurrent use.
type Metrics struct {
	cfg Config

	tokenRequests, refused, limited, forwarded *counter
	exchangeErrors, refreshes, learned         *counter

	requests  map[string]*histogram // by handler; the map does not change after New
	exchanges *histogram

	buffers sync.Pool // of *[]byte: each scrape needs 10 KiB, every few seconds
}

// Upper bounds of the buckets. A cached answer takes about 50 µs. Old credential chains
// give up after 1 s, the proxy after 20 s.
var (
	requestBounds = []time.Duration{
		100 * time.Microsecond, 500 * time.Microsecond, time.Millisecond, 5 * time.Millisecond, 25 * time.Millisecond,
		100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond,
		time.Second, 2500 * time.Millisecond, 5 * time.Second, 10 * time.Second, 20 * time.Second,
	}
	// An exchange takes one or two round trips to Entra and ends after 8 s at the latest.
	exchangeBounds = []time.Duration{
		25 * time.Millisecond, 50 * time.Millisecond, 100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond,
		time.Second, 2500 * time.Millisecond, 5 * time.Second, 8 * time.Second,
	}
)

// New returns Metrics whose counts are all zero.
func New(cfg Config) *Metrics {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	m := &Metrics{
		cfg: cfg,
		tokenRequests: newCounter("token_requests_total", "Requests for an access token, by result and by source of the token.",
			[]string{"result", "source"},
			values{Success, "cache"}, values{Success, "entra"}, values{Refused, NoSource}, values{Failed, NoSource}, values{ClientLeft, NoSource}),
		refused: newCounter("refused_requests_total", "Invalid requests to any endpoint, by reason.",
			[]string{"reason"}),
		limited: newCounter("limited_requests_total", "Requests for a token answered with 429 because of a limit of the proxy, by limit.",
			[]string{"limit"}, values{"exchange_rate"}, values{"running_exchanges"}, values{"waiting_callers"}),
		forwarded: newCounter("forwarded_requests_total", "Requests for instance metadata, by result.",
			[]string{"result"}, values{Success}, values{Refused}, values{Failed}, values{ClientLeft}),
		exchangeErrors: newCounter("exchange_errors_total", "Failed attempts to exchange a token with Entra, by AADSTS number, or by kind if there is no number.",
			[]string{"code"}),
		refreshes: newCounter("refreshes_total", "Refreshes of tokens that were still valid, by result.",
			[]string{"result"}, values{Success}, values{Failed}),
		learned: newCounter("learned_identities_total", "Object IDs and ARM resource IDs in requests, not configured, whose identity an access token showed.",
			[]string{"selector"}, values{ObjectID}, values{ResourceID}),
		requests:  map[string]*histogram{other: newHistogram(requestBounds)},
		exchanges: newHistogram(exchangeBounds),
		buffers:   sync.Pool{New: func() any { return new([]byte) }},
	}
	for _, handler := range cfg.Handlers {
		m.requests[handler] = newHistogram(requestBounds)
	}
	return m
}

// Request counts a request to any endpoint and its duration, by the name of the handler.
func (m *Metrics) Request(handler string, took time.Duration) {
	cmp.Or(m.requests[handler], m.requests[other]).observe(took)
}

// TokenRequest counts a request for a token. An empty source means NoSource.
func (m *Metrics) TokenRequest(result, source string) {
	m.tokenRequests.add(values{result, cmp.Or(source, NoSource)})
}

// RefusedRequest counts a refused request, by the reason.
func (m *Metrics) RefusedRequest(reason string) { m.refused.add(values{reason}) }

// LimitedRequest counts a request for a token that a limit of the proxy refused.
func (m *Metrics) LimitedRequest(limit string) { m.limited.add(values{limit}) }

// ForwardedRequest counts a request for instance metadata.
func (m *Metrics) ForwardedRequest(result string) { m.forwarded.add(values{result}) }

// Exchange counts one attempt to exchange a token and its duration. An empty code means
// success.
func (m *Metrics) Exchange(took time.Duration, code string) {
	m.exchanges.observe(took)
	if code != "" {
		m.exchangeErrors.add(values{code})
	}
}

// Refresh counts the refresh of a token that was still valid.
func (m *Metrics) Refresh(result string) { m.refreshes.add(values{result}) }

// LearnedIdentity counts a selector of this kind whose identity an access token showed.
func (m *Metrics) LearnedIdentity(selector string) { m.learned.add(values{selector}) }

// ServeHTTP answers a scrape.
func (m *Metrics) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	buffer := m.buffers.Get().(*[]byte)
	defer m.buffers.Put(buffer)
	b := m.appendTo((*buffer)[:0])
	*buffer = b
	header := w.Header()
	header.Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	header.Set("Cache-Control", "no-store")
	header.Set("Content-Length", strconv.Itoa(len(b)))
	_, _ = w.Write(b) // an error means that the scraper has closed the connection
}
