package tokens_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"imds-oidc-proxy/internal/exchange"
	"imds-oidc-proxy/internal/tokens"
)

// A client that asks once gets its token although Entra throttles its client ID: the exchange
// waits, and so do the others of the client ID. None begins before the throttle ends.
func TestShortThrottleIsWaitedFor(t *testing.T) {
	for name, c := range map[string]struct {
		asked, wait time.Duration // with the jitter in the middle
	}{
		"Retry-After":         {2 * time.Second, 2500 * time.Millisecond},
		"without Retry-After": {0, 5 * time.Second},
		"the longest":         {6400 * time.Millisecond, tokens.MaxPause},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fakeEntra{fault: func(c2 call) *exchange.Error {
					if c2.resource == resource && c2.n == 1 {
						return throttle(c.asked)
					}
					return nil
				}}
				s := fakeService(t, f)
				first := callers(t, s, tokens.Request{ClientID: clientID, Resource: resource}, 1)
				time.Sleep(time.Second)
				all := first
				for i := range 10 {
					before, more := all, callers(t, s, tokens.Request{ClientID: clientID, Resource: request(i).Resource}, 1)
					all = func() []error { return append(before(), more()...) }
				}
				began := time.Now().Add(-time.Second)
				if err := errors.Join(all()...); err != nil {
					t.Error(err)
				}
				if took := time.Since(began); took != c.wait {
					t.Errorf("all are answered after %s, want %s", took, c.wait)
				}
				gaps := f.gaps()
				if len(gaps) != 11 || gaps[0] != c.wait {
					t.Errorf("exchanges %s apart, want the second and 10 others after %s", gaps, c.wait)
				}
			})
		})
	}
}

// A throttle that is longer than a caller may wait is answered at once.
func TestLongThrottleIsNotWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeEntra{}
		s := fakeService(t, f)
		f.failWith(throttle(6401 * time.Millisecond))
		began := time.Now()
		for i := range 2 {
			_, err := ask(t, s, request(i))
			if e := wantKind(t, err, exchange.Throttled); e.RetryAfter <= tokens.MaxPause || time.Since(began) > 0 {
				t.Errorf("key %d: Retry-After %s after %s", i, e.RetryAfter, time.Since(began))
			}
		}
	})
}

// While Entra keeps throttling, a caller waits for the tries of one exchange, within its time, and
// no try begins within Retry-After.
func TestWaitsForThrottlesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeEntra{latency: time.Second / 2}
		s := fakeService(t, f)
		f.failWith(throttle(time.Second))
		for range 100 {
			tries, began := f.total(), time.Now()
			_, err := ask(t, s, tokens.Request{})
			e := wantKind(t, err, exchange.Throttled)
			if got, took := f.total()-tries, time.Since(began); got > tokens.MaxTries || took > tokens.MaxPause+f.latency {
				t.Errorf("answered after %d tries and %s", got, took)
			}
			time.Sleep(e.RetryAfter / 2)
		}
		if got := slices.Min(f.gaps()); got < f.latency+time.Second {
			t.Errorf("an exchange %s after the one before, within Retry-After", got)
		}
	})
}

// A caller with a stale token does not wait for the end of a throttle.
func TestThrottleIsNotWaitedForWithAToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, s := serviceWithStaleToken(t)
		f.failWith(throttle(time.Second))
		wantAnswer(t, s, tokens.Request{}, tokens.SourceCache, 1, 0)
		if got := f.total(); got != 2 {
			t.Errorf("%d exchanges, want 2", got)
		}
	})
}

// An exchange that no caller waits for any more does not wait for the end of a throttle.
func TestThrottleIsNotWaitedForWithoutCallers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeEntra{latency: time.Second}
		s := fakeService(t, f)
		f.failWith(throttle(time.Second))
		impatient, leave := context.WithTimeout(t.Context(), time.Second/2)
		defer leave()
		_, err := s.Token(impatient, tokens.Request{ClientID: clientID, Resource: resource})
		wantKind(t, err, exchange.DeadlineExceeded)
		time.Sleep(time.Hour)
		if got := f.total(); got != 1 {
			t.Errorf("%d exchanges, want 1", got)
		}
	})
}

// Callers that wait for the end of a throttle are among the waiting callers that are limited.
func TestWaitsForThrottlesTakePlaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const places = 10
		f := &fakeEntra{fault: throttledFirst(2 * time.Second)}
		s := newService(t, tokens.Config{Exchanger: f, MaxWaiting: places})
		errs := callers(t, s, tokens.Request{ClientID: clientID, Resource: resource}, places)
		began := time.Now()
		_, err := s.Token(t.Context(), tokens.Request{ClientID: clientID, Resource: resource})
		if wantOverloaded(t, err); time.Since(began) > 0 {
			t.Errorf("refused after %s", time.Since(began))
		}
		if err := errors.Join(errs()...); err != nil {
			t.Error(err)
		}
	})
}

// Shutdown waits for callers that wait for the end of a throttle, and for no others.
func TestShutdownDuringAThrottle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeEntra{fault: throttledFirst(2 * time.Second)}
		s := fakeService(t, f)
		stop := run(t, s)
		errs := callers(t, s, tokens.Request{ClientID: clientID, Resource: resource}, 2)
		began := time.Now()
		stop()
		if took := time.Since(began); took != 2500*time.Millisecond {
			t.Errorf("Run took %s to end, want 2.5s", took)
		}
		if err := errors.Join(errs()...); err != nil {
			t.Error(err)
		}
	})
}
