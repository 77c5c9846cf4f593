package tokens

import (
	"context"
	"time"

	"imds-oidc-proxy/internal/exchange"
)

const (
	// maxTries bounds the tries of one exchange for a key that has not failed before. A
	// federation mismatch that comes and goes has usually passed by the next try.
	maxTries = 3

	// firstRetryDelay is the pause before the second try. Each further pause is three
	// times as long. All have jitter.
	firstRetryDelay = 500 * time.Millisecond

	// maxPause bounds how long after it began an exchange may make its next try, if Entra
	// asks for a pause. A Retry-After of 5 seconds fits, with its jitter of up to half as
	// long. It leaves more than tryTimeout for the try.
	maxPause = 8 * time.Second
)

// waitForThrottle waits until Entra does not throttle the client ID of r. It returns the throttle
// if r may not wait for so long.
func (s *Service) waitForThrottle(ctx context.Context, r *run) *exchange.Error {
	for {
		s.mu.Lock()
		pause, err := s.memory.throttleOf(r, time.Now())
		s.mu.Unlock()
		if pause == 0 || !sleep(ctx, pause) {
			return err
		}
	}
}

// throttleOf returns the throttle that forbids the next try of r now, and how long r has to wait
// until it ends. The pause is zero if r may not wait, or if there is no throttle.
func (m *memory) throttleOf(r *run, now time.Time) (pause time.Duration, err *exchange.Error) {
	f := m.backedOff(r.key, now)
	if f == nil {
		return 0, nil
	}
	if m.mayWait(r, f.until) {
		pause = f.until.Sub(now)
	}
	return pause, f.at(now)
}

// mayWait reports whether r may make its next try as late as at until: a caller waits for it, and
// has no token to fall back on.
func (m *memory) mayWait(r *run, until time.Time) bool {
	return !r.refresh && len(r.waiters) > 0 && until.Sub(r.began) <= maxPause
}

// mayWaitForThrottle reports whether a run for k may begin although f backs off its tries: f is a
// throttle that ends soon, and there is no token to fall back on.
func (m *memory) mayWaitForThrottle(k key, f *failure, now time.Time) bool {
	return f.err.Kind == exchange.Throttled && m.valid(k, now) == nil && f.until.Sub(now) <= maxPause
}

// pauseAfter notes a throttle, and returns the pause before the try after the nth, which has
// failed with err. ok is false if there is no further try. reread says that the federated token
// was already reread for a retry.
func (s *Service) pauseAfter(r *run, err *exchange.Error, n int, reread bool) (pause time.Duration, ok bool) {
	now, jitter := time.Now(), s.random()
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case err.Kind == exchange.Throttled:
		s.memory.noteThrottle(r.key, err, now, jitter)
		pause, _ = s.memory.throttleOf(r, now)
		return pause, pause > 0 && n < maxTries
	case !retryable(err, n, r.tries, reread):
		return 0, false
	case err.RetryAfter > 0:
		pause = retryAfterWithJitter(err.RetryAfter, 1, jitter)
		return pause, s.memory.mayWait(r, now.Add(pause))
	}
	pause = firstRetryDelay
	for range n - 1 {
		pause *= 3
	}
	// A jitter of half the pause more or less: a fleet must not retry at the same time.
	return pause/2 + time.Duration(float64(pause)*jitter), true
}

// retryable reports whether another try may succeed after the nth has failed with err.
func retryable(err *exchange.Error, n, tries int, reread bool) bool {
	switch err.Retry {
	case exchange.RetrySoon:
		return n < tries
	case exchange.RetryOnce:
		return n < min(tries, 2)
	case exchange.RetryReread:
		return !reread
	}
	return false
}

// spend takes another try from the budget of r, if there is one.
func (s *Service) spend(r *run) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return r.budget.spend(r.class, time.Now())
}

// sleep reports whether the whole pause passed before ctx ended.
func sleep(ctx context.Context, pause time.Duration) bool {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
