package tokens_test

import (
	"fmt"
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

func request(i int) tokens.Request {
	return tokens.Request{Resource: azure.Resource(fmt.Sprintf("https://%d.example.test", i))}
}

// Entra throttles client IDs, not resources: a throttle of one key backs off all keys of its
// client ID.
func TestThrottleBacksOffTheWholeClientID(t *testing.T) {
	for name, asked := range map[string]time.Duration{"with Retry-After": 10 * time.Second, "without": 0} {
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
				if got := f.total() - before; got != 1 {
					t.Errorf("50 keys of a throttled client ID cost %d exchanges, want 1", got)
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
		time.Sleep(12500*time.Millisecond - 1)
		_, err = ask(t, s, request(1))
		if e := wantKind(t, err, exchange.Throttled); e.RetryAfter != 1 {
			t.Errorf("1 ns before the end: Retry-After %s", e.RetryAfter)
		}
		time.Sleep(time.Nanosecond)
		for i := range 30 {
			if _, err := ask(t, s, request(i)); err != nil {
				t.Errorf("key %d: %v", i, err)
			}
		}
	})
}

// The backoff of a throttled client ID grows, even if each throttle is for another key.
func TestThrottleBackoffGrowsOverKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeEntra{}
		s := fakeService(t, f)
		f.failWith(throttle(0))
		for i, want := range seconds(5, 10, 20, 40, 60, 60) {
			_, err := ask(t, s, request(i))
			if e := wantKind(t, err, exchange.Throttled); e.RetryAfter != want {
				t.Errorf("key %d: Retry-After %s, want %s", i, e.RetryAfter, want)
			}
			time.Sleep(want)
		}
	})
}

// Exchanges that run at the same time count as one throttle, not as fifty in a row. A failed
// exchange whose client ID is throttled meanwhile is not retried.
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
		answers := make(chan error, 50)
		for i := range 50 {
			go func() {
				_, err := s.Token(t.Context(), tokens.Request{ClientID: clientID, Resource: request(i).Resource})
				answers <- err
			}()
		}
		for range 50 {
			if <-answers == nil {
				t.Error("got a token while Entra throttles")
			}
		}
		if got := f.count("https://0.example.test"); got != 1 {
			t.Errorf("%d tries of a key whose client ID was throttled, want 1", got)
		}
		_, err := ask(t, s, request(100))
		if e := wantKind(t, err, exchange.Throttled); e.RetryAfter > 5*time.Second {
			t.Errorf("Retry-After %s, want at most 5s", e.RetryAfter)
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
		f := &fakeEntra{}
		s := fakeService(t, f)
		for i := range 3 {
			f.failWith(throttle(0))
			_, err := ask(t, s, request(2*i))
			if e := wantKind(t, err, exchange.Throttled); e.RetryAfter != 5*time.Second {
				t.Errorf("throttle %d: Retry-After %s, want 5s", i+1, e.RetryAfter)
			}
			time.Sleep(5 * time.Second)
			f.failWith(nil)
			if _, err := ask(t, s, request(2*i+1)); err != nil {
				t.Fatal(err)
			}
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
		if got := f.total(); got != 1 {
			t.Errorf("%d exchanges, want 1", got)
		}
		f.failWith(nil)
		time.Sleep(5 * time.Second)
		if _, err := ask(t, s, tokens.Request{ClientID: otherClientID}); err != nil {
			t.Errorf("after the throttle: %v", err)
		}
	})
}

// While a client ID is throttled, callers get the cached token, even if it is stale or they ask
// for a fresh one.
func TestCachedTokenIsServedWhileThrottled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeEntra{}
		s := fakeService(t, f)
		wantAnswer(t, s, tokens.Request{}, tokens.SourceEntra, 1, 0)
		time.Sleep(time.Hour - tokens.StaleMargin)
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
