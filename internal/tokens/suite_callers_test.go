package tokens_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/exchange"
	"imds-oidc-proxy/internal/tokens"
)

// TestCallersUnderRotatingFaults makes 20,000 requests for fifty keys, while Entra fails in
// different ways: each caller gets the token that it asked for or an *exchange.Error, in time.
func TestCallersUnderRotatingFaults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeEntra{life: 10 * time.Minute, latency: 50 * time.Millisecond}
		faults := []*exchange.Error{
			nil,
			{Kind: exchange.Throttled, RetryAfter: 5 * time.Second, Detail: "429"},
			&exchange.Error{Kind: exchange.Unavailable, Detail: "503", Retry: exchange.RetrySoon},
			{Kind: exchange.UnknownIdentity, Detail: "700016"},
			&exchange.Error{Kind: exchange.FederationMismatch, Detail: "700213", Retry: exchange.RetrySoon},
		}
		f.fault = func(c call) *exchange.Error {
			if e := faults[(c.n+len(c.resource))%len(faults)]; e != nil {
				copied := *e
				return &copied
			}
			return nil
		}
		f.hang = func(c call) bool { return c.n%7 == 3 }
		s := newService(t, tokens.Config{Exchanger: f})
		stop := run(t, s)

		var answers, failures int
		var mu sync.Mutex
		var wg sync.WaitGroup
		for caller := range 1000 {
			wg.Go(func() {
				random := rand.New(rand.NewPCG(uint64(caller), 0))
				for range 20 {
					ok := randomCall(t, s, random)
					mu.Lock()
					if answers++; !ok {
						failures++
					}
					mu.Unlock()
					time.Sleep(time.Duration(random.IntN(120)) * time.Second)
				}
			})
		}
		wg.Wait()
		stop()
		if failures == 0 || failures == answers {
			t.Errorf("%d failures in %d answers, want some and not all", failures, answers)
		}
		t.Logf("%d answers, %d of them failures", answers, failures)
	})
}

// randomCall makes one request, whose caller may leave early, and reports whether it got a
// token.
func randomCall(t *testing.T, s *tokens.Service, random *rand.Rand) bool {
	ctx, deadline := t.Context(), tokens.ExchangeTimeout
	if random.IntN(4) == 0 {
		deadline = time.Duration(random.IntN(3000)) * time.Millisecond
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, deadline)
		defer cancel()
	}
	clients := []azure.ClientID{clientID, "bbbbbbbb-0000-4000-8000-000000000002"}
	r := tokens.Request{
		ClientID: clients[random.IntN(2)],
		Resource: azure.Resource("https://" + string(rune('a'+random.IntN(25))) + ".example.test"),
		Fresh:    random.IntN(10) == 0,
	}
	began := time.Now()
	got, err := s.Token(ctx, r)
	if took := time.Since(began); took > deadline {
		t.Errorf("answered after %s, want at most %s", took, deadline)
	}
	if err != nil {
		if _, ok := errors.AsType[*exchange.Error](err); !ok {
			t.Errorf("error %v is not an *exchange.Error", err)
		}
		return false
	}
	checkFor(t, got.Token, r)
	if !time.Now().Before(got.Token.ExpiresOn) {
		t.Errorf("got a token that expired at %s", got.Token.ExpiresOn)
	}
	return true
}
