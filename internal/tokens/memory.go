package tokens

import (
	"cmp"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"golang.org/x/time/rate"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/exchange"
)

const (
	// maxFailures bounds the keys whose failures are remembered. They are in a map of
	// their own, so that requests for unknown resources evict no token.
	maxFailures = 1024

	// maxThrottles bounds the throttles of client IDs that are not configured. Those of
	// configured client IDs are in a map of their own, so that no invented client ID evicts
	// them.
	maxThrottles = 64

	// maxRunning bounds the exchanges that run at once. Each has a connection of
	// some 60 KiB, and a sidecar has little memory.
	maxRunning = 256

	// maxIdle is how often the schedule checks for due exchanges when none is planned.
	maxIdle = time.Hour

	// warningsPerSecond and warningBurst bound the warnings about failures of all keys: an
	// application that invents resources must not fill the node's disk.
	warningsPerSecond = 1
	warningBurst      = 30
)

// key is what a token is for. The resource is as the caller spelled it: its case and
// its trailing slash decide the audience of the token.
type key struct {
	clientID azure.ClientID
	resource azure.Resource
}

func keyOf(r Request) key { return key{r.ClientID, r.Resource} }

// memory holds the tokens, failures and running exchanges of all keys, and decides what to do
// with requests. It has no lock, starts no goroutine and reads no clock: the time is an
// argument.
type memory struct {
	prefetch map[key]time.Time // prefetched keys, and when each may be exchanged again
	cache    *simplelru.LRU[key, *entry]
	bytes    int // of cache, without prefetched tokens

	failures       *simplelru.LRU[key, *failure]
	throttles      *simplelru.LRU[azure.ClientID, *failure] // of configured identities, and of the tenant
	otherThrottles *simplelru.LRU[azure.ClientID, *failure]

	identities []azure.ClientID          // the configured ones, without duplicates
	named      map[azure.ClientID]*named // of each of identities; the map does not change

	running   map[key]*run
	budgets   map[azure.ClientID]*budget       // of configured identities
	others    *budget                          // of all other client IDs
	refreshes *budget                          // of refreshes and prefetched keys
	shared    int                              // sharedPlaces in use
	refused   marks                            // keys that a limit refused
	known     *simplelru.LRU[uint64, struct{}] // hashes of keys that had a token

	waiting, maxWaiting int // callers

	warnings *rate.Limiter
}

func newMemory(cfg Config) *memory {
	m := &memory{
		prefetch:       make(map[key]time.Time, len(cfg.Prefetch)),
		cache:          newLRU[key, *entry](maxTokens + 1), // keep evicts
		failures:       newLRU[key, *failure](maxFailures),
		throttles:      newLRU[azure.ClientID, *failure](len(cfg.Identities) + 1),
		otherThrottles: newLRU[azure.ClientID, *failure](maxThrottles),
		running:        make(map[key]*run),
		refused:        newMarks(refusedSlots),
		known:          newLRU[uint64, struct{}](maxKnown),
		maxWaiting:     cmp.Or(cfg.MaxWaiting, DefaultMaxWaiting),
		warnings:       rate.NewLimiter(warningsPerSecond, warningBurst),
	}
	for _, r := range cfg.Prefetch {
		m.prefetch[keyOf(r)] = time.Time{}
	}
	m.newBudgets(cfg.Identities)
	m.newNamed(cfg.Identities)
	return m
}

// newLRU returns a map of at most size entries, which evicts the least recently used one.
func newLRU[K comparable, V any](size int) *simplelru.LRU[K, V] {
	lru, _ := simplelru.NewLRU[K, V](size, nil) // it fails only for sizes below 1
	return lru
}

// drop removes a run whose outcome will be ignored. A caller that comes now gets a new run.
func (m *memory) drop(r *run) {
	r.dropped = true
	m.remove(r)
}

func (m *memory) remove(r *run) {
	if m.running[r.key] != r {
		return
	}
	delete(m.running, r.key)
	m.release(r.budget)
}

// valid returns the cached token of k, nil if it has ended or there is none.
func (m *memory) valid(k key, now time.Time) *entry {
	e, _ := m.cache.Peek(k)
	if e == nil || e.end.reached(now) {
		return nil
	}
	return e
}

// learn records the outcome of a run: a grant, or an error. It returns the error for callers,
// and what to log; nil: nothing. jitter is in [0, 1).
func (m *memory) learn(r *run, g exchange.Grant, err *exchange.Error, now time.Time, jitter float64) (*exchange.Error, *report) {
	m.remove(r)
	m.waiting -= len(r.waiters) // all get the outcome
	clear(r.waiters)
	switch {
	case err == nil:
		return nil, m.succeeded(r, g, now, jitter)
	case r.dropped, !r.tried:
		return err, nil // it was canceled, or held back by a throttle: nothing new about Entra
	}
	note := m.failed(r.key, err, now, jitter)
	return note.failed.at(now), note
}

// succeeded adds the token to the cache, and forgets the failures of the key.
func (m *memory) succeeded(r *run, g exchange.Grant, now time.Time, jitter float64) *report {
	k := r.key
	past := m.failing(k, now)
	m.failures.Remove(k)
	m.forgetThrottle(k, now)
	e := newEntry(g, now, r.asked, jitter)
	m.keep(k, e)
	m.known.Add(m.refused.hash(k), struct{}{})
	if _, prefetched := m.prefetch[k]; prefetched {
		m.prefetch[k] = now.Add(freshInterval)
	}
	return &report{expiresOn: e.token.ExpiresOn, refreshOn: e.due.wall, past: past}
}

// failed remembers the failure, and when the next exchange may begin.
func (m *memory) failed(k key, err *exchange.Error, now time.Time, jitter float64) *report {
	past := m.failing(k, now)
	e := m.valid(k, now)
	next := &failure{err: err, streak: 1}
	if past != nil {
		next.streak = past.streak + 1
	}
	next.until = now.Add(backoffAfter(err, next.streak, e != nil, jitter))
	if e != nil && err.RetryAfter == 0 {
		// Once the token has ended, callers wait: the longer backoff of a refresh ends too.
		next.until = earlier(next.until, e.end.next(now))
	}
	if f := m.throttling(k, now); f != nil && err.Kind == exchange.Throttled {
		next.until = later(next.until, f.until)
	}
	m.failures.Add(k, next)
	return m.reportOf(next, past, now)
}

// due begins the runs that are due, and removes tokens that have ended from the cache. It
// returns those runs, for the caller to start, and how long nothing else is due.
func (m *memory) due(now time.Time) (begun []*run, pause time.Duration) {
	next := now.Add(maxIdle)
	at := func(k key, due time.Time) {
		r, again := m.beginAt(k, due, now)
		if r != nil {
			begun = append(begun, r)
		}
		next = earlier(next, again)
	}
	for _, k := range m.cache.Keys() {
		e, _ := m.cache.Peek(k)
		if e.end.reached(now) {
			m.forget(k)
			continue
		}
		next = earlier(next, e.end.next(now))
		if _, prefetched := m.prefetch[k]; e.used || prefetched {
			at(k, later(e.due.next(now), e.forceable.next(now)))
		} else if !e.due.reached(now) {
			next = earlier(next, e.due.next(now))
		}
	}
	for k, due := range m.prefetch {
		if !m.cache.Contains(k) {
			at(k, due)
		}
	}
	return begun, next.Sub(now)
}

// beginAt begins the run for k if it is due and may begin. Otherwise it returns nil and when
// to check again.
func (m *memory) beginAt(k key, due, now time.Time) (r *run, again time.Time) {
	never := now.Add(maxIdle)
	due = later(due, m.backoffUntil(k, now))
	switch {
	case m.running[k] != nil:
		return nil, never // its end wakes the schedule
	case now.Before(due):
		return nil, due
	case m.admit(m.refreshes, known, now) != nil:
		return nil, now.Add(limitPause)
	}
	return m.begin(k, m.refreshes, known, now), never
}

// stats returns Stats. It takes microseconds, even when the cache is full.
func (m *memory) stats() Stats {
	stats := Stats{Entries: m.cache.Len()}
	for _, e := range m.cache.Values() {
		if end := e.token.ExpiresOn; stats.SoonestExpiry.IsZero() || end.Before(stats.SoonestExpiry) {
			stats.SoonestExpiry = end
		}
	}
	return stats
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
