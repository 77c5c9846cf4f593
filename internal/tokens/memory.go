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
	// maxFailures bounds the keys whose failures are remembered. They have a memory of
	// their own: asking for nonsense evicts no token.
	maxFailures = 1024

	// maxThrottles bounds the client IDs that are not configured and are remembered as
	// throttled by Entra. Configured ones have a memory of their own, which no invented
	// client ID can fill.
	maxThrottles = 64

	// maxRunning bounds the exchanges that run at once. Each has a connection of
	// some 60 KiB, and a sidecar has little memory.
	maxRunning = 256

	// idleLook is how often the schedule looks when nothing is planned.
	idleLook = time.Hour

	// Failures are logged at this rate over all keys: an application that makes
	// up resources must not fill the node's disk.
	reportsPerSecond = 1
	reportBurst      = 30
)

// key is what a token is for. The resource stays as it was spelled: its case and
// its trailing slash decide the audience of the token.
type key struct {
	clientID azure.ClientID
	resource azure.Resource
}

func keyOf(r Request) key { return key{r.ClientID, r.Resource} }

// memory is what is known of each key, and decides what to do with requests for it. It
// has no lock, starts no goroutine, and reads no clock: the time is an argument.
type memory struct {
	prefetch map[key]time.Time // keys to have ready, and when each may be exchanged again
	held     *simplelru.LRU[key, *holding]
	bytes    int // of held, without prefetched tokens

	failures       *simplelru.LRU[key, *failure]
	throttles      *simplelru.LRU[azure.ClientID, *failure] // of configured identities, and of the tenant
	otherThrottles *simplelru.LRU[azure.ClientID, *failure]

	running   map[key]*run
	budgets   map[azure.ClientID]*budget       // of configured identities
	others    *budget                          // of all other client IDs
	refreshes *budget                          // of refreshes and prefetched keys
	shared    int                              // sharedPlaces in use
	refused   marks                            // keys that a limit refused
	known     *simplelru.LRU[uint64, struct{}] // hashes of keys that had a token

	waiting, maxWaiting int // callers

	lines *rate.Limiter // of failures logged
}

func newMemory(cfg Config) *memory {
	m := &memory{
		prefetch:       make(map[key]time.Time, len(cfg.Prefetch)),
		held:           newLRU[key, *holding](maxTokens + 1), // keep evicts
		failures:       newLRU[key, *failure](maxFailures),
		throttles:      newLRU[azure.ClientID, *failure](len(cfg.Identities) + 1),
		otherThrottles: newLRU[azure.ClientID, *failure](maxThrottles),
		running:        make(map[key]*run),
		refused:        newMarks(refusedSlots),
		known:          newLRU[uint64, struct{}](maxKnown),
		maxWaiting:     cmp.Or(cfg.MaxWaiting, DefaultMaxWaiting),
		lines:          rate.NewLimiter(reportsPerSecond, reportBurst),
	}
	for _, r := range cfg.Prefetch {
		m.prefetch[keyOf(r)] = time.Time{}
	}
	m.newBudgets(cfg.Identities)
	return m
}

// newLRU returns a map of at most size entries; the one used least recently makes room.
func newLRU[K comparable, V any](size int) *simplelru.LRU[K, V] {
	lru, _ := simplelru.NewLRU[K, V](size, nil) // it fails for sizes below 1 only
	return lru
}

// drop forgets a run: its outcome does not count, and a caller that comes now gets a run
// of its own.
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

// valid returns the token held for k unless it has ended.
func (m *memory) valid(k key, now time.Time) *holding {
	h, _ := m.held.Peek(k)
	if h == nil || h.end.come(now) {
		return nil
	}
	return h
}

// learn takes in the outcome of a run: a grant, or an error. It returns the error as
// callers get it, and what to log; nil: nothing. chance is in [0, 1).
func (m *memory) learn(r *run, g exchange.Grant, err *exchange.Error, now time.Time, chance float64) (*exchange.Error, *report) {
	m.remove(r)
	m.waiting -= len(r.waiters) // all get the outcome
	clear(r.waiters)
	switch {
	case err == nil:
		return nil, m.succeeded(r, g, now, chance)
	case r.dropped:
		return err, nil // it was canceled, which says nothing about Entra
	}
	note := m.failed(r.key, err, now, chance)
	return note.failed.at(now), note
}

// succeeded keeps the token.
func (m *memory) succeeded(r *run, g exchange.Grant, now time.Time, chance float64) *report {
	k := r.key
	past := m.failing(k, now)
	m.failures.Remove(k)
	m.unthrottled(k, now)
	h := newHolding(g, now, r.asked, chance)
	m.keep(k, h)
	m.known.Add(m.refused.hash(k), struct{}{})
	if _, standing := m.prefetch[k]; standing {
		m.prefetch[k] = now.Add(freshInterval)
	}
	return &report{expiresOn: h.token.ExpiresOn, refreshOn: h.due.wall, past: past}
}

// failed remembers the failure.
func (m *memory) failed(k key, err *exchange.Error, now time.Time, chance float64) *report {
	past := m.failing(k, now)
	h := m.valid(k, now)
	next := &failure{err: err, streak: 1}
	if past != nil {
		next.streak = past.streak + 1
	}
	next.until = now.Add(rest(err, next.streak, h != nil, chance))
	if h != nil && err.RetryAfter == 0 {
		// Without the token callers wait, and may cause a try.
		next.until = earlier(next.until, h.end.next(now))
	}
	if err.Kind == exchange.Throttled {
		next.until = later(next.until, m.throttled(k, err, now, chance))
	}
	m.failures.Add(k, next)
	return m.reportOf(next, past, now)
}

// due begins the runs whose time has come, and lets go of tokens that have ended. It
// returns those runs, for the caller to start, and how long nothing else is due.
func (m *memory) due(now time.Time) (begun []*run, pause time.Duration) {
	next := now.Add(idleLook)
	at := func(k key, due time.Time) {
		r, again := m.beginAt(k, due, now)
		if r != nil {
			begun = append(begun, r)
		}
		next = earlier(next, again)
	}
	for _, k := range m.held.Keys() {
		h, _ := m.held.Peek(k)
		if h.end.come(now) {
			m.forget(k)
			continue
		}
		next = earlier(next, h.end.next(now))
		if _, standing := m.prefetch[k]; h.used || standing {
			at(k, later(h.due.next(now), h.forcible.next(now)))
		} else if !h.due.come(now) {
			next = earlier(next, h.due.next(now))
		}
	}
	for k, due := range m.prefetch {
		if !m.held.Contains(k) {
			at(k, due)
		}
	}
	return begun, next.Sub(now)
}

// beginAt begins the run for k if it is due and may begin; else it returns nil and when
// to look again.
func (m *memory) beginAt(k key, due, now time.Time) (r *run, again time.Time) {
	never := now.Add(idleLook)
	due = later(due, m.restsUntil(k, now))
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

// stats looks at the cache. It costs microseconds, also when the cache is full.
func (m *memory) stats() Stats {
	stats := Stats{Entries: m.held.Len()}
	for _, h := range m.held.Values() {
		if end := h.token.ExpiresOn; stats.SoonestExpiry.IsZero() || end.Before(stats.SoonestExpiry) {
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
