package tokens_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/exchange"
	"imds-oidc-proxy/internal/tokens"
)

// record holds the calls of an observer, in order.
type record struct {
	mu   sync.Mutex // guards seen
	seen []string
}

func (r *record) add(event ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seen = append(r.seen, fmt.Sprint(event...))
}

func (r *record) all() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.seen)
}

// watched returns a configuration whose observer writes its calls into the record.
func watched(f *fakeEntra) (tokens.Config, *record) {
	seen := new(record)
	cfg := tokens.Config{Exchanger: f}
	cfg.Observer = tokens.Observer{
		Exchanged: func(took time.Duration, err *exchange.Error) {
			label := "ok"
			if err != nil {
				label = err.Label()
			}
			seen.add("exchange ", label, " ", took)
		},
		Refreshed: func(err *exchange.Error) { seen.add("refresh ", err == nil) },
		Limited:   func(limit tokens.Limit) { seen.add("limited ", string(limit)) },
	}
	return cfg, seen
}

// TestObserver: the observer gets each try, also one that is retried with success, and each
// refresh.
func TestObserver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeEntra{latency: 300 * time.Millisecond, fault: func(c call) *exchange.Error {
			switch c.n {
			case 1:
				return &exchange.Error{Kind: exchange.FederationMismatch, Code: 70021, Retry: exchange.RetrySoon}
			case 4:
				return &exchange.Error{Kind: exchange.Unavailable}
			}
			return nil
		}}
		cfg, seen := watched(f)
		s := newService(t, cfg)
		ask(t, s, tokens.Request{}) // fails once, and is retried with success
		ask(t, s, tokens.Request{}) // from the cache
		for range 2 {               // a refresh that succeeds, and one that fails
			time.Sleep(30 * time.Minute)
			ask(t, s, tokens.Request{})
			time.Sleep(time.Second)
		}
		synctest.Wait()
		want := []string{
			"exchange 70021 300ms", "exchange ok 300ms",
			"exchange ok 300ms", "refresh true",
			"exchange unavailable 300ms", "refresh false",
		}
		if got := seen.all(); !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}

// TestDroppedExchangeIsNotObserved: an exchange that is canceled at the end of the proxy says
// nothing about Entra.
func TestDroppedExchangeIsNotObserved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeEntra{}
		f.hangs(true)
		cfg, seen := watched(f)
		s := newService(t, cfg)
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- s.Run(ctx) }()
		impatient, leave := context.WithTimeout(t.Context(), time.Second)
		defer leave()
		s.Token(impatient, tokens.Request{ClientID: clientID, Resource: resource})
		stop()
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got := seen.all(); len(got) != 0 {
			t.Errorf("got %q, want nothing", got)
		}
	})
}

// TestObserverCountsLimitedRequests: the observer gets the limit of each refused request.
func TestObserverCountsLimitedRequests(t *testing.T) {
	for _, c := range []struct {
		limit   tokens.Limit
		exhaust func(t *testing.T, f *fakeEntra, s *tokens.Service) // before the request that is refused
	}{
		{tokens.ErrExchangeRate, func(t *testing.T, _ *fakeEntra, s *tokens.Service) {
			for i := range tokens.BudgetBurst - 2*tokens.ReservedTries {
				ask(t, s, numbered("", i))
			}
		}},
		{tokens.ErrRunningExchanges, func(t *testing.T, f *fakeEntra, s *tokens.Service) {
			f.hangs(true)
			for i := range tokens.MaxPlaces * 3 / 4 {
				go s.Token(t.Context(), numbered("", i))
				time.Sleep(time.Second / tokens.BudgetRate)
			}
		}},
		{tokens.ErrOverloaded, func(t *testing.T, f *fakeEntra, s *tokens.Service) {
			f.hangs(true)
			for range tokens.DefaultMaxWaiting {
				go s.Token(t.Context(), numbered("", 999))
			}
		}},
	} {
		t.Run(string(c.limit), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fakeEntra{}
				cfg, seen := watched(f)
				cfg.Observer.Exchanged = nil
				s := newService(t, cfg)
				c.exhaust(t, f, s)
				synctest.Wait()
				if got := seen.all(); len(got) != 0 {
					t.Errorf("before a request is refused: got %q", got)
				}
				_, err := ask(t, s, numbered("", 999))
				wantKind(t, err, exchange.Throttled)
				if got, want := seen.all(), []string{"limited " + string(c.limit)}; !slices.Equal(got, want) {
					t.Errorf("got %q, want %q", got, want)
				}
				time.Sleep(tokens.ExchangeTimeout)
			})
		})
	}
}

func TestStats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := fakeService(t, &fakeEntra{life: time.Hour})
		if got := s.Stats(); got != (tokens.Stats{}) {
			t.Errorf("an empty cache: got %+v", got)
		}
		soonest := time.Now().Add(time.Hour)
		for _, r := range []azure.Resource{"https://a.example.test", "https://b.example.test"} {
			ask(t, s, tokens.Request{Resource: r})
			time.Sleep(time.Minute)
		}
		got := s.Stats()
		if got.Entries != 2 || !got.SoonestExpiry.Equal(soonest) {
			t.Errorf("got %+v, want 2 entries, the first expires at %s", got, soonest)
		}
	})
}
