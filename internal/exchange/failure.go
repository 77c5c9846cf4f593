package exchange

import "time"

// maxFailures bounds the keys whose failures are remembered. They have a memory
// of their own, so that asking for nonsense evicts no token.
const maxFailures = 256

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
func (s *Service) failing(k key, now time.Time) *failure {
	f, _ := s.failures.Get(k)
	if f == nil || now.Sub(f.until) >= failureLife {
		return nil
	}
	return f
}

// wholeClient stands for all keys of k's client ID in the memory of failures: no
// key has an empty resource.
func (k key) wholeClient() key { return key{clientID: k.clientID} }

// wholeTenant stands for all keys there.
var wholeTenant key

// resting returns the failure for which k is not to be asked for now: its own, else
// that Entra throttles its client ID, or the tenant. Nil: there is none. Service.mu
// is held.
func (s *Service) resting(k key, now time.Time) *failure {
	for _, k := range [...]key{k, k.wholeClient(), wholeTenant} {
		if f := s.failing(k, now); f != nil && now.Before(f.until) {
			return f
		}
	}
	return nil
}

// restsUntil is when k may be asked for; the past if now. Service.mu is held.
func (s *Service) restsUntil(k key, now time.Time) time.Time {
	var until time.Time
	for _, k := range [...]key{k, k.wholeClient(), wholeTenant} {
		if f := s.failing(k, now); f != nil {
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
	k = k.wholeClient()
	if err.Code == tenantThrottled {
		k = wholeTenant
	}
	next := &failure{err: err, streak: 1}
	if past := s.failing(k, now); past != nil {
		next.streak, next.until = past.streak, past.until
		if !now.Before(past.until) {
			next.streak++
		}
	}
	next.until = later(next.until, now.Add(rest(err, next.streak, false, spread)))
	s.failures.Add(k, next)
	return next.until
}

// unthrottled forgets that the client ID of k was throttled, once its time is over:
// an answer before that may be to a request from before. Service.mu is held.
func (s *Service) unthrottled(k key, now time.Time) {
	for _, k := range [...]key{k.wholeClient(), wholeTenant} {
		if f := s.failing(k, now); f != nil && !now.Before(f.until) {
			s.failures.Remove(k)
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
