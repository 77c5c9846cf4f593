package tokens

import (
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/exchange"
)

// failureLife is how long after its backoff a failure still counts as the one before the
// next. After that it says nothing about the present.
const failureLife = 10 * time.Minute

// backoff is how long a failure is remembered: first, doubled for each further
// one in a row, up to most.
type backoff struct{ first, most time.Duration }

// While callers wait for a token, the backoff is short: it only has to protect Entra
// from a crowd that retries.
var (
	// Faults pass in seconds. MSAL for Go, and for Java until 1.8.3, tries three
	// times within some seconds, whatever it is told, and then gives up.
	faultBackoff = backoff{first: 500 * time.Millisecond, most: 30 * time.Second}
	// A throttle without a Retry-After.
	throttleBackoff = backoff{first: 5 * time.Second, most: time.Minute}
	// Permanent failures end when a person acts, who then waits this long.
	permanentBackoff = backoff{first: 10 * time.Second, most: 2 * time.Minute}
	// With a valid token nobody waits, and the backoff can be longer.
	refreshBackoff = backoff{first: 15 * time.Second, most: 5 * time.Minute}
)

// localBackoff is for a federated token that cannot be read while callers wait. No packet
// leaves the pod for it, and the file may be there in a moment.
const localBackoff = time.Second

// tenantThrottled is the AADSTS code with which Entra throttles the whole tenant, for all
// client IDs.
const tenantThrottled = 90055

// failure is what is remembered of the failures in a row of a key, or of the throttles in
// a row of a client ID.
type failure struct {
	err    *exchange.Error
	streak int

	// until is when the next exchange may begin.
	until time.Time

	// reported is when it was last logged at warning level. Zero: never.
	reported time.Time
}

// failing returns the failures in a row of k, nil for none.
func (m *memory) failing(k key, now time.Time) *failure { return remembered(m.failures, k, now) }

// throttle returns the throttle of a client ID or, for wholeTenant, of all of them; nil
// for none.
func (m *memory) throttle(clientID azure.ClientID, now time.Time) *failure {
	return remembered(m.throttlesWith(clientID), clientID, now)
}

// throttlesWith returns the memory that a throttle of the client ID, or of the tenant, is in.
func (m *memory) throttlesWith(clientID azure.ClientID) *simplelru.LRU[azure.ClientID, *failure] {
	if clientID == wholeTenant || m.budgets[clientID] != nil {
		return m.throttles
	}
	return m.otherThrottles
}

// wholeTenant stands for all client IDs in the memory of throttles.
const wholeTenant = ""

func remembered[K comparable](memory *simplelru.LRU[K, *failure], k K, now time.Time) *failure {
	f, _ := memory.Get(k)
	if f == nil || now.Sub(f.until) >= failureLife {
		return nil
	}
	return f
}

// resting returns the failure because of which k must not be exchanged now: its own, or
// else a throttle of its client ID or of the tenant. Nil: there is none.
func (m *memory) resting(k key, now time.Time) *failure {
	if f := m.failing(k, now); f != nil && now.Before(f.until) {
		return f
	}
	return m.throttling(k, now)
}

// throttling returns the throttle because of which k must not be exchanged now, nil for
// none.
func (m *memory) throttling(k key, now time.Time) *failure {
	for _, clientID := range [...]azure.ClientID{k.clientID, wholeTenant} {
		if f := m.throttle(clientID, now); f != nil && now.Before(f.until) {
			return f
		}
	}
	return nil
}

// troubled reports whether the last exchange of k failed, or k must not be exchanged now.
func (m *memory) troubled(k key, now time.Time) bool {
	return m.failing(k, now) != nil || m.throttling(k, now) != nil
}

// restsUntil is when k may be exchanged again. A time in the past: now.
func (m *memory) restsUntil(k key, now time.Time) time.Time {
	var until time.Time
	for _, f := range [...]*failure{m.failing(k, now), m.throttle(k.clientID, now), m.throttle(wholeTenant, now)} {
		if f != nil {
			until = later(until, f.until)
		}
	}
	return until
}

// throttled remembers, for all keys of the client ID, that Entra throttles it, and returns
// until when: Entra throttles by client ID, not by resource. The answers to a burst of
// exchanges count as one throttle: the streak grows only after a backoff did not help.
func (m *memory) throttled(k key, err *exchange.Error, now time.Time, chance float64) time.Time {
	clientID := k.clientID
	if err.Code == tenantThrottled {
		clientID = wholeTenant
	}
	next := &failure{err: err, streak: 1}
	if past := m.throttle(clientID, now); past != nil {
		next.streak, next.until = past.streak, past.until
		if !now.Before(past.until) {
			next.streak++
		}
	}
	next.until = later(next.until, now.Add(rest(err, next.streak, false, chance)))
	m.throttlesWith(clientID).Add(clientID, next)
	return next.until
}

// unthrottled forgets that the client ID of k was throttled, if the time of that is over:
// an answer before then may be to an earlier request.
func (m *memory) unthrottled(k key, now time.Time) {
	for _, clientID := range [...]azure.ClientID{k.clientID, wholeTenant} {
		if f := m.throttle(clientID, now); f != nil && !now.Before(f.until) {
			m.throttlesWith(clientID).Remove(clientID)
		}
	}
}

// at returns the error for a caller that finds the failure remembered.
func (f *failure) at(now time.Time) *exchange.Error {
	if f.err.Kind.Permanent() {
		return f.err
	}
	e := *f.err
	e.RetryAfter = max(f.until.Sub(now), 0)
	return &e
}

// rest is how long to ask Entra nothing after a failure. chance is in [0, 1).
func rest(err *exchange.Error, streak int, haveToken bool, chance float64) time.Duration {
	if err.RetryAfter > 0 {
		return restAsAsked(err.RetryAfter, streak, chance)
	}
	b := faultBackoff
	switch {
	case err.Kind == exchange.FederatedTokenUnusable && err.Code == 0 && !haveToken:
		return localBackoff
	case err.Kind.Permanent():
		b = permanentBackoff
	case haveToken:
		b = refreshBackoff
	case err.Kind == exchange.Throttled:
		b = throttleBackoff
	}
	wait := b.after(streak)
	return wait/2 + time.Duration(float64(wait)*chance)
}

// restAsAsked is what Entra asks for, and jitter of up to half as long again: a fleet that
// gets "10 seconds" must not come back all at once. The jitter doubles for each throttle in
// a row. It is small at first, because SDKs that wait as long as Entra said have few tries.
func restAsAsked(asked time.Duration, streak int, chance float64) time.Duration {
	window := backoff{first: asked / 2, most: max(asked/2, throttleBackoff.most)}
	return asked + time.Duration(float64(window.after(streak))*chance)
}

func (b backoff) after(streak int) time.Duration {
	wait := b.first
	for range streak - 1 {
		if wait *= 2; wait >= b.most {
			return b.most
		}
	}
	return wait
}
