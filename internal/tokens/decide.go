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
	var b *budget // nil: a refresh
	if !due {
		b = m.budgetOf(k.clientID)
	}
	var err *exchange.Error
	if d.run, d.start, err = m.join(k, b, unknown, now); err != nil || !worthWaiting {
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
	var b *budget
	c := m.classOf(k, now)
	if _, standing := m.prefetch[k]; !standing {
		b = m.budgetOf(k.clientID)
	}
	d := decision{action: wait}
	if d.run, d.start, d.err = m.join(k, b, c, now); d.err != nil {
		d.action = refuse
		return d
	}
	if d.waiter = m.enter(d.run); d.waiter == nil {
		d.action, d.err = refuse, overloaded() // the run goes on: the next request finds its token
	}
	return d
}

// join returns the run for k on behalf of a caller: the one under way, or a new one if
// Entra may be asked now. b is the budget that a new run draws on, nil for none.
func (m *memory) join(k key, b *budget, c class, now time.Time) (r *run, start bool, err *exchange.Error) {
	if r = m.running[k]; r == nil {
		if resting := m.resting(k, now); resting != nil {
			return nil, false, resting.at(now)
		}
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
	if b != nil {
		b.running++
		m.budgeted++
	}
	return r
}

// mayRetry reports whether a run that failed may try again: Entra has not throttled it
// since it began, and its budget allows another try.
func (m *memory) mayRetry(r *run, now time.Time) bool {
	return m.throttling(r.key, now) == nil && (r.budget == nil || r.budget.spend(r.class, now))
}
