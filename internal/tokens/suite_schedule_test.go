package tokens_test

import (
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/exchange"
	"imds-oidc-proxy/internal/tokens"
)

func TestTokenInUseIsRefreshedInTheBackground(t *testing.T) {
	for _, c := range []struct {
		name            string
		life, refreshIn time.Duration
		// every is the time between exchanges, with the jitter in the middle.
		every time.Duration
	}{
		{"half of the lifetime", time.Hour, 0, 30 * time.Minute},
		{"refresh_in", 24 * time.Hour, 6 * time.Hour, 6 * time.Hour},
		{"refresh_in after the expiry", time.Hour, 2 * time.Hour, 30 * time.Minute},
		{"refresh_in of a second", 24 * time.Hour, time.Second, 5 * time.Minute},
		{"refresh_in of a second, short lifetime", 4 * time.Minute, time.Second, 2 * time.Minute},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fakeEntra{life: c.life, refreshIn: c.refreshIn}
				s := fakeService(t, f)
				defer run(t, s)()
				wantAnswer(t, s, tokens.Request{}, tokens.SourceEntra, 1, 0)
				for n := 1; n <= 5; n++ {
					wantAnswer(t, s, tokens.Request{}, tokens.SourceCache, n, 0)
					time.Sleep(c.every - 1)
					synctest.Wait()
					if got := f.count(resource); got != n {
						t.Fatalf("1 ns before refresh %d: %d exchanges", n, got)
					}
					time.Sleep(time.Nanosecond)
					synctest.Wait()
					if got := f.count(resource); got != n+1 {
						t.Fatalf("at refresh %d: %d exchanges", n, got)
					}
				}
			})
		})
	}
}

// For a day, a caller requests a token every minute. Entra takes a second for each answer, and
// is down for an hour at noon. No request fails or waits.
func TestOutageOfAnHourIsNotNoticed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeEntra{life: 3 * time.Hour, latency: time.Second}
		s := newService(t, tokens.Config{Exchanger: f})
		s.FixJitter(0.3)
		defer run(t, s)()
		if _, err := ask(t, s, tokens.Request{}); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		for minute := range 24 * 60 {
			f.hangs(minute >= 12*60 && minute < 13*60)
			got, err := ask(t, s, tokens.Request{})
			if err != nil {
				t.Fatalf("minute %d: %v", minute, err)
			}
			if got.Source != tokens.SourceCache {
				t.Errorf("minute %d: waited for Entra", minute)
			}
			if left := time.Until(got.Token.ExpiresOn); left < tokens.StaleMargin {
				t.Errorf("minute %d: a token with %s left", minute, left)
			}
			time.Sleep(time.Until(began.Add(time.Duration(minute+1) * time.Minute)))
		}
		// One exchange each 1.3 h or so, and a few tries at noon.
		if got := f.count(resource); got < 16 || got > 40 {
			t.Errorf("%d exchanges in a day, want about 20", got)
		}
	})
}

func TestUnusedTokenIsNotRefreshed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeEntra{}
		s := fakeService(t, f)
		defer run(t, s)()
		wantAnswer(t, s, tokens.Request{}, tokens.SourceEntra, 1, 0)
		time.Sleep(30*time.Minute + 1) // the request above counts as use: refreshed once
		synctest.Wait()
		if got := f.count(resource); got != 2 {
			t.Errorf("after the first refresh: %d exchanges, want 2", got)
		}
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		if got := f.count(resource); got != 2 {
			t.Errorf("a day later: %d exchanges, want 2", got)
		}
		if got := s.Stats().Entries; got != 0 {
			t.Errorf("a day later: %d tokens cached, want 0", got)
		}
	})
}

func TestRequestRefreshesADueToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeEntra{}
		s := fakeService(t, f)
		defer run(t, s)()
		wantAnswer(t, s, tokens.Request{}, tokens.SourceEntra, 1, 0)
		time.Sleep(80 * time.Minute) // refreshed at 30, due at 60, ends at 90
		wantAnswer(t, s, tokens.Request{}, tokens.SourceCache, 2, 0)
		synctest.Wait()
		wantAnswer(t, s, tokens.Request{}, tokens.SourceCache, 3, 0)
	})
}

// A request that is answered from the cache and starts a refresh counts as use of the new
// token.
func TestRequestForADueTokenCountsAsUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := fakeService(t, &fakeEntra{latency: 300 * time.Millisecond})
		defer run(t, s)()
		for i := range 12 {
			if got, _ := ask(t, s, tokens.Request{}); i > 0 && got.Source != tokens.SourceCache {
				t.Errorf("request %d waited for Entra", i)
			}
			time.Sleep(80 * time.Minute)
		}
	})
}

func TestRequestDuringARefreshCountsAsUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeEntra{latency: 5 * time.Second}
		s := fakeService(t, f)
		defer run(t, s)()
		wantAnswer(t, s, tokens.Request{}, tokens.SourceEntra, 1, 5*time.Second)
		time.Sleep(30*time.Minute + time.Second) // its refresh is running
		wantAnswer(t, s, tokens.Request{}, tokens.SourceCache, 1, 0)
		time.Sleep(31 * time.Minute)
		synctest.Wait()
		if got := f.count(resource); got != 3 {
			t.Errorf("%d exchanges, want 3: the request during the refresh counts as use", got)
		}
	})
}

func TestFailedRefreshBacksOff(t *testing.T) {
	for name, failure := range map[string]*exchange.Error{
		"Entra is down": &exchange.Error{Kind: exchange.Unavailable, Detail: "down", Retry: exchange.RetrySoon},
		// Otherwise a thousand keys would open the file a thousand times a second.
		"the federated token cannot be read": {Kind: exchange.FederatedTokenUnusable, Detail: "does not exist"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fakeEntra{life: 24 * time.Hour}
				s := fakeService(t, f)
				defer run(t, s)()
				wantAnswer(t, s, tokens.Request{}, tokens.SourceEntra, 1, 0)
				f.failWith(failure)
				time.Sleep(15 * time.Hour)
				wantAnswer(t, s, tokens.Request{}, tokens.SourceCache, 1, 0)
				calls := f.all()[resource][1:]
				// Backoffs of 15 s, 30 s, 1, 2, 4 and then 5 minutes: about 40 in 3 hours.
				if len(calls) < 35 || len(calls) > 45 {
					t.Errorf("%d tries in an outage of 3 hours, want about 40", len(calls))
				}
				f.failWith(nil)
				time.Sleep(10 * time.Minute)
				got, err := ask(t, s, tokens.Request{})
				if err != nil || got.Token.NotBefore.Before(time.Now().Add(-10*time.Minute)) {
					t.Errorf("10 minutes after the outage: a token obtained at %s, error %v", got.Token.NotBefore, err)
				}
			})
		})
	}
}

func TestPrefetchedTokensAreRefreshedWithoutRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeEntra{latency: 300 * time.Millisecond}
		cfg := tokens.Config{Exchanger: f}
		cfg.Prefetch = prefetch(resource, "https://storage.example.test")
		s := newService(t, cfg)
		defer run(t, s)()
		time.Sleep(f.latency)
		synctest.Wait()
		for _, r := range cfg.Prefetch {
			wantAnswer(t, s, r, tokens.SourceCache, 1, 0)
		}
		time.Sleep(72 * time.Hour)
		for _, r := range cfg.Prefetch {
			if got := f.count(r.Resource); got < 3*48 {
				t.Errorf("%s: %d exchanges in three days, want one for each half hour", r.Resource, got)
			}
			got, err := ask(t, s, r)
			if err != nil || got.Source != tokens.SourceCache {
				t.Errorf("after three days without requests, %s: source %s, error %v", r.Resource, got.Source, err)
			}
		}
	})
}

func TestScheduleStartsNoSecondExchangeOfAKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const slow = "https://slow.example.test"
		f := &fakeEntra{}
		f.hang = func(c call) bool { return c.resource == slow }
		cfg := tokens.Config{Exchanger: f}
		cfg.Prefetch = prefetch(slow)
		s := newService(t, cfg)
		defer run(t, s)()
		synctest.Wait()
		for i := range 10 { // each wakes the schedule
			wantAnswer(t, s, tokens.Request{Resource: azure.Resource(fmt.Sprintf("https://%d.example.test", i))}, tokens.SourceEntra, 1, 0)
			synctest.Wait()
		}
		if got := f.count(slow); got != 1 {
			t.Errorf("%d exchanges of one key at once, want 1", got)
		}
	})
}

func TestPrefetchIsRetriedUntilItSucceeds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeEntra{}
		f.failWith(&exchange.Error{Kind: exchange.UnknownIdentity, Code: 700016, Detail: "unknown"})
		cfg := tokens.Config{Exchanger: f}
		cfg.Prefetch = prefetch(resource)
		s := newService(t, cfg)
		defer run(t, s)()
		time.Sleep(time.Hour)
		// Backoffs of 10, 20, 40, 80 s and then two minutes.
		if got := f.count(resource); got < 25 || got > 40 {
			t.Errorf("%d tries in an hour, want about 30", got)
		}
		f.failWith(nil)
		time.Sleep(3 * time.Minute)
		if got, err := ask(t, s, tokens.Request{}); err != nil || got.Source != tokens.SourceCache {
			t.Errorf("3 minutes after it was fixed: source %s, error %v", got.Source, err)
		}
	})
}

func TestRunWaitsForExchangesWithCallers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeEntra{latency: 3 * time.Second}
		cfg := tokens.Config{Exchanger: f}
		cfg.Prefetch = prefetch("https://no-caller.example.test")
		s := newService(t, cfg)
		stop := run(t, s)
		synctest.Wait()
		var wg sync.WaitGroup
		wg.Go(func() { wantAnswer(t, s, tokens.Request{}, tokens.SourceEntra, 1, 3*time.Second) })
		synctest.Wait()
		began := time.Now()
		stop()
		if got := time.Since(began); got != 3*time.Second {
			t.Errorf("Run took %s to end, want 3s: as long as the exchange that a caller waits for", got)
		}
		wg.Wait()
		// The service answers after Run has ended, too.
		wantAnswer(t, s, tokens.Request{}, tokens.SourceCache, 1, 0)
		wantAnswer(t, s, tokens.Request{Resource: "https://late.example.test"}, tokens.SourceEntra, 1, 3*time.Second)
	})
}

func TestRunCancelsExchangesWithoutCallers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeEntra{}
		f.hangs(true)
		cfg := tokens.Config{Exchanger: f}
		cfg.Prefetch = prefetch(resource)
		s := newService(t, cfg)
		stop := run(t, s)
		synctest.Wait()
		began := time.Now()
		stop()
		if got := time.Since(began); got != 0 {
			t.Errorf("Run took %s to end", got)
		}
		f.hangs(false)
		wantAnswer(t, s, tokens.Request{}, tokens.SourceEntra, 2, 0) // not from the dropped exchange
	})
}

func TestRunIsNotConcurrent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := fakeService(t, &fakeEntra{})
		defer run(t, s)()
		synctest.Wait()
		if err := s.Run(t.Context()); err == nil {
			t.Error("no error")
		}
	})
}

// If Entra grants tokens with a lifetime of a second, prefetch does not ask for one each second.
func TestPrefetchOfShortLivedTokensIsRateLimited(t *testing.T) {
	for _, life := range []time.Duration{time.Second, 10 * time.Second, 40 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			f := &fakeEntra{life: life}
			cfg := tokens.Config{Exchanger: f}
			cfg.Prefetch = prefetch(resource)
			s := newService(t, cfg)
			defer run(t, s)()
			time.Sleep(10*time.Minute - 1)
			synctest.Wait()
			if got, most := f.count(resource), int(10*time.Minute/tokens.FreshInterval); got < most/2 || got > most {
				t.Errorf("tokens of %s: %d exchanges in 10 minutes, want at most %d", life, got, most)
			}
		})
	}
}
