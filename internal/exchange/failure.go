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
	// Faults pass in seconds.
	faultBackoff = backoff{first: time.Second, most: 30 * time.Second}
	// Throttling without a Retry-After asks for more patience.
	throttleBackoff = backoff{first: 5 * time.Second, most: time.Minute}
	// Permanent failures mend when a person acts, who then waits this long.
	permanentBackoff = backoff{first: 10 * time.Second, most: 2 * time.Minute}
	// With a valid token in hand nobody waits, and Entra is spared more.
	refreshBackoff = backoff{first: 15 * time.Second, most: 5 * time.Minute}
)

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

// at returns the error for a caller who finds the failure remembered.
func (f *failure) at(now time.Time) *Error {
	if f.err.Kind.Permanent() {
		return f.err
	}
	return f.err.after(f.until.Sub(now))
}

// rest is how long to leave Entra alone after a failure. spread is in [0, 1).
// What Entra asks for is a minimum: a fleet that is told "10 seconds" comes back
// over 10 seconds, not all at once.
func rest(err *Error, streak int, haveToken bool, spread float64) time.Duration {
	b := faultBackoff
	switch {
	case err.Kind.Permanent():
		b = permanentBackoff
	case haveToken:
		b = refreshBackoff
	case err.Kind == Throttled:
		b = throttleBackoff
	}
	wait := b.after(streak)
	if err.RetryAfter > 0 {
		return err.RetryAfter + time.Duration(float64(max(err.RetryAfter, wait))*spread)
	}
	return wait/2 + time.Duration(float64(wait)*spread)
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
