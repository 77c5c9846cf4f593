package tokens

import (
	"strings"
	"time"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/exchange"
)

// patience is how long a caller waits for a better token when there is a valid one to
// fall back on. It counts from the start of the exchange.
const patience = 2 * time.Second

// decision says what to do with a request.
type decision struct {
	action action

	// run is the exchange to wait for or, if the caller does not wait, one that runs in
	// the background. Nil: none.
	run *run

	// start says that run is new: its goroutine has to be started.
	start bool

	// waiter is the caller among those that wait for run.
	waiter waiter

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
	due := h.due.come(now)
	if fresh && !h.forcible.come(now) || !fresh && !due {
		return d
	}
	worthWaiting := (fresh || h.stale.come(now)) && !m.troubled(k, now)
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
		d.backup = !h.end.come(d.run.began.Add(patience))
	}
	return d
}

// decideWithout is decide for a key without a valid token.
func (m *memory) decideWithout(k key, now time.Time) decision {
	b := m.budgetOf(k.clientID)
	if _, standing := m.prefetch[k]; standing {
		b = m.refreshes
	}
	d := decision{action: wait}
	if d.run, d.start, d.err = m.join(k, b, now); d.err != nil {
		d.action = refuse
		return d
	}
	if d.waiter = m.enter(d.run); d.waiter == nil {
		d.action, d.err = refuse, overloaded() // the run goes on: the next request finds its token
	}
	return d
}

// join returns the run for k on behalf of a caller: the one under way, or a new one if
// Entra may be asked now, which draws on b.
func (m *memory) join(k key, b *budget, now time.Time) (r *run, start bool, err *exchange.Error) {
	if r = m.running[k]; r == nil {
		if resting := m.resting(k, now); resting != nil {
			return nil, false, resting.at(now)
		}
		c := m.classOf(k, now)
		if err := m.admit(b, c, now); err != nil {
			m.noteRefused(k, now)
			return nil, false, err
		}
		r, start = m.begin(k, b, c, now), true
	}
	r.asked = true
	return r, start, nil
}

// begin notes a run for k. The caller starts it.
func (m *memory) begin(k key, b *budget, c class, now time.Time) *run {
	// The caller's strings may be part of a much longer request in memory.
	k = key{azure.ClientID(strings.Clone(string(k.clientID))), azure.Resource(strings.Clone(string(k.resource)))}
	r := &run{
		key: k, began: now, tries: maxTries, refresh: m.valid(k, now) != nil,
		budget: b, class: c, waiters: make(map[waiter]struct{}),
	}
	if r.refresh || m.failing(k, now) != nil {
		r.tries = 1 // the next exchange is the next try
	}
	m.running[k] = r
	m.take(b)
	return r
}

// mayRetry reports whether a run that failed may try again: Entra has not throttled it
// since it began, and its budget allows another try.
func (m *memory) mayRetry(r *run, now time.Time) bool {
	return m.throttling(r.key, now) == nil && r.budget.spend(r.class, now)
}

const (
	// staleMargin is the remaining life below which a token is no longer returned if a
	// fresh one can be had. SDKs fetch a new token at 5 minutes and less, so they would
	// ask for one with less again on every call.
	staleMargin = 5 * time.Minute

	// staleShare limits the margin to a quarter of a short life.
	staleShare = 4

	// minRefresh is the least time after which a token is replaced because Entra
	// asks for it. A refresh_in of a second, once, is a mistake; for a fleet it
	// would be an exchange a second for each token.
	minRefresh = 5 * time.Minute

	// freshInterval is the least time between exchanges of one key that callers force
	// with [Request.Fresh], or that the schedule starts: if Entra grants a second of
	// life, it must not be asked each second.
	freshInterval = 30 * time.Second
)

// moment is a point in the life of a token. It has come when either clock says so: the
// wall clock may be set back, which makes no token live longer, and the monotonic clock
// stands still while a machine sleeps.
type moment struct{ wall, monotonic time.Time }

func momentAfter(now time.Time, d time.Duration) moment {
	at := now.Add(d)
	return moment{wall: at.Round(0), monotonic: at}
}

func (m moment) come(now time.Time) bool {
	return !now.Before(m.wall) || !now.Before(m.monotonic)
}

// next is when m comes, as far as is known now.
func (m moment) next(now time.Time) time.Time {
	return now.Add(min(m.wall.Sub(now), m.monotonic.Sub(now)))
}

// holding is a token in the cache.
type holding struct {
	token exchange.Token

	// forcible is when callers may force the next exchange, or the schedule start it.
	forcible moment

	// due is when to replace the token in the background.
	due moment

	// stale is when the token is no longer returned if a fresh one can be had. It is
	// never before due.
	stale moment

	// end is when the token is of no more use, [exchange.MinLife] before it ends.
	end moment

	// used says that a caller asked since the token was last replaced. The request that
	// caused the exchange counts.
	used bool
}

// clockNoise is how far the two clocks drift apart without being set. Below it, ExpiresOn
// of the same token does not change.
const clockNoise = time.Second

// tokenAt returns the token for a caller. If the wall clock was set back, ExpiresOn is
// what that clock will show at the token's end: callers have the same clock, compute the
// remaining life with it, and must not get more than Entra said.
func (h *holding) tokenAt(now time.Time) exchange.Token {
	token := h.token
	if end := h.end.next(now).Add(exchange.MinLife).Round(0); token.ExpiresOn.Sub(end) > clockNoise {
		token.ExpiresOn = end
	}
	return token
}

// newHolding plans the life of a token obtained now. chance is in [0, 1).
func newHolding(g exchange.Grant, now time.Time, used bool, chance float64) *holding {
	life := g.Token.ExpiresOn.Sub(now)
	fresh := min(life-min(staleMargin, life/staleShare), life-exchange.MinLife)
	delay := refreshDelay(g.RefreshOn.Sub(now), life, fresh, chance)
	return &holding{
		token:    g.Token,
		forcible: momentAfter(now, freshInterval),
		due:      momentAfter(now, delay),
		stale:    momentAfter(now, fresh),
		end:      momentAfter(now, life-exchange.MinLife),
		used:     used,
	}
}

// refreshDelay is how long after it was obtained a token is replaced: a third more or
// less than what Entra asks for, or than half of its life. With this jitter, the
// refreshes of a fleet that started in one second are even after one life of a token: in
// the first life their peak is 3/2 of the mean (a window of 2/3 of the period).
func refreshDelay(asked, life, fresh time.Duration, chance float64) time.Duration {
	if asked <= 0 || asked >= life {
		asked = life / 2
	}
	asked = max(asked, min(minRefresh, life/2))
	asked = min(asked, fresh*3/4) // so that a third more is still before stale
	return asked*2/3 + time.Duration(float64(asked)*2/3*chance)
}
