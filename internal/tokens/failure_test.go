package tokens_test

import (
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"imds-oidc-proxy/internal/exchange"
	"imds-oidc-proxy/internal/tokens"
)

// During an outage, many callers that retry share the exchanges of one backoff.
func TestCallersShareRetriesDuringAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeEntra{latency: 100 * time.Millisecond}
		f.failWith(&exchange.Error{Kind: exchange.Unavailable, Detail: "down"})
		s := fakeService(t, f)
		var wg sync.WaitGroup
		for range 500 {
			wg.Go(func() {
				for range 10 { // ten seconds of one request a second
					_, err := ask(t, s, tokens.Request{})
					wantKind(t, err, exchange.Unavailable)
					time.Sleep(time.Second)
				}
			})
		}
		wg.Wait()
		// At 0, 1, 2, 4 and 8 s, with the jitter in the middle.
		if got := f.count(resource); got != 5 {
			t.Errorf("5,000 requests in ten seconds cost %d exchanges, want 5", got)
		}
	})
}

// A fleet that failed at the same time must not retry at the same time: the pauses between the
// tries of one exchange have jitter, and so has the backoff between exchanges.
func TestRetriesHaveJitter(t *testing.T) {
	for _, retryAfter := range seconds(0, 10) {
		var pauses [2][]time.Duration
		for i, jitter := range []float64{0, 0.999} {
			synctest.Test(t, func(t *testing.T) {
				f := &fakeEntra{}
				f.failWith(&exchange.Error{Kind: exchange.Unavailable, RetryAfter: retryAfter, Detail: "down", Retry: exchange.RetrySoon})
				s := fakeService(t, f)
				s.FixJitter(jitter)
				_, err := ask(t, s, tokens.Request{})
				pauses[i] = append(pauses[i], wantKind(t, err, exchange.Unavailable).RetryAfter)
				calls := f.all()[resource]
				for n := range calls[1:] {
					pauses[i] = append(pauses[i], calls[n+1].Sub(calls[n]))
				}
			})
		}
		for n, early := range pauses[0] {
			if late := pauses[1][n]; late < early*14/10 {
				t.Errorf("Retry-After %s: pause %d is between %s and %s, want more jitter", retryAfter, n, early, late)
			}
		}
	}
}

func TestBackoff(t *testing.T) {
	for _, c := range []struct {
		name     string
		err      *exchange.Error
		backoffs []time.Duration // with the jitter in the middle
	}{
		{"fault", &exchange.Error{Kind: exchange.Unavailable}, seconds(0.5, 1, 2, 4, 8, 16, 30, 30)},
		{"permanent", &exchange.Error{Kind: exchange.UnknownIdentity}, seconds(10, 20, 40, 80, 120, 120)},
		{"no federated token", &exchange.Error{Kind: exchange.FederatedTokenUnusable}, seconds(1, 1, 1, 1, 1, 1)},
		{"a federated token that Entra refuses", &exchange.Error{Kind: exchange.FederatedTokenUnusable, Code: 700024}, seconds(0.5, 1, 2)},
		// What Entra asks for, plus half of a jitter of half as long, which doubles.
		{"Retry-After", &exchange.Error{Kind: exchange.Throttled, RetryAfter: 10 * time.Second}, seconds(12.5, 15, 20, 30, 40, 40)},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fakeEntra{}
				f.failWith(c.err)
				s := fakeService(t, f)
				for i, backoff := range c.backoffs {
					_, err := ask(t, s, tokens.Request{})
					e := wantKind(t, err, c.err.Kind)
					if e.Kind.Permanent() && e.RetryAfter != 0 {
						t.Error("a permanent failure has a Retry-After")
					}
					if !e.Kind.Permanent() && e.RetryAfter != backoff {
						t.Errorf("failure %d: Retry-After %s, want %s", i+1, e.RetryAfter, backoff)
					}
					var early time.Duration // callers wait for the end of a throttle
					if c.err.Kind == exchange.Throttled {
						early = tokens.MaxPause
					}
					time.Sleep(backoff - early - 1)
					_, err = ask(t, s, tokens.Request{})
					if e := wantKind(t, err, c.err.Kind); !e.Kind.Permanent() && e.RetryAfter != early+1 {
						t.Errorf("%s before the end: Retry-After %s", early+1, e.RetryAfter)
					}
					if got := f.count(resource); got != i+1 {
						t.Fatalf("%s before the end of backoff %d: %d exchanges", early+1, i+1, got)
					}
					time.Sleep(early + 1)
				}
			})
		})
	}
}

func seconds(n ...float64) []time.Duration {
	out := make([]time.Duration, len(n))
	for i, s := range n {
		out[i] = time.Duration(s * float64(time.Second))
	}
	return out
}

func TestBackoffStartsAgainAfterFailureLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeEntra{}
		f.failWith(&exchange.Error{Kind: exchange.Unavailable, Detail: "down"})
		s := fakeService(t, f)
		for range 3 {
			_, err := ask(t, s, tokens.Request{})
			if e := wantKind(t, err, exchange.Unavailable); e.RetryAfter != time.Second/2 {
				t.Errorf("Retry-After %s, want 500ms", e.RetryAfter)
			}
			time.Sleep(time.Second/2 + tokens.FailureLife)
		}
	})
}

func TestSuccessResetsTheBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeEntra{}
		f.failWith(&exchange.Error{Kind: exchange.Unavailable, Detail: "down"})
		s := fakeService(t, f)
		_, err := ask(t, s, tokens.Request{})
		wantKind(t, err, exchange.Unavailable)
		f.failWith(nil)
		time.Sleep(time.Second)
		wantAnswer(t, s, tokens.Request{}, tokens.SourceEntra, 2, 0)
		// While a failure is remembered, no caller waits for a new token.
		time.Sleep(tokens.FreshInterval)
		wantAnswer(t, s, tokens.Request{Fresh: true}, tokens.SourceEntra, 3, 0)
	})
}

// The long backoff of a failed refresh ends when the token ends.
func TestRefreshBackoffEndsWithTheToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeEntra{}
		s := fakeService(t, f)
		got, err := ask(t, s, tokens.Request{})
		if err != nil {
			t.Fatal(err)
		}
		f.failWith(&exchange.Error{Kind: exchange.Unavailable, Detail: "down"})
		end := got.Token.ExpiresOn.Add(-exchange.MinLife)
		time.Sleep(time.Until(end.Add(-5 * time.Second)))
		wantAnswer(t, s, tokens.Request{}, tokens.SourceCache, 1, 0)
		f.failWith(nil)
		time.Sleep(5*time.Second - 1)
		wantAnswer(t, s, tokens.Request{}, tokens.SourceCache, 1, 0)
		time.Sleep(time.Nanosecond)
		wantAnswer(t, s, tokens.Request{}, tokens.SourceEntra, 3, 0)
	})
}

func TestTransientFailureIsRetried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeEntra{}
		f.fault = func(c call) *exchange.Error {
			if c.n < tokens.MaxTries {
				return &exchange.Error{Kind: exchange.FederationMismatch, Code: 700213, Retry: exchange.RetrySoon}
			}
			return nil
		}
		s := fakeService(t, f)
		// Pauses of 0.5 s and 1.5 s, with the jitter in the middle.
		wantAnswer(t, s, tokens.Request{}, tokens.SourceEntra, tokens.MaxTries, 2*time.Second)
	})
}

func TestTriesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeEntra{}
		f.failWith(&exchange.Error{Kind: exchange.FederationMismatch, Code: 700213, Retry: exchange.RetrySoon})
		s := fakeService(t, f)
		_, err := ask(t, s, tokens.Request{})
		wantKind(t, err, exchange.FederationMismatch)
		if got := f.count(resource); got != tokens.MaxTries {
			t.Errorf("%d tries, want %d", got, tokens.MaxTries)
		}
		// While the key keeps failing, each exchange has one try: callers retry themselves.
		time.Sleep(time.Minute)
		_, err = ask(t, s, tokens.Request{})
		wantKind(t, err, exchange.FederationMismatch)
		if got := f.count(resource); got != tokens.MaxTries+1 {
			t.Errorf("%d tries, want %d", got, tokens.MaxTries+1)
		}
	})
}

// The Retry-After of a fault is a pause between tries if it is short, and ends the exchange if it
// is long.
func TestRetryAfterOfAFaultIsObeyed(t *testing.T) {
	for _, c := range []struct {
		asked time.Duration
		gaps  []time.Duration // with the jitter in the middle
	}{
		{time.Second, seconds(1.25, 1.25)},
		{3 * time.Second, seconds(3.75, 3.75)},
		{5 * time.Second, seconds(6.25)},
		{7 * time.Second, nil},
	} {
		synctest.Test(t, func(t *testing.T) {
			f := &fakeEntra{}
			f.failWith(&exchange.Error{Kind: exchange.Unavailable, RetryAfter: c.asked, Detail: "503", Retry: exchange.RetrySoon})
			s := fakeService(t, f)
			_, err := ask(t, s, tokens.Request{})
			wantKind(t, err, exchange.Unavailable)
			if got := f.gaps(); !slices.Equal(got, c.gaps) {
				t.Errorf("Retry-After %s: tries have pauses of %s, want %s", c.asked, got, c.gaps)
			}
		})
	}
}

func TestExchangeTimesOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeEntra{}
		f.hangs(true)
		s := fakeService(t, f)
		began := time.Now()
		_, err := ask(t, s, tokens.Request{})
		wantKind(t, err, exchange.DeadlineExceeded)
		if got := time.Since(began); got != tokens.ExchangeTimeout {
			t.Errorf("answered after %s, want %s", got, tokens.ExchangeTimeout)
		}
		if got, want := f.count(resource), 3; got != want { // 0, 8.5 and 18 s
			t.Errorf("%d tries, want %d", got, want)
		}
		began = time.Now()
		_, err = ask(t, s, tokens.Request{})
		wantKind(t, err, exchange.DeadlineExceeded)
		if got := time.Since(began); got != 0 {
			t.Errorf("the failure is not remembered: answered after %s", got)
		}
	})
}

// A caller's wait ends even if the exchange ignores its timeout.
func TestWaitTimesOutIfTheExchangeHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stuck := make(chan struct{})
		s := newService(t, tokens.Config{Exchanger: exchangeFunc(func() (exchange.Grant, error) {
			<-stuck
			return exchange.Grant{}, errors.New("at last")
		})})
		began := time.Now()
		_, err := ask(t, s, tokens.Request{})
		wantKind(t, err, exchange.DeadlineExceeded)
		if got, want := time.Since(began), tokens.ExchangeTimeout+tokens.RecordTime; got != want {
			t.Errorf("answered after %s, want %s", got, want)
		}
		close(stuck)
	})
}

func TestThrottledRefreshObeysRetryAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeEntra{}
		s := fakeService(t, f)
		defer run(t, s)()
		wantAnswer(t, s, tokens.Request{}, tokens.SourceEntra, 1, 0)
		f.failWith(&exchange.Error{Kind: exchange.Throttled, RetryAfter: 4 * time.Minute, Detail: "429"})
		time.Sleep(30*time.Minute + 4*time.Minute)
		synctest.Wait()
		if got := f.count(resource); got != 2 {
			t.Errorf("within Retry-After: %d exchanges, want 2", got)
		}
		wantAnswer(t, s, tokens.Request{}, tokens.SourceCache, 1, 0)
		f.failWith(nil)
		time.Sleep(2*time.Minute + 1)
		synctest.Wait()
		wantAnswer(t, s, tokens.Request{}, tokens.SourceCache, 3, 0)
	})
}
