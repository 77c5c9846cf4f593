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

	// run is the exchange to wait for or, if the caller does not wait, the exchange in the
	// background. It is nil if no exchange runs.
	run *run

	// start says that run is new, and that its goroutine has to be started.
	start bool

	// waiter represents the caller in run.waiters. It is nil unless action is wait.
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

// decide decides what to do with a request for k. If fresh is true, the caller wants a token
// that is not cached ([Request.Fresh]).
func (m *memory) decide(k key, fresh bool, now time.Time) decision {
	e, _ := m.cache.Get(k)
	if e == nil || e.end.reached(now) {
		d := m.decideWithout(k, now)
		if d.run != nil {
			d.run.asked = true
		}
		return d
	}
	e.used = true
	d := decision{action: serve, token: e.tokenAt(now)}
	due := e.due.reached(now)
	// A fresh request may start an exchange from forceable on, any other from due on.
	if fresh && !e.forceable.reached(now) || !fresh && !due {
		return d
	}
	worthWaiting := (fresh || e.stale.reached(now)) && !m.failingOrThrottled(k, now)
	b := m.refreshes
	if !due {
		b = m.budgetOf(k.clientID) // forced by the caller, so rate-limited
	}
	// The cached token is returned if no exchange may begin now or too many callers wait.
	var err *exchange.Error
	if d.run, d.start, err = m.join(k, b, now); err != nil {
		return d
	}
	d.run.asked = true
	if !worthWaiting {
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
	d := decision{action: wait}
	if d.run, d.start, d.err = m.join(k, m.budgetWithout(k), now); d.err != nil {
		d.action = refuse
		return d
	}
	if d.waiter = m.enter(d.run); d.waiter == nil {
		d.action, d.err = refuse, overloaded() // the run continues: the next request finds its token
	}
	return d
}

// budgetWithout returns the budget of an exchange for a key without a valid token.
func (m *memory) budgetWithout(k key) *budget {
	if _, prefetched := m.prefetch[k]; prefetched {
		return m.refreshes
	}
	return m.budgetOf(k.clientID)
}

// join returns a run for k: the running one, or a new one if an exchange may begin now or
// after a throttle of a few seconds. start is true for a new run, whose tries count against
// b. If no exchange may begin, join returns the error for the caller.
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
		r.tries = 1 // the retry is a later exchange, after the backoff
	}
	m.running[k] = r
	m.take(b)
	return r
}

const (
	// staleMargin is the remaining lifetime below which a token is stale: it is returned
	// only if no new token can be obtained. SDKs request a new token when 5 minutes or less
	// remain, so with a stale token they would request a token on every call.
	staleMargin = 5 * time.Minute

	// staleShare limits the margin to a quarter of the lifetime, for tokens with a short
	// lifetime.
	staleShare = 4

	// minRefresh is the minimum of refresh_in, the time after which Entra asks to refresh a
	// token. A value of one second is a mistake of Entra; a fleet that obeyed it would make
	// one exchange a second for each token.
	minRefresh = 5 * time.Minute

	// freshInterval is the minimum time between exchanges of one key that callers force with
	// [Request.Fresh], or that the schedule starts. Without it, tokens that are valid for one
	// second would cause an exchange each second.
	freshInterval = 30 * time.Second
)

// moment is a point in the lifetime of a token, on the wall clock and on the monotonic clock.
// Both are needed: somebody may set back the wall clock, which must not extend the lifetime of
// a token, and the monotonic clock stops while a machine sleeps.
type moment struct{ wall, monotonic time.Time }

func momentAfter(now time.Time, d time.Duration) moment {
	at := now.Add(d)
	return moment{wall: at.Round(0), monotonic: at}
}

// reached reports whether the moment has come by either clock.
func (m moment) reached(now time.Time) bool {
	return !now.Before(m.wall) || !now.Before(m.monotonic)
}

// next returns when m will be reached if nobody changes the wall clock.
func (m moment) next(now time.Time) time.Time {
	return now.Add(min(m.wall.Sub(now), m.monotonic.Sub(now)))
}

// entry is a token in the cache.
type entry struct {
	token exchange.Token

	// forceable is when callers may force the next exchange ([Request.Fresh]), and when the
	// schedule may start it.
	forceable moment

	// due is when to refresh the token in the background.
	due moment

	// stale is when the token becomes stale: from then on it is returned only if no new
	// token can be obtained. stale is never before due.
	stale moment

	// end is when the token is no longer returned, [exchange.MinLife] before it expires.
	end moment

	// used says that a caller has requested the token: since its last refresh, or while the
	// exchange ran. Unused tokens are not refreshed, except prefetched ones.
	used bool
}

// clockNoise is the largest difference between the two clocks that counts as drift. Up to it,
// tokenAt returns the same ExpiresOn each time.
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

// endOf returns when a token obtained now is no longer returned.
func endOf(token exchange.Token, now time.Time) moment {
	return momentAfter(now, token.ExpiresOn.Sub(now)-exchange.MinLife)
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
		end:       endOf(g.Token, now),
		used:      used,
	}
}

// refreshDelay returns the time from obtaining a token to refreshing it: what Entra asks for,
// or else half of the lifetime, with a jitter of a third more or less. With this jitter, the
// refreshes of a fleet that started in the same second are spread evenly after one lifetime. In
// the first lifetime their peak is 3/2 of the mean, because they are spread over 2/3 of the
// delay.
func refreshDelay(asked, life, fresh time.Duration, jitter float64) time.Duration {
	if asked <= 0 || asked >= life {
		asked = life / 2
	}
	asked = max(asked, min(minRefresh, life/2))
	asked = min(asked, fresh*3/4) // so that a third more is still before stale
	return asked*2/3 + time.Duration(float64(asked)*2/3*jitter)
}
