package tokens_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/exchange"
	"imds-oidc-proxy/internal/tokens"
)

const otherClientID = "aaaaaaaa-0000-4000-8000-000000000002"

// total returns the number of exchanges for all resources.
func (f *fakeEntra) total() int {
	n := 0
	for _, calls := range f.all() {
		n += len(calls)
	}
	return n
}

func throttle(after time.Duration) *exchange.Error {
	return &exchange.Error{Kind: exchange.Throttled, RetryAfter: after, Detail: "throttled"}
}

// throttledFirst is a fault that throttles the first exchange of each resource.
func throttledFirst(after time.Duration) func(call) *exchange.Error {
	return func(c call) *exchange.Error {
		if c.n == 1 {
			return throttle(after)
		}
		return nil
	}
}

func request(i int) tokens.Request {
	return tokens.Request{Resource: azure.Resource(fmt.Sprintf("https://%d.example.test", i))}
}

// Entra throttles client IDs, not resources: a throttle of one key backs off all keys of its
// client ID.
func TestThrottleBacksOffTheWholeClientID(t *testing.T) {
	for name, c := range map[string]struct {
		asked     time.Duration
		exchanges int // the first caller waits for a short throttle, and is throttled again
	}{"with Retry-After": {10 * time.Second, 1}, "without": {0, 2}} {
		asked := c.asked
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fakeEntra{}
				s := fakeService(t, f)
				wantAnswer(t, s, tokens.Request{}, tokens.SourceEntra, 1, 0)
				f.failWith(throttle(asked))
				before := f.total()
				for i := range 50 {
					_, err := ask(t, s, request(i))
					if e := wantKind(t, err, exchange.Throttled); e.RetryAfter <= asked {
						t.Errorf("key %d: Retry-After %s, want more than %s", i, e.RetryAfter, asked)
					}
					wantAnswer(t, s, tokens.Request{}, tokens.SourceCache, 1, 0)
				}
				if got := f.total() - before; got != c.exchanges {
					t.Errorf("50 keys of a throttled client ID cost %d exchanges, want %d", got, c.exchanges)
				}
				f.failWith(nil)
				if _, err := ask(t, s, tokens.Request{ClientID: otherClientID}); err != nil {
					t.Errorf("another client ID: %v", err)
				}
			})
		})
	}
}

func TestThrottleEndsAfterItsBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeEntra{}
		s := fakeService(t, f)
		f.failWith(throttle(10 * time.Second))
		_, err := ask(t, s, request(0))
		wantKind(t, err, exchange.Throttled)
		f.failWith(nil)
		time.Sleep(12500*time.Millisecond - tokens.MaxPause - 1)
		_, err = ask(t, s, request(1))
		if e := wantKind(t, err, exchange.Throttled); e.RetryAfter != tokens.MaxPause+1 {
			t.Errorf("1 ns before callers wait for the end: Retry-After %s", e.RetryAfter)
		}
		time.Sleep(time.Nanosecond)
		wantAnswer(t, s, request(1), tokens.SourceEntra, 1, tokens.MaxPause)
		for i := range 30 {
			if _, err := ask(t, s, request(i)); err != nil {
				t.Errorf("key %d: %v", i, err)
			}
		}
		if got := f.gaps()[0]; got != 12500*time.Millisecond {
			t.Errorf("the first exchange after the throttle began after %s", got)
		}
	})
}

// The backoff of a throttled client ID grows, even if each throttle is for another key.
func TestThrottleBackoffGrowsOverKeys(t *testing.T) {
	for _, c := range []struct {
		asked time.Duration
		want  []time.Duration // with the jitter in the middle
	}{
		{0, seconds(5, 10, 20, 40, 60, 60)},
		{time.Second, seconds(1.25, 1.5, 2, 3, 5, 9, 17, 31, 31)},
		{10 * time.Second, seconds(12.5, 15, 20, 30, 40, 40)},
	} {
		synctest.Test(t, func(t *testing.T) {
			f := &fakeEntra{}
			s := fakeService(t, f)
			f.failWith(throttle(c.asked))
			for i := 0; f.total() <= len(c.want); i++ {
				_, err := ask(t, s, request(i))
				time.Sleep(wantKind(t, err, exchange.Throttled).RetryAfter)
			}
			if got := f.gaps()[:len(c.want)]; !slices.Equal(got, c.want) {
				t.Errorf("Retry-After %s: got backoffs of %s, want %s", c.asked, got, c.want)
			}
		})
	}
}

// Exchanges that run at the same time count as one throttle, not as twenty in a row. A failed
// exchange whose client ID is throttled meanwhile is not retried before the throttle ends.
func TestThrottleOfABurstCountsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeEntra{latency: 100 * time.Millisecond}
		f.fault = func(c call) *exchange.Error {
			if c.resource == "https://0.example.test" {
				return &exchange.Error{Kind: exchange.Unavailable, Detail: "503", Retry: exchange.RetrySoon}
			}
			return throttle(0)
		}
		s := fakeService(t, f)
		began := time.Now()
		const keys = 20 // their tries are within the budget
		answers := make(chan error, keys)
		for i := range keys {
			go func() {
				_, err := s.Token(t.Context(), tokens.Request{ClientID: clientID, Resource: request(i).Resource})
				answers <- err
			}()
		}
		for range keys {
			if <-answers == nil {
				t.Error("got a token while Entra throttles")
			}
		}
		for resource, calls := range f.all() {
			for _, at := range calls {
				if after := at.Sub(began); after > 0 && after < 5*time.Second {
					t.Errorf("%s: an exchange after %s, while Entra throttles", resource, after)
				}
			}
		}
		if got := f.count("https://0.example.test"); got != 2 {
			t.Errorf("%d tries of a key whose client ID was throttled, want 2", got)
		}
		_, err := ask(t, s, request(100))
		if e := wantKind(t, err, exchange.Throttled); e.RetryAfter > 10*time.Second {
			t.Errorf("Retry-After %s, want at most 10s", e.RetryAfter)
		}
	})
}

// Failures of other keys do not evict a throttle.
func TestThrottleIsNotEvicted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeEntra{}
		s := fakeService(t, f)
		f.failWith(throttle(10 * time.Minute))
		_, err := ask(t, s, tokens.Request{})
		wantKind(t, err, exchange.Throttled)
		f.failWith(&exchange.Error{Kind: exchange.InvalidResource, Detail: "unknown"})
		for i := range 2 * tokens.MaxTokens {
			_, err := ask(t, s, tokens.Request{ClientID: otherClientID, Resource: request(i).Resource})
			wantKind(t, err, exchange.InvalidResource)
			time.Sleep(time.Second / tokens.BudgetRate)
		}
		f.failWith(nil)
		_, err = ask(t, s, tokens.Request{})
		wantKind(t, err, exchange.Throttled)
	})
}

// A success after a throttle resets its backoff.
func TestSuccessResetsTheThrottle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeEntra{fault: throttledFirst(0)}
		s := fakeService(t, f)
		for i := range 3 {
			wantAnswer(t, s, request(i), tokens.SourceEntra, 2, 5*time.Second)
		}
	})
}

// Retry-After is obeyed even when the cached token ends before it.
func TestThrottleOutlastsTheToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeEntra{life: 8 * time.Minute}
		s := fakeService(t, f)
		wantAnswer(t, s, tokens.Request{}, tokens.SourceEntra, 1, 0)
		time.Sleep(7 * time.Minute)
		f.failWith(throttle(5 * time.Minute))
		wantAnswer(t, s, tokens.Request{}, tokens.SourceCache, 1, 0)
		synctest.Wait()
		f.failWith(nil)
		time.Sleep(2 * time.Minute) // the token has ended, the backoff has not
		_, err := ask(t, s, tokens.Request{})
		wantKind(t, err, exchange.Throttled)
		if got := f.count(resource); got != 2 {
			t.Errorf("%d exchanges, want 2", got)
		}
	})
}

func TestThrottledRefreshDelaysOtherRefreshes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeEntra{}
		s := fakeService(t, f)
		defer run(t, s)()
		for i := range 50 {
			if _, err := ask(t, s, request(i)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
		}
		f.failWith(throttle(4 * time.Minute))
		time.Sleep(33 * time.Minute) // all are due, from 29m10s on
		synctest.Wait()
		if got := f.total(); got != 51 {
			t.Errorf("%d exchanges, want 50 and the one that was throttled", got)
		}
		f.failWith(nil)
		time.Sleep(3 * time.Minute)
		for i := range 50 {
			wantAnswer(t, s, request(i), tokens.SourceCache, f.count(request(i).Resource), 0)
		}
		if got := f.total(); got != 101 {
			t.Errorf("%d exchanges after the throttle, want 101", got)
		}
	})
}

func TestThrottleOfTheTenantBacksOffEveryClientID(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeEntra{}
		s := fakeService(t, f)
		f.failWith(&exchange.Error{Kind: exchange.Throttled, Code: 90055, Detail: "throttled"})
		for _, id := range []azure.ClientID{clientID, otherClientID} {
			_, err := ask(t, s, tokens.Request{ClientID: id})
			wantKind(t, err, exchange.Throttled)
		}
		// The first caller has waited for the end of the first throttle.
		if got := f.gaps(); !slices.Equal(got, seconds(5)) {
			t.Errorf("exchanges %s apart, want 5s and no other", got)
		}
		f.failWith(nil)
		time.Sleep(10 * time.Second)
		if _, err := ask(t, s, tokens.Request{ClientID: otherClientID}); err != nil {
			t.Errorf("after the throttle: %v", err)
		}
	})
}

// serviceWithStaleToken returns a service whose cached token, for the zero Request, has become stale.
func serviceWithStaleToken(t *testing.T) (*fakeEntra, *tokens.Service) {
	t.Helper()
	f := &fakeEntra{}
	s := fakeService(t, f)
	wantAnswer(t, s, tokens.Request{}, tokens.SourceEntra, 1, 0)
	time.Sleep(time.Hour - tokens.StaleMargin)
	return f, s
}

// While a client ID is throttled, callers get the cached token, even if it is stale or they ask
// for a fresh one.
func TestCachedTokenIsServedWhileThrottled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, s := serviceWithStaleToken(t)
		f.failWith(throttle(time.Minute))
		_, err := ask(t, s, request(0))
		wantKind(t, err, exchange.Throttled)
		wantAnswer(t, s, tokens.Request{}, tokens.SourceCache, 1, 0)
		wantAnswer(t, s, tokens.Request{Fresh: true}, tokens.SourceCache, 1, 0)
		synctest.Wait()
		if got := f.total(); got != 2 {
			t.Errorf("%d exchanges, want the first and the one that was throttled", got)
		}
	})
}

// A key that Entra throttles for a short time has the Retry-After of its client ID, which Entra
// throttles for longer: its caller is refused at once.
func TestThrottledKeyHasTheRetryAfterOfItsClientID(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const long = 20 * time.Second
		f := &fakeEntra{latency: time.Second, fault: func(k call) *exchange.Error {
			if k.resource == request(0).Resource {
				return throttle(long)
			}
			return throttle(time.Second)
		}}
		s := fakeService(t, f)
		errs := make(chan error, 2)
		for i := range cap(errs) {
			go func() {
				_, err := s.Token(t.Context(), request(i))
				errs <- err
			}()
		}
		for range cap(errs) {
			wantKind(t, <-errs, exchange.Throttled)
		}
		began := time.Now()
		_, err := s.Token(t.Context(), request(1))
		if e, ok := errors.AsType[*exchange.Error](err); !ok || e.RetryAfter < long-2*time.Second || time.Since(began) != 0 {
			t.Errorf("after %s: %v, want a Retry-After of about %s at once", time.Since(began), err, long)
		}
	})
}
