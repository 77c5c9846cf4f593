package tokens

import (
	"strings"
	"time"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/exchange"
)

// refreshWait is how long a caller waits for a new token while its old one is still valid. It
// counts from the start of the exchange.
const refreshWait = 2 * time.Second

// decision says what to do with a request.
type decision struct {
	action action

	// run is the exchange to wait for or, if the caller does not wait, the one that runs
	// in the background. Nil: there is none.
	run *run

	// start says that run is new: its goroutine has to be started.
	start bool

	// waiter is the caller among those that wait for run.
	waiter waiter

	// fallback says that token may be returned if run fails or takes longer than
	// refreshWait.
	fallback bool

	token exchange.Token  // for serve, and for wait with fallback
	err   *exchange.Error // for refuse
}

type action int

const (
	serve  action = iota // return the token
	wait                 // wait for run
	refuse               // return the error
)

// decide decides what to do with a request for k. If fresh, the caller asks for a token that
// is not cached.
func (m *memory) decide(k key, fresh bool, now time.Time) decision {
	e, _ := m.cache.Get(k)
	if e == nil || e.end.reached(now) {
		return m.decideWithout(k, now)
	}
	e.used = true
	d := decision{action: serve, token: e.tokenAt(now)}
	due := e.due.reached(now)
	if fresh && !e.forceable.reached(now) || !fresh && !due {
		return d
	}
	worthWaiting := (fresh || e.stale.reached(now)) && !m.failingOrThrottled(k, now)
	b := m.refreshes
	if !due {
		b = m.budgetOf(k.clientID)
	}
	var err *exchange.Error
	if d.run, d.start, err = m.join(k, b, now); err != nil || !worthWaiting {
		return d
	}
	if d.waiter = m.enter(d.run); d.waiter != nil {
		d.action = wait
		d.fallback = !e.end.reached(d.run.began.Add(refreshWait))
	}
	return d
}

// decideWithout is decide for a key without a valid token.
func (m *memory) decideWithout(k key, now time.Time) decision {
	b := m.budgetOf(k.clientID)
	if _, prefetched := m.prefetch[k]; prefetched {
		b = m.refreshes
	}
	d := decision{action: wait}
	if d.run, d.start, d.err = m.join(k, b, now); d.err != nil {
		d.action = refuse
		return d
	}
	if d.waiter = m.enter(d.run); d.waiter == nil {
		d.action, d.err = refuse, overloaded() // the run continues: the next request finds its token
	}
	return d
}

// join returns the run for k on behalf of a caller: the running one, or a new one if an
// exchange may begin now or after a throttle of a few seconds, whose tries b pays for.
func (m *memory) join(k key, b *budget, now time.Time) (r *run, start bool, err *exchange.Error) {
	if r = m.running[k]; r == nil {
		f := m.backedOff(k, now)
		if f != nil && !m.mayWaitForThrottle(k, f, now) {
			return nil, false, f.at(now)
		}
		c := m.classOf(k, now)
		if err := m.admit(b, c, now); err != nil {
			m.noteRefused(k, now)
			if f != nil {
				err = f.at(now) // Entra is the reason, and has its own Retry-After
			}
			return nil, false, err
		}
		r, start = m.begin(k, b, c, now), true
	}
	r.asked = true
	return r, start, nil
}

// begin adds a run for k. The caller starts its goroutine.
func (m *memory) begin(k key, b *budget, c class, now time.Time) *run {
	// The caller's strings may be part of a much longer request in memory.
	k = key{azure.ClientID(strings.Clone(string(k.clientID))), azure.Resource(strings.Clone(string(k.resource)))}
	r := &run{
		key: k, began: now, tries: maxTries, refresh: m.valid(k, now) != nil,
		budget: b, class: c, waiters: make(map[waiter]struct{}),
	}
	if r.refresh || m.failing(k, now) != nil {
		r.tries = 1 // the next exchange is the retry
	}
	m.running[k] = r
	m.take(b)
	return r
}

const (
	// staleMargin is the remaining lifetime below which a token is returned only if a new
	// one cannot be had. SDKs fetch a new token when 5 minutes or less remain, so with an
	// older token they would ask again on every call.
	staleMargin = 5 * time.Minute

	// staleShare limits the margin to a quarter of a short lifetime.
	staleShare = 4

	// minRefresh is the least time after which a token is refreshed because Entra asks
	// for it. A refresh_in of a second is a mistake of Entra's; a fleet that obeyed it
	// would make one exchange a second for each token.
	minRefresh = 5 * time.Minute

	// freshInterval is the least time between exchanges of one key that callers force
	// with [Request.Fresh], or that the schedule starts: if Entra grants tokens of one
	// second, it must not be asked each second.
	freshInterval = 30 * time.Second
)

// moment is a point in the lifetime of a token, on the wall clock and on the monotonic clock.
// Both are needed: the wall clock may be set back, which extends no token's lifetime, and the
// monotonic clock stops while a machine sleeps.
type moment struct{ wall, monotonic time.Time }

func momentAfter(now time.Time, d time.Duration) moment {
	at := now.Add(d)
	return moment{wall: at.Round(0), monotonic: at}
}

// reached reports whether the moment has come by either clock.
func (m moment) reached(now time.Time) bool {
	return !now.Before(m.wall) || !now.Before(m.monotonic)
}

// next returns when m will be reached if neither clock is set.
func (m moment) next(now time.Time) time.Time {
	return now.Add(min(m.wall.Sub(now), m.monotonic.Sub(now)))
}

// entry is a token in the cache.
type entry struct {
	token exchange.Token

	// forceable is when callers may force the next exchange, or the schedule start it.
	forceable moment

	// due is when to refresh the token in the background.
	due moment

	// stale is when the token is returned only if a new one cannot be had. It is never
	// before due.
	stale moment

	// end is when the token is no longer returned, [exchange.MinLife] before it expires.
	end moment

	// used says that a caller asked for the token since it was last refreshed, or caused
	// the exchange.
	used bool
}

// clockNoise is how far the two clocks drift apart without being set. Below it, ExpiresOn
// of the same token does not change.
const clockNoise = time.Second

// tokenAt returns the token for a caller. If the wall clock was set back, ExpiresOn is the
// time that this clock will show when the token expires: callers compute the remaining
// lifetime with the same clock, and it must not be longer than Entra granted.
func (e *entry) tokenAt(now time.Time) exchange.Token {
	token := e.token
	if end := e.end.next(now).Add(exchange.MinLife).Round(0); token.ExpiresOn.Sub(end) > clockNoise {
		token.ExpiresOn = end
	}
	return token
}

// newEntry schedules the refresh of a token obtained now. jitter is in [0, 1).
func newEntry(g exchange.Grant, now time.Time, used bool, jitter float64) *entry {
	life := g.Token.ExpiresOn.Sub(now)
	fresh := min(life-min(staleMargin, life/staleShare), life-exchange.MinLife)
	delay := refreshDelay(g.RefreshOn.Sub(now), life, fresh, jitter)
	return &entry{
		token:     g.Token,
		forceable: momentAfter(now, freshInterval),
		due:       momentAfter(now, delay),
		stale:     momentAfter(now, fresh),
		end:       momentAfter(now, life-exchange.MinLife),
		used:      used,
	}
}

// refreshDelay returns how long after it was obtained a token is refreshed: what Entra asks
// for, or else half of its lifetime, with a jitter of a third more or less. With this jitter,
// the refreshes of a fleet that started in one second are spread evenly after one lifetime; in
// the first lifetime their peak is 3/2 of the mean (they spread over 2/3 of the period).
func refreshDelay(asked, life, fresh time.Duration, jitter float64) time.Duration {
	if asked <= 0 || asked >= life {
		asked = life / 2
	}
	asked = max(asked, min(minRefresh, life/2))
	asked = min(asked, fresh*3/4) // so that a third more is still before stale
	return asked*2/3 + time.Duration(float64(asked)*2/3*jitter)
}
