package exchange

import (
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// maxThrottles bounds the client IDs of which is remembered that Entra throttles them.
// They have a memory of their own, as failures have: asking for nonsense evicts no
// token, and makes no throttle forgotten.
const maxThrottles = 64

// failureLife is how long after its rest a failure still counts as the one before
// the next. Later, what happened then says nothing about now.
const failureLife = 10 * time.Minute

// backoff is how long a failure is remembered: first, doubled for each further
// one in a row, up to most.
type backoff struct{ first, most time.Duration }

// Where a caller waits for a token, the memory is short: it only has to spare
// Entra a crowd that retries.
var (
	// Faults pass in seconds. MSAL for Go, and for Java until 1.8.3, tries three
	// times within some seconds, whatever it is told, and then gives up.
	faultBackoff = backoff{first: 500 * time.Millisecond, most: 30 * time.Second}
	// Throttling without a Retry-After asks for more patience.
	throttleBackoff = backoff{first: 5 * time.Second, most: time.Minute}
	// Permanent failures mend when a person acts, who then waits this long.
	permanentBackoff = backoff{first: 10 * time.Second, most: 2 * time.Minute}
	// With a valid token in hand nobody waits, and Entra is spared more.
	refreshBackoff = backoff{first: 15 * time.Second, most: 5 * time.Minute}
)

// localRest is how long a federated token that cannot be read is not read again, where
// a caller waits. No packet leaves the pod for it, and it may be there in a moment.
const localRest = time.Second

// tenantThrottled is the AADSTS code of an Entra that throttles the whole tenant,
// whoever asks.
const tenantThrottled = 90055

// failure is what is remembered of a key's failures in a row. Service.mu guards
// it.
type failure struct {
	err    *Error
	streak int

	// until is when the next exchange may begin.
	until time.Time

	// reported is when it was last logged at warning level. Zero: never.
	reported time.Time
}

// failing returns the failures in a row of k, nil for none. Service.mu is held.
func (s *Service) failing(k key, now time.Time) *failure { return remembered(s.failures, k, now) }

// throttle returns the throttle that holds for a client ID or, for wholeTenant, for
// all of them; nil for none. Service.mu is held.
func (s *Service) throttle(clientID string, now time.Time) *failure {
	return remembered(s.throttles, clientID, now)
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

// resting returns the failure for which k is not to be asked for now: its own, else
// that Entra throttles its client ID, or the tenant. Nil: there is none. Service.mu
// is held.
func (s *Service) resting(k key, now time.Time) *failure {
	if f := s.failing(k, now); f != nil && now.Before(f.until) {
		return f
	}
	return s.throttling(k, now)
}

// throttling returns the throttle for which k is not to be asked for now, nil for
// none. Service.mu is held.
func (s *Service) throttling(k key, now time.Time) *failure {
	for _, clientID := range [...]string{k.clientID, wholeTenant} {
		if f := s.throttle(clientID, now); f != nil && now.Before(f.until) {
			return f
		}
	}
	return nil
}

// troubled reports whether Entra was in trouble when last asked for k, or is not to be
// asked for it. Service.mu is held.
func (s *Service) troubled(k key, now time.Time) bool {
	return s.failing(k, now) != nil || s.throttling(k, now) != nil
}

// restsUntil is when k may be asked for; the past if now. Service.mu is held.
func (s *Service) restsUntil(k key, now time.Time) time.Time {
	var until time.Time
	for _, f := range [...]*failure{s.failing(k, now), s.throttle(k.clientID, now), s.throttle(wholeTenant, now)} {
		if f != nil {
			until = later(until, f.until)
		}
	}
	return until
}

// throttled remembers for all keys of the client ID that Entra throttles it, which
// it does by client ID, not by resource; and returns until when. The answers to a
// burst of exchanges count as one: the streak grows where quiet did not help.
// Service.mu is held.
func (s *Service) throttled(k key, err *Error, now time.Time, spread float64) time.Time {
	clientID := k.clientID
	if err.Code == tenantThrottled {
		clientID = wholeTenant
	}
	next := &failure{err: err, streak: 1}
	if past := s.throttle(clientID, now); past != nil {
		next.streak, next.until = past.streak, past.until
		if !now.Before(past.until) {
			next.streak++
		}
	}
	next.until = later(next.until, now.Add(rest(err, next.streak, false, spread)))
	s.throttles.Add(clientID, next)
	return next.until
}

// unthrottled forgets that the client ID of k was throttled, once its time is over:
// an answer before that may be to a request from before. Service.mu is held.
func (s *Service) unthrottled(k key, now time.Time) {
	for _, clientID := range [...]string{k.clientID, wholeTenant} {
		if f := s.throttle(clientID, now); f != nil && !now.Before(f.until) {
			s.throttles.Remove(clientID)
		}
	}
}

// at returns the error for a caller who finds the failure remembered.
func (f *failure) at(now time.Time) *Error {
	if f.err.Kind.Permanent() {
		return f.err
	}
	return f.err.after(f.until.Sub(now))
}

// rest is how long to leave Entra alone after a failure. spread is in [0, 1).
func rest(err *Error, streak int, haveToken bool, spread float64) time.Duration {
	if err.RetryAfter > 0 {
		return restAsAsked(err.RetryAfter, streak, spread)
	}
	b := faultBackoff
	switch {
	case err.Kind == FederatedTokenUnusable && err.Code == 0 && !haveToken:
		return localRest
	case err.Kind.Permanent():
		b = permanentBackoff
	case haveToken:
		b = refreshBackoff
	case err.Kind == Throttled:
		b = throttleBackoff
	}
	wait := b.after(streak)
	return wait/2 + time.Duration(float64(wait)*spread)
}

// restAsAsked takes what Entra asks for as the least: a fleet that is told "10
// seconds" comes back over half as long again, not all at once, and over twice that
// each time that it is told so in a row. It is not much more at first: SDKs that wait
// for as long as Entra said have few tries.
func restAsAsked(asked time.Duration, streak int, spread float64) time.Duration {
	window := backoff{first: asked / 2, most: max(asked/2, throttleBackoff.most)}
	return asked + time.Duration(float64(window.after(streak))*spread)
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
