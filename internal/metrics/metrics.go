// Package metrics counts what the proxy does, and shows it in Prometheus' text
// format.
//
// It is told, and asks for what only the moment of a scrape can tell (see
// [Sample]); it knows no other package, and no other package knows the format.
// docs/metrics.md says what each metric means, and docs/adr/0030 why there is no
// library behind it.
//
// # Security considerations
//
// Whoever can reach the endpoint reads it, which may be the whole cluster. Labels
// are names from short lists: no client ID, no resource, nothing that a caller
// wrote as it came.
package metrics

import (
	"net/http"
	"strconv"
	"sync"
	"time"
)

const prefix = "imds_oidc_proxy_"

// Config says what stands in metrics that never change, and who tells the others.
type Config struct {
	// Version and GoVersion are shown by build_info.
	Version, GoVersion string

	// Handlers are those whose request durations are kept apart; the others are
	// other. Empty: all are.
	Handlers []string

	// Sample is asked at each scrape. Nil: what it would tell is left out.
	Sample func() Sample

	// Now is the clock. Nil: time.Now.
	Now func() time.Time
}

// Sample is the state of the proxy at the time of a scrape. A zero time stands for
// one that is not known; its metric is left out then.
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
	Refused    = "refused"     // for what the request said
	Failed     = "error"       // for all other reasons
	ClientLeft = "client_left" // before the answer
)

// NoSource is the label source of a request that got no token.
const NoSource = "none"

// Metrics holds the counts. Its methods are safe for concurrent use.
type Metrics struct {
	cfg Config

	tokenRequests, refused, forwarded *counter
	exchangeErrors, refreshes         *counter

	requests  map[string]*histogram // by handler; never changed
	exchanges *histogram

	buffers sync.Pool // of *[]byte: a scrape is 10 KiB, and it is scraped for ever
}

// Upper bounds of the buckets. A cached answer takes some 50 µs; 1 s is when old
// credential chains give up; 20 s is when the proxy does.
var (
	requestBounds = []time.Duration{
		100 * time.Microsecond, 500 * time.Microsecond, time.Millisecond, 5 * time.Millisecond, 25 * time.Millisecond,
		100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond,
		time.Second, 2500 * time.Millisecond, 5 * time.Second, 10 * time.Second, 20 * time.Second,
	}
	// One exchange is a round trip to Entra or two, and ends after 8 s.
	exchangeBounds = []time.Duration{
		25 * time.Millisecond, 50 * time.Millisecond, 100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond,
		time.Second, 2500 * time.Millisecond, 5 * time.Second, 8 * time.Second,
	}
)

// New returns Metrics with nothing counted yet.
func New(cfg Config) *Metrics {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	m := &Metrics{
		cfg: cfg,
		tokenRequests: newCounter("token_requests_total", "Requests for an access token, by how they ended and where the token came from.",
			[]string{"result", "source"},
			values{Success, "cache"}, values{Success, "entra"}, values{Refused, NoSource}, values{Failed, NoSource}, values{ClientLeft, NoSource}),
		refused: newCounter("refused_requests_total", "Requests refused for what they say, of any endpoint, by reason.",
			[]string{"reason"}),
		forwarded: newCounter("forwarded_requests_total", "Requests for instance metadata, by what became of forwarding them.",
			[]string{"result"}, values{Success}, values{Refused}, values{Failed}, values{ClientLeft}),
		exchangeErrors: newCounter("exchange_errors_total", "Exchanges with Entra that failed, each try by itself, by AADSTS number or else by kind.",
			[]string{"code"}),
		refreshes: newCounter("refreshes_total", "Tokens replaced while they were still valid, by how that ended.",
			[]string{"result"}, values{Success}, values{Failed}),
		requests:  map[string]*histogram{other: newHistogram(requestBounds)},
		exchanges: newHistogram(exchangeBounds),
		buffers:   sync.Pool{New: func() any { return new([]byte) }},
	}
	for _, handler := range cfg.Handlers {
		m.requests[handler] = newHistogram(requestBounds)
	}
	return m
}

// Request counts a request of any endpoint, by who handled it.
func (m *Metrics) Request(handler string, took time.Duration) {
	h := m.requests[handler]
	if h == nil {
		h = m.requests[other]
	}
	h.observe(took)
}

// TokenRequest counts a request for a token. An empty source is NoSource.
func (m *Metrics) TokenRequest(result, source string) {
	if source == "" {
		source = NoSource
	}
	m.tokenRequests.add(values{result, source})
}

// RefusedRequest counts a request that was refused, by its reason.
func (m *Metrics) RefusedRequest(reason string) { m.refused.add(values{reason}) }

// ForwardedRequest counts a request for instance metadata.
func (m *Metrics) ForwardedRequest(result string) { m.forwarded.add(values{result}) }

// Exchange counts one try at an exchange. An empty code is success.
func (m *Metrics) Exchange(took time.Duration, code string) {
	m.exchanges.observe(took)
	if code != "" {
		m.exchangeErrors.add(values{code})
	}
}

// Refresh counts the replacement of a token that was still valid.
func (m *Metrics) Refresh(result string) { m.refreshes.add(values{result}) }

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
	_, _ = w.Write(b) // a scraper that has left will be back
}
