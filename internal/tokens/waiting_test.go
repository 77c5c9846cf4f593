package tokens_test

import (
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"imds-oidc-proxy/internal/exchange"
	"imds-oidc-proxy/internal/tokens"
)

// crowd has n callers wait for a resource, and returns their errors when they are over.
func crowd(t *testing.T, s *tokens.Service, r tokens.Request, n int) (errs func() []error) {
	t.Helper()
	var wg sync.WaitGroup
	var mu sync.Mutex
	var all []error
	for range n {
		wg.Go(func() {
			_, err := s.Token(t.Context(), r)
			mu.Lock()
			defer mu.Unlock()
			all = append(all, err)
		})
	}
	synctest.Wait()
	return func() []error { wg.Wait(); return all }
}

func wantOverloaded(t *testing.T, err error) {
	t.Helper()
	e := wantKind(t, err, exchange.Throttled)
	if !errors.Is(err, tokens.ErrOverloaded) || e.RetryAfter <= 0 {
		t.Errorf("got %v, Retry-After %s, want one that is ErrOverloaded", err, e.RetryAfter)
	}
}

func overloaded(errs []error) (n int) {
	for _, err := range errs {
		if errors.Is(err, tokens.ErrOverloaded) {
			n++
		}
	}
	return n
}

// The one caller more than may wait is refused at once, while one with a cached token is
// answered, and one that wants another token takes the place of one of the crowd.
func TestCallersThatWaitAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeEntra{}
		s := fakeService(t, f)
		wantAnswer(t, s, tokens.Request{}, tokens.SourceEntra, 1, 0)
		f.latency = 6 * time.Second
		slow := tokens.Request{ClientID: clientID, Resource: "https://slow.example.test"}
		errs := crowd(t, s, slow, tokens.DefaultMaxWaiting)
		for range 10 {
			began := time.Now()
			_, err := s.Token(t.Context(), slow)
			if wantOverloaded(t, err); time.Since(began) != 0 {
				t.Errorf("refused after %s", time.Since(began))
			}
		}
		wantAnswer(t, s, tokens.Request{}, tokens.SourceCache, 1, 0)
		wantAnswer(t, s, tokens.Request{Resource: "https://other.example.test"}, tokens.SourceEntra, 1, f.latency)
		all := errs()
		if got := overloaded(all); got != 1 || len(all) != tokens.DefaultMaxWaiting {
			t.Errorf("%d of %d callers lost their place, want 1", got, len(all))
		}
		// All places are free again.
		again := crowd(t, s, tokens.Request{ClientID: clientID, Resource: "https://slower.example.test"}, tokens.DefaultMaxWaiting)
		if got := overloaded(again()); got != 0 {
			t.Errorf("the next crowd: %d of %d callers were refused", got, tokens.DefaultMaxWaiting)
		}
	})
}

// Two crowds share the places, and neither keeps out the other.
func TestCrowdsShareThePlacesOfCallers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeEntra{latency: time.Second}
		const places = 10
		s := newService(t, tokens.Config{Exchanger: f, MaxWaiting: places})
		first := crowd(t, s, numbered("", 1), places)
		second := crowd(t, s, numbered("", 2), places)
		if got := overloaded(first()); got != places/2 {
			t.Errorf("the first crowd: %d of %d callers were refused, want half", got, places)
		}
		if got := overloaded(second()); got != places/2 {
			t.Errorf("the second crowd: %d of %d callers were refused, want half", got, places)
		}
	})
}

// Callers that leave, and callers with a token to fall back on, need no place for long.
func TestPlacesOfCallersThatLeaveAreFree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeEntra{}
		s := newService(t, tokens.Config{Exchanger: f, MaxWaiting: 1})
		wantAnswer(t, s, tokens.Request{}, tokens.SourceEntra, 1, 0)
		f.hangs(true)
		time.Sleep(time.Hour - tokens.StaleMargin)
		errs := crowd(t, s, tokens.Request{ClientID: clientID, Resource: resource}, 1)
		wantAnswer(t, s, tokens.Request{}, tokens.SourceCache, 1, 0) // no place: not for a better token
		if err := errs()[0]; err != nil {
			t.Errorf("with a token to fall back on: %v", err)
		}
		errs = crowd(t, s, numbered("", 1), 1)
		_, err := s.Token(t.Context(), numbered("", 1))
		wantOverloaded(t, err)
		errs()
		time.Sleep(tokens.ExchangeTimeout)
	})
}

// A request that may not wait still has its token exchanged: the next one finds it.
func TestRefusedCallerFindsItsTokenLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeEntra{latency: time.Second}
		s := newService(t, tokens.Config{Exchanger: f, MaxWaiting: 1})
		errs := crowd(t, s, numbered("", 1), 1)
		_, err := s.Token(t.Context(), numbered("", 2))
		wantOverloaded(t, err)
		errs()
		synctest.Wait()
		wantAnswer(t, s, numbered("", 2), tokens.SourceCache, 1, 0)
	})
}
