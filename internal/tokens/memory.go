package tokens

import (
	"strings"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"golang.org/x/time/rate"

	"imds-oidc-proxy/internal/exchange"
)

const (
	// maxTokens bounds the tokens held. A pod asks for a handful; the bound is for
	// one that asks for a new resource each time. At about 3 KiB for a token and its
	// entry, a full cache is 3 MiB.
	maxTokens = 1024

	// maxFailures bounds the keys whose failures are remembered. They have a memory of
	// their own: asking for nonsense evicts no token.
	maxFailures = 1024

	// maxThrottles bounds the client IDs that are remembered as throttled by Entra.
	maxThrottles = 64

	// maxRunning bounds the exchanges that run at once. Each has a connection of
	// some 60 KiB, and a sidecar has little memory.
	maxRunning = 256

	// busyPause is the Retry-After of a request that finds maxRunning exchanges.
	busyPause = time.Second

	// patience is how long a caller waits for a better token when there is a valid
	// one to fall back on. It counts from the start of the exchange.
	patience = 2 * time.Second

	// idleLook is how often the schedule looks when nothing is planned.
	idleLook = time.Hour

	// Failures are logged at this rate over all keys: an application that makes
	// up resources must not fill the node's disk.
	reportsPerSecond = 1
	reportBurst      = 30
)

// key is what a token is for. The resource stays as it was spelled: its case and
// its trailing slash decide the audience of the token.
type key struct{ clientID, resource string }

func keyOf(r Request) key {
	return key{clientID: strings.ToLower(r.ClientID), resource: r.Resource}
}

// memory is what is known of each key, and decides what to do with requests for it. It
// has no lock, starts no goroutine, and reads no clock: the time is an argument.
type memory struct {
	prefetch  map[key]time.Time // keys to have ready, and when each may be exchanged again
	held      *simplelru.LRU[key, *holding]
	failures  *simplelru.LRU[key, *failure]
	throttles *simplelru.LRU[string, *failure] // by client ID
	running   map[key]*run
	lines     *rate.Limiter // of failures logged
}

func newMemory(prefetch []Request) *memory {
	m := &memory{
		prefetch:  make(map[key]time.Time, len(prefetch)),
		held:      newLRU[key, *holding](maxTokens),
		failures:  newLRU[key, *failure](maxFailures),
		throttles: newLRU[string, *failure](maxThrottles),
		running:   make(map[key]*run),
		lines:     rate.NewLimiter(reportsPerSecond, reportBurst),
	}
	for _, r := range prefetch {
		m.prefetch[keyOf(r)] = time.Time{}
	}
	return m
}

// newLRU returns a map of at most size entries; the one used least recently makes room.
func newLRU[K comparable, V any](size int) *simplelru.LRU[K, V] {
	lru, _ := simplelru.NewLRU[K, V](size, nil) // it fails for sizes below 1 only
	return lru
}

// decision says what to do with a request.
type decision struct {
	action action

	// run is the exchange to wait for or, with serve, one that runs in the background.
	// Nil: none.
	run *run

	// start says that run is new: its goroutine has to be started.
	start bool

	// backup says that token may be returned in case run fails, or takes longer than
	// patience.
	backup bool

	token exchange.Token  // serve, or wait with backup
	err   *exchange.Error // refuse
}

type action int

const (
	serve  action = iota // return the token
	wait                 // wait for run
	refuse               // return the error
)

// decide answers the one question: what to do with a request for k. fresh says that a
// cached token will not do.
func (m *memory) decide(k key, fresh bool, now time.Time) decision {
	h, _ := m.held.Get(k)
	if h == nil || h.end.come(now) {
		return m.decideWithout(k, now)
	}
	h.used = true
	d := decision{action: serve, token: h.tokenAt(now)}
	if fresh && !h.forcible.come(now) || !fresh && !h.due.come(now) {
		return d
	}
	worthWaiting := (fresh || h.stale.come(now)) && !m.troubled(k, now)
	r, start, err := m.join(k, now)
	if err != nil {
		return d
	}
	d.run, d.start = r, start
	if worthWaiting {
		d.action = wait
		d.backup = !h.end.come(r.began.Add(patience))
	}
	return d
}

// decideWithout is decide for a key without a valid token.
func (m *memory) decideWithout(k key, now time.Time) decision {
	r, start, err := m.join(k, now)
	if err != nil {
		return decision{action: refuse, err: err}
	}
	return decision{action: wait, run: r, start: start}
}

// join returns the run for k on behalf of a caller: the one under way, or a new one if
// Entra may be asked now.
func (m *memory) join(k key, now time.Time) (r *run, start bool, err *exchange.Error) {
	if r = m.running[k]; r == nil {
		if resting := m.resting(k, now); resting != nil {
			return nil, false, resting.at(now)
		}
		if len(m.running) >= maxRunning {
			return nil, false, &exchange.Error{Kind: exchange.Throttled, RetryAfter: busyPause, Detail: "too many exchanges are running"}
		}
		r, start = m.begin(k, now), true
	}
	r.asked = true
	return r, start, nil
}

// begin notes a run for k. The caller starts it.
func (m *memory) begin(k key, now time.Time) *run {
	// The caller's strings may be part of a much longer request in memory.
	k = key{clientID: strings.Clone(k.clientID), resource: strings.Clone(k.resource)}
	r := &run{key: k, began: now, tries: maxTries, refresh: m.valid(k, now) != nil}
	if r.refresh || m.failing(k, now) != nil {
		r.tries = 1 // the next exchange is the next try
	}
	m.running[k] = r
	return r
}

// drop forgets a run: its outcome does not count, and a caller that comes now gets a run
// of its own.
func (m *memory) drop(r *run) {
	r.dropped = true
	m.remove(r)
}

func (m *memory) remove(r *run) {
	if m.running[r.key] == r {
		delete(m.running, r.key)
	}
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
	m.held.Add(k, h)
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
			m.held.Remove(k)
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
	case len(m.running) >= maxRunning:
		return nil, now.Add(busyPause)
	}
	return m.begin(k, now), never
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
