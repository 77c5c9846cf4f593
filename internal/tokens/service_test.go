package tokens_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/exchange"
	"imds-oidc-proxy/internal/tokens"
)

// wantAnswer makes a request and checks that it gets the nth token of its resource, from
// source, after took.
func wantAnswer(t *testing.T, s *tokens.Service, r tokens.Request, source tokens.Source, n int, took time.Duration) {
	t.Helper()
	began := time.Now()
	got, err := ask(t, s, r)
	if err != nil {
		t.Fatalf("got error %v, want token %d from %s", err, n, source)
	}
	if want := fmt.Sprintf("|%d", n); !strings.HasSuffix(got.Token.AccessToken, want) || got.Source != source {
		t.Errorf("got %s from %s, want token %d from %s", got.Token.AccessToken, got.Source, n, source)
	}
	if elapsed := time.Since(began); elapsed != took {
		t.Errorf("answered after %s, want %s", elapsed, took)
	}
}

func wantKind(t *testing.T, err error, want exchange.Kind) *exchange.Error {
	t.Helper()
	e, ok := errors.AsType[*exchange.Error](err)
	if !ok {
		t.Fatalf("got error %v, want an *exchange.Error of kind %s", err, want)
	}
	if e.Kind != want {
		t.Fatalf("got kind %s (%v), want %s", e.Kind, e, want)
	}
	return e
}

func TestTokenIsRefreshedInTheBackground(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeEntra{latency: 300 * time.Millisecond}
		s := fakeService(t, f)
		wantAnswer(t, s, tokens.Request{}, tokens.SourceEntra, 1, f.latency)
		got, _ := ask(t, s, tokens.Request{})

		// Half of an hour, with the jitter in the middle.
		due := got.Token.ExpiresOn.Add(-30 * time.Minute)
		time.Sleep(time.Until(due) - 1)
		wantAnswer(t, s, tokens.Request{}, tokens.SourceCache, 1, 0)
		synctest.Wait()
		if got := f.count(resource); got != 1 {
			t.Errorf("1 ns before it is due: %d exchanges, want 1", got)
		}
		time.Sleep(time.Nanosecond)
		wantAnswer(t, s, tokens.Request{}, tokens.SourceCache, 1, 0)
		time.Sleep(f.latency)
		synctest.Wait()
		wantAnswer(t, s, tokens.Request{}, tokens.SourceCache, 2, 0)
		if got := f.count(resource); got != 2 {
			t.Errorf("after it was due: %d exchanges, want 2", got)
		}
	})
}

func TestStaleTokenIsNotReturned(t *testing.T) {
	for _, c := range []struct {
		name         string
		life, margin time.Duration
	}{
		{"an hour: the margin", time.Hour, tokens.StaleMargin},
		{"ten minutes: a quarter of the lifetime", 10 * time.Minute, 150 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fakeEntra{life: c.life, latency: 300 * time.Millisecond}
				s := fakeService(t, f)
				got, err := ask(t, s, tokens.Request{})
				if err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Until(got.Token.ExpiresOn.Add(-c.margin)))
				wantAnswer(t, s, tokens.Request{}, tokens.SourceEntra, 2, f.latency)
			})
			synctest.Test(t, func(t *testing.T) {
				f := &fakeEntra{life: c.life, latency: 300 * time.Millisecond}
				s := fakeService(t, f)
				got, err := ask(t, s, tokens.Request{})
				if err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Until(got.Token.ExpiresOn.Add(-c.margin)) - 1)
				wantAnswer(t, s, tokens.Request{}, tokens.SourceCache, 1, 0)
				time.Sleep(time.Second)
			})
		})
	}
}

func TestStaleTokenIsReturnedWhileEntraHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeEntra{}
		s := fakeService(t, f)
		got, err := ask(t, s, tokens.Request{})
		if err != nil {
			t.Fatal(err)
		}
		f.hangs(true)
		time.Sleep(time.Until(got.Token.ExpiresOn.Add(-tokens.StaleMargin)))
		wantAnswer(t, s, tokens.Request{}, tokens.SourceCache, 1, tokens.RefreshWait)
		wantAnswer(t, s, tokens.Request{}, tokens.SourceCache, 1, 0) // the wait counts from the start of the exchange
		time.Sleep(tokens.ExchangeTimeout)
		wantAnswer(t, s, tokens.Request{}, tokens.SourceCache, 1, 0) // the failure is remembered

		time.Sleep(time.Until(got.Token.ExpiresOn.Add(-exchange.MinLife)) - 1)
		wantAnswer(t, s, tokens.Request{}, tokens.SourceCache, 1, 0)
		time.Sleep(time.Nanosecond)
		began := time.Now()
		_, err = ask(t, s, tokens.Request{})
		wantKind(t, err, exchange.DeadlineExceeded)
		if got := time.Since(began); got > tokens.ExchangeTimeout {
			t.Errorf("without a token: answered after %s, want within %s", got, tokens.ExchangeTimeout)
		}
		time.Sleep(tokens.ExchangeTimeout)
	})
}

func TestFirstRequestsOfAKeyShareOneExchange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeEntra{latency: time.Second}
		s := fakeService(t, f)
		var wg sync.WaitGroup
		for range 1000 {
			wg.Go(func() {
				if _, err := ask(t, s, tokens.Request{}); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if got := f.count(resource); got != 1 {
			t.Errorf("got %d exchanges, want 1", got)
		}
	})
}

func TestNoRequestWaitsForAnotherKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeEntra{}
		f.hang = func(c call) bool { return c.resource == "https://slow.example.test" }
		s := fakeService(t, f)
		var wg sync.WaitGroup
		wg.Go(func() {
			_, err := ask(t, s, tokens.Request{Resource: "https://slow.example.test"})
			wantKind(t, err, exchange.DeadlineExceeded)
		})
		synctest.Wait()
		wantAnswer(t, s, tokens.Request{}, tokens.SourceEntra, 1, 0)
		wantAnswer(t, s, tokens.Request{}, tokens.SourceCache, 1, 0)
		wg.Wait()
	})
}

func TestCallerThatLeavesDoesNotCancelTheExchange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeEntra{latency: time.Second}
		s := fakeService(t, f)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		var wg sync.WaitGroup
		wg.Go(func() {
			began := time.Now()
			_, err := s.Token(ctx, tokens.Request{ClientID: clientID, Resource: resource})
			wantKind(t, err, exchange.DeadlineExceeded)
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("the error of a caller that left does not wrap the error of its context: %v", err)
			}
			if got := time.Since(began); got != 100*time.Millisecond {
				t.Errorf("left after %s, want 100ms", got)
			}
		})
		synctest.Wait()
		wantAnswer(t, s, tokens.Request{}, tokens.SourceEntra, 1, time.Second)
		wg.Wait()
		if got := f.count(resource); got != 1 {
			t.Errorf("got %d exchanges, want 1", got)
		}
	})
}

func TestFreshRequestsAreRateLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeEntra{latency: 300 * time.Millisecond}
		s := fakeService(t, f)
		fresh := tokens.Request{Fresh: true}
		wantAnswer(t, s, fresh, tokens.SourceEntra, 1, f.latency)
		for range 100 {
			wantAnswer(t, s, fresh, tokens.SourceCache, 1, 0)
		}
		time.Sleep(tokens.FreshInterval - 1)
		wantAnswer(t, s, fresh, tokens.SourceCache, 1, 0)
		time.Sleep(time.Nanosecond)
		wantAnswer(t, s, fresh, tokens.SourceEntra, 2, f.latency)
		wantAnswer(t, s, tokens.Request{}, tokens.SourceCache, 2, 0)

		f.hangs(true)
		time.Sleep(tokens.FreshInterval)
		wantAnswer(t, s, fresh, tokens.SourceCache, 2, tokens.RefreshWait)
		time.Sleep(tokens.ExchangeTimeout)
	})
}

func TestKeysHaveTheirOwnTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeEntra{}
		s := fakeService(t, f)
		const other = "bbbbbbbb-0000-4000-8000-000000000002"
		for _, r := range []tokens.Request{
			{},
			{Resource: resource + "/"},
			{Resource: azure.Resource(strings.ToUpper(resource))},
			{ClientID: other},
		} {
			if got, err := ask(t, s, r); err != nil || got.Source != tokens.SourceEntra {
				t.Errorf("%+v: got source %s, error %v; want a token from Entra", r, got.Source, err)
			}
		}
	})
}

func TestNewLimitsPrefetch(t *testing.T) {
	list := make([]azure.Resource, tokens.MaxTokens+1)
	for _, c := range []struct {
		resources []azure.Resource
		fails     bool
	}{{list, true}, {list[1:], false}} {
		_, err := tokens.New(tokens.Config{Exchanger: &fakeEntra{}, Prefetch: prefetch(c.resources...)})
		if (err != nil) != c.fails || err != nil && !strings.Contains(err.Error(), "--prefetch") {
			t.Errorf("%d resources: got error %v", len(c.resources), err)
		}
	}
}
