package tokens

import (
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/exchange"
)

// failureLife is how long after its backoff a failure is remembered. A failure within this time
// continues the streak; a later one starts a new streak.
const failureLife = 10 * time.Minute

// backoff is an exponential backoff: first after the first failure, doubled for each further
// one in a row, up to most.
type backoff struct{ first, most time.Duration }

// While callers wait for a token, the backoff is short: it only has to protect Entra from many
// callers that retry.
var (
	// Faults pass in seconds. MSAL for Go, and MSAL for Java until 1.8.3, retry three
	// times within some seconds, whatever Retry-After says, and then give up.
	faultBackoff = backoff{first: 500 * time.Millisecond, most: 30 * time.Second}
	// throttleBackoff is for a 429 without a Retry-After.
	throttleBackoff = backoff{first: 5 * time.Second, most: time.Minute}
	// Permanent failures end when a person fixes the configuration. Requests fail for
	// this long after the fix.
	permanentBackoff = backoff{first: 10 * time.Second, most: 2 * time.Minute}
	// With a valid token no caller waits, and the backoff can be longer.
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
	err    *exchange.Error // the last one
	streak int

	// until is when the next exchange may begin.
	until time.Time

	// reported is when it was last logged at warning level. Zero: never.
	reported time.Time
}

// failing returns the failures in a row of k, nil for none.
func (m *memory) failing(k key, now time.Time) *failure { return recent(m.failures, k, now) }

// throttle returns the throttle of a client ID or, for wholeTenant, of the tenant; nil for
// none. It may be over.
func (m *memory) throttle(clientID azure.ClientID, now time.Time) *failure {
	return recent(m.throttlesWith(clientID), clientID, now)
}

// throttlesWith returns the LRU map that holds the throttle of the client ID, or of the tenant.
func (m *memory) throttlesWith(clientID azure.ClientID) *simplelru.LRU[azure.ClientID, *failure] {
	if clientID == wholeTenant || m.budgets[clientID] != nil {
		return m.throttles
	}
	return m.otherThrottles
}

// wholeTenant stands for all client IDs in the throttles.
const wholeTenant = ""

// recent returns the failure of k, nil if its backoff ended failureLife ago.
func recent[K comparable](failures *simplelru.LRU[K, *failure], k K, now time.Time) *failure {
	f, _ := failures.Get(k)
	if f == nil || now.Sub(f.until) >= failureLife {
		return nil
	}
	return f
}

// backedOff returns the failure that forbids an exchange for k now: the failure of k, or
// else a throttle of its client ID or of the tenant. Nil: there is none.
func (m *memory) backedOff(k key, now time.Time) *failure {
	if f := m.failing(k, now); f != nil && now.Before(f.until) {
		return f
	}
	return m.throttling(k, now)
}

// throttling returns the throttle that forbids an exchange for k now, nil for
// none.
func (m *memory) throttling(k key, now time.Time) *failure {
	for _, clientID := range [...]azure.ClientID{k.clientID, wholeTenant} {
		if f := m.throttle(clientID, now); f != nil && now.Before(f.until) {
			return f
		}
	}
	return nil
}

// failingOrThrottled reports whether the last exchange of k failed, or k must not be exchanged
// now because of a throttle.
func (m *memory) failingOrThrottled(k key, now time.Time) bool {
	return m.failing(k, now) != nil || m.throttling(k, now) != nil
}

// backoffUntil returns when k may be exchanged again. A time in the past means now.
func (m *memory) backoffUntil(k key, now time.Time) time.Time {
	var until time.Time
	for _, f := range [...]*failure{m.failing(k, now), m.throttle(k.clientID, now), m.throttle(wholeTenant, now)} {
		if f != nil {
			until = later(until, f.until)
		}
	}
	return until
}

// noteThrottle remembers, for all keys of the client ID, that Entra throttles it: Entra throttles
// by client ID, not by resource. The answers to a burst of exchanges count as one throttle: the
// streak grows only if Entra throttles again after the backoff.
func (m *memory) noteThrottle(k key, err *exchange.Error, now time.Time, jitter float64) {
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
	next.until = later(next.until, now.Add(backoffAfter(err, next.streak, false, jitter)))
	m.throttlesWith(clientID).Add(clientID, next)
}

// forgetThrottle removes the throttle of the client ID of k, and of the tenant, if its backoff
// is over. A success before then may answer a request from before the throttle.
func (m *memory) forgetThrottle(k key, now time.Time) {
	for _, clientID := range [...]azure.ClientID{k.clientID, wholeTenant} {
		if f := m.throttle(clientID, now); f != nil && !now.Before(f.until) {
			m.throttlesWith(clientID).Remove(clientID)
		}
	}
}

// at returns the error for a caller that is refused because of the failure.
func (f *failure) at(now time.Time) *exchange.Error {
	if f.err.Kind.Permanent() {
		return f.err
	}
	e := *f.err
	e.RetryAfter = max(f.until.Sub(now), 0)
	return &e
}

// backoffAfter returns how long no exchange may begin after a failure. jitter is in [0, 1).
func backoffAfter(err *exchange.Error, streak int, haveToken bool, jitter float64) time.Duration {
	if err.RetryAfter > 0 {
		return retryAfterWithJitter(err.RetryAfter, streak, jitter)
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
	return wait/2 + time.Duration(float64(wait)*jitter)
}

// retryAfterWithJitter returns what Entra asks for plus a jitter of up to half as long: a
// fleet that gets a Retry-After of 10 seconds must not retry at the same time. The jitter
// doubles for each throttle in a row. It is small at first, because SDKs that wait as long as
// Retry-After says retry only a few times.
func retryAfterWithJitter(asked time.Duration, streak int, jitter float64) time.Duration {
	window := backoff{first: asked / 2, most: max(asked/2, throttleBackoff.most)}
	return asked + time.Duration(float64(window.after(streak))*jitter)
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
