package tokens_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/exchange"
	"imds-oidc-proxy/internal/tokens"
)

const (
	workers = 400

	// fast and slowly are pauses of a worker, for 4,000 and 1,000 requests a second. The
	// higher rate is for tests in which the number of refused keys matters.
	fast   = 100 * time.Millisecond
	slowly = 400 * time.Millisecond
)

// invented is the prefix of the resources that attackers ask for.
const invented = "https://invented-"

// attack makes requests in all workers until stopped. A worker pauses between its requests,
// since otherwise the time of a bubble does not advance. next returns the nth request of all
// workers.
func attack(t *testing.T, s *tokens.Service, pause time.Duration, next func(n int64) tokens.Request) (stop func() (requests int64)) {
	t.Helper()
	var n atomic.Int64
	var wg sync.WaitGroup
	done := make(chan struct{})
	for range workers {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				case <-time.After(pause):
				}
				_, _ = s.Token(t.Context(), next(n.Add(1)))
			}
		})
	}
	return func() int64 {
		close(done)
		wg.Wait()
		return n.Load()
	}
}

func inventedClientID(n int64) tokens.Request {
	return tokens.Request{ClientID: azure.ClientID(fmt.Sprintf("dddddddd-0000-4000-8000-%012d", n)), Resource: resource}
}

func inventedResource(n int64) tokens.Request {
	return tokens.Request{ClientID: clientID, Resource: azure.Resource(fmt.Sprint(invented, n))}
}

func isInvented(c call) bool {
	return strings.HasPrefix(string(c.resource), invented) || strings.HasPrefix(string(c.clientID), "dddd")
}

// budgetFor returns the most tries that a budget allows within d.
func budgetFor(d time.Duration) int {
	return tokens.BudgetBurst + int(d.Seconds()*tokens.BudgetRate) + 1
}

// TestInventedKeysDoNotStarveOthers: while others invent client IDs, or resources of another
// identity, an identity gets cached tokens, a new token and a refresh on time, and the invented
// keys cost no more exchanges than their budget allows.
func TestInventedKeysDoNotStarveOthers(t *testing.T) {
	const latency = 3 * time.Second
	for _, c := range []struct {
		name   string
		next   func(n int64) tokens.Request
		victim azure.ClientID // its new resources are not refused
	}{
		{"client IDs", inventedClientID, clientID},
		{"resources of another identity", inventedResource, otherClientID},
	} {
		for name, slow := range map[string]time.Duration{"same latency": latency, "exchanges hang": time.Hour} {
			t.Run(c.name+", "+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					f := &fakeEntra{latency: latency}
					f.fault = func(k call) *exchange.Error {
						if isInvented(k) {
							return &exchange.Error{Kind: exchange.UnknownIdentity, Code: 700016, Detail: "unknown"}
						}
						return nil
					}
					f.hang = func(k call) bool { return slow > latency && isInvented(k) }
					s := newService(t, tokens.Config{Exchanger: f, Identities: []azure.ClientID{clientID, otherClientID}})
					defer run(t, s)()
					cached := tokens.Request{ClientID: c.victim, Resource: "https://cached.example.test"}
					wantAnswer(t, s, cached, tokens.SourceEntra, 1, latency)
					time.Sleep(30*time.Minute - 30*time.Second) // due half a minute later
					before := f.total()

					stop := attack(t, s, slowly, c.next)
					began := time.Now()
					time.Sleep(20 * time.Second) // the budget is used up
					wantAnswer(t, s, cached, tokens.SourceCache, 1, 0)
					wantAnswer(t, s, tokens.Request{ClientID: c.victim, Resource: "https://new.example.test"}, tokens.SourceEntra, 1, latency)
					time.Sleep(time.Until(began.Add(30*time.Second + latency + time.Millisecond)))
					wantAnswer(t, s, cached, tokens.SourceCache, 2, 0) // refreshed on time
					requests := stop()
					took := time.Since(began)
					if got, most := f.total()-before-2, budgetFor(took); got > most || got < most/4 {
						t.Errorf("%d requests cost %d exchanges in %s, want at most %d", requests, got, took, most)
					}
				})
			})
		}
	}
}

// TestInventedResourcesDoNotStarveTheIdentity: while others invent resources of an identity, a
// new resource of the same identity gets its token at one of its client's retries, for every
// retry schedule of clients and every answer of Entra.
func TestInventedResourcesDoNotStarveTheIdentity(t *testing.T) {
	for name, c := range map[string]struct {
		retries []time.Duration
		answer  func(*fakeEntra)
	}{
		"Retry-After is obeyed, Entra refuses": {seconds(1, 1, 1), func(f *fakeEntra) {
			f.fault = func(k call) *exchange.Error {
				if isInvented(k) {
					return &exchange.Error{Kind: exchange.InvalidResource, Code: 500011, Detail: "unknown"}
				}
				return nil
			}
		}},
		"exponential backoff, Entra grants": {seconds(0.8, 1.6, 3.2, 6.4), func(*fakeEntra) {}},
		"slow retries, Entra hangs": {seconds(2, 4, 8, 10), func(f *fakeEntra) {
			f.hang = isInvented
		}},
		"Entra has faults that are retried": {seconds(1, 2, 4), func(f *fakeEntra) {
			f.fault = func(k call) *exchange.Error {
				if isInvented(k) {
					return &exchange.Error{Kind: exchange.Unavailable, Detail: "503", Retry: exchange.RetrySoon}
				}
				return nil
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fakeEntra{latency: 3 * time.Second}
				c.answer(f)
				s := newService(t, tokens.Config{Exchanger: f, Identities: []azure.ClientID{clientID, otherClientID}})
				began := time.Now()
				stop := attack(t, s, fast, inventedResource)
				time.Sleep(tokens.ExchangeTimeout + 2*time.Second) // the first exchanges have ended
				tries := 0
				for _, wait := range append(c.retries, 0) {
					_, err := ask(t, s, tokens.Request{Resource: "https://honest.vault.example.test"})
					if tries++; err == nil {
						break
					}
					wantKind(t, err, exchange.Throttled)
					time.Sleep(wait)
				}
				if tries < 2 || tries > len(c.retries) {
					t.Errorf("a token at request %d, want one at a retry before the last", tries)
				}
				requests := stop()
				took := time.Since(began)
				if got, most := f.total(), budgetFor(took); got > most {
					t.Errorf("%d requests cost %d exchanges in %s, want at most %d", requests, got, took, most)
				}
				t.Logf("%.0f invented resources a second: a token at request %d", float64(requests)/took.Seconds(), tries)
			})
		})
	}
}

// A client that also retries its invented resources competes with the other clients of that
// identity. It does not exceed the budget, and other identities are not affected.
func TestRetriedInventedResourcesStayWithinTheBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeEntra{latency: time.Second}
		s := newService(t, tokens.Config{Exchanger: f, Identities: []azure.ClientID{clientID, otherClientID}})
		began := time.Now()
		stop := attack(t, s, tokens.LimitPause, func(n int64) tokens.Request { return inventedResource(n % (5 * workers)) })
		time.Sleep(time.Minute)
		wantAnswer(t, s, tokens.Request{ClientID: otherClientID}, tokens.SourceEntra, 1, f.latency)
		stop()
		took := time.Since(began)
		if got, most := f.total()-1, budgetFor(took); got > most || got < most-tokens.BudgetBurst {
			t.Errorf("%d exchanges in %s, want about %d and no more", got, took, most)
		}
	})
}

// A key that had a token has priority over keys that never had one.
func TestKeyThatHadATokenIsNotRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeEntra{latency: time.Second}
		s := fakeService(t, f)
		wantAnswer(t, s, tokens.Request{}, tokens.SourceEntra, 1, f.latency)
		time.Sleep(2 * time.Hour)
		stop := attack(t, s, slowly, inventedResource)
		time.Sleep(30 * time.Second)
		wantAnswer(t, s, tokens.Request{}, tokens.SourceEntra, 2, f.latency)
		stop()
	})
}

// Tries count, not requests.
func TestTriesDrawOnTheBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeEntra{}
		f.failWith(&exchange.Error{Kind: exchange.FederationMismatch, Code: 700213, Retry: exchange.RetrySoon})
		s := fakeService(t, f)
		began := time.Now()
		var wg sync.WaitGroup
		for n := range int64(workers) {
			wg.Go(func() { _, _ = s.Token(t.Context(), inventedResource(n)) })
		}
		wg.Wait()
		if got, most := f.total(), budgetFor(time.Since(began)); got > most || got < tokens.BudgetBurst/2 {
			t.Errorf("%d tries in %s, want at most %d", got, time.Since(began), most)
		}
	})
}

// Forced exchanges of tokens that are not due draw on the budget too. Over the budget, the
// cached token is returned.
func TestForcedExchangesDrawOnTheBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeEntra{life: 24 * time.Hour}
		s := fakeService(t, f)
		const cached = 200
		for i := range cached {
			if _, err := ask(t, s, numbered("", i)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second / tokens.BudgetRate)
		}
		time.Sleep(time.Minute)
		before, began := f.total(), time.Now()
		for time.Since(began) < time.Minute {
			for i := range cached {
				r := numbered("", i)
				r.Fresh = true
				if _, err := ask(t, s, r); err != nil {
					t.Fatal(err)
				}
			}
			time.Sleep(time.Second)
		}
		if got, most := f.total()-before, budgetFor(time.Minute); got > most || got < most/2 {
			t.Errorf("%d exchanges forced in a minute, want at most %d", got, most)
		}
	})
}

// TestInventedResourcesDuringAThrottle: while Entra throttles a client ID for some seconds, and
// others invent resources of it, these wait in the places of that client ID only: cached tokens
// are returned at once, another identity gets a new token, and the throttled client ID costs
// Entra no exchange before the throttle ends, and no more than its places afterwards.
func TestInventedResourcesDuringAThrottle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const latency = time.Second / 2
		const pause = 6250 * time.Millisecond // Retry-After with the jitter in the middle
		f := &fakeEntra{latency: latency}
		s := newService(t, tokens.Config{Exchanger: f, Identities: []azure.ClientID{clientID, otherClientID}})
		wantAnswer(t, s, tokens.Request{}, tokens.SourceEntra, 1, latency)
		f.failWith(throttle(5 * time.Second))
		first := callers(t, s, tokens.Request{ClientID: clientID, Resource: "https://first.example.test"}, 1)
		time.Sleep(latency)
		synctest.Wait()
		throttled := time.Now()
		f.failWith(nil)

		stop := attack(t, s, fast, inventedResource)
		honest := callers(t, s, tokens.Request{ClientID: clientID, Resource: "https://honest.vault.example.test"}, 1)
		for range 5 {
			time.Sleep(time.Second)
			wantAnswer(t, s, tokens.Request{}, tokens.SourceCache, 1, 0)
		}
		wantAnswer(t, s, tokens.Request{ClientID: otherClientID, Resource: "https://new.example.test"}, tokens.SourceEntra, 1, latency)
		time.Sleep(time.Until(throttled.Add(pause - 1)))
		synctest.Wait()
		if got := f.total(); got != 3 {
			t.Errorf("%d exchanges until the throttle ends, want the first, the throttled one and that of the other identity", got)
		}
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		if got := f.total() - 3; got < 2 || got > tokens.MaxPlaces {
			t.Errorf("%d exchanges when the throttle ends, want at most %d", got, tokens.MaxPlaces)
		}
		if err := errors.Join(append(first(), honest()...)...); err != nil {
			t.Errorf("callers that asked before the flood took the places: %v", err)
		}
		stop()
		time.Sleep(tokens.ExchangeTimeout)
	})
}

// A request that is refused because of a remembered failure costs no budget.
func TestRememberedFailureCostsNoBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeEntra{}
		f.failWith(&exchange.Error{Kind: exchange.InvalidResource, Detail: "unknown"})
		s := fakeService(t, f)
		for range 10 * tokens.BudgetBurst {
			_, err := ask(t, s, tokens.Request{})
			wantKind(t, err, exchange.InvalidResource)
		}
		f.failWith(nil)
		wantAnswer(t, s, tokens.Request{Resource: "https://other.example.test"}, tokens.SourceEntra, 1, 0)
	})
}

// Prefetched keys have no rate limit, whether a caller or the schedule begins the exchange.
func TestPrefetchIsNotRateLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeEntra{latency: time.Second}
		cfg := tokens.Config{Exchanger: f, Prefetch: prefetch("https://a.example.test", "https://b.example.test")}
		s := newService(t, cfg)
		stop := attack(t, s, slowly, inventedResource)
		time.Sleep(30 * time.Second)
		wantAnswer(t, s, cfg.Prefetch[0], tokens.SourceEntra, 1, f.latency) // for a caller
		stopRun := run(t, s)
		time.Sleep(f.latency)
		synctest.Wait()
		wantAnswer(t, s, cfg.Prefetch[1], tokens.SourceCache, 1, 0) // by the schedule
		stop()
		stopRun()
	})
}

// Throttles of invented client IDs do not evict the throttle of a configured one.
func TestThrottleOfAnIdentityIsNotEvicted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeEntra{}
		s := newService(t, tokens.Config{Exchanger: f, Identities: []azure.ClientID{clientID}})
		f.failWith(throttle(10 * time.Minute))
		_, err := ask(t, s, tokens.Request{})
		wantKind(t, err, exchange.Throttled)
		for n := range int64(200) {
			_, err := s.Token(t.Context(), inventedClientID(n))
			wantKind(t, err, exchange.Throttled)
			time.Sleep(time.Second / tokens.BudgetRate)
		}
		if got := f.total(); got != 201 {
			t.Errorf("%d exchanges, want 201", got)
		}
		f.failWith(nil)
		for n := range int64(50) { // the latest throttles of invented client IDs are remembered too
			r := inventedClientID(199 - n)
			r.Resource = "https://other.example.test"
			_, err := s.Token(t.Context(), r)
			wantKind(t, err, exchange.Throttled)
		}
		_, err = ask(t, s, tokens.Request{Resource: "https://other.example.test"})
		if e := wantKind(t, err, exchange.Throttled); errors.Is(e, tokens.ErrOverloaded) || e.RetryAfter < time.Minute {
			t.Errorf("got %v, Retry-After %s, want that of Entra", e, e.RetryAfter)
		}
	})
}
