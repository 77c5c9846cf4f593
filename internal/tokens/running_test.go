package tokens_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"imds-oidc-proxy/internal/exchange"
	"imds-oidc-proxy/internal/tokens"
)

// slowLog blocks each line until the test receives it.
type slowLog struct {
	zapcore.Core
	taken chan zapcore.Entry
}

func (l slowLog) Check(e zapcore.Entry, c *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	return c.AddCore(e, l)
}
func (l slowLog) Enabled(zapcore.Level) bool        { return true }
func (l slowLog) With([]zapcore.Field) zapcore.Core { return l }
func (l slowLog) Write(e zapcore.Entry, _ []zapcore.Field) error {
	l.taken <- e
	return nil
}

// A log that blocks (a full pipe, a disk that hangs) delays no answer. Run waits for the line
// before it ends.
func TestSlowLogDelaysNoAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeEntra{}
		f.failWith(&exchange.Error{Kind: exchange.Unavailable, Detail: "down"})
		log := slowLog{zapcore.NewNopCore(), make(chan zapcore.Entry)}
		cfg := tokens.Config{Exchanger: f}
		cfg.Log = zap.New(log)
		s := newService(t, cfg)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- s.Run(ctx) }()
		if e := <-log.taken; e.Message != "connected to entra" {
			t.Fatalf("the first line is %q", e.Message)
		}
		began := time.Now()
		_, err := ask(t, s, tokens.Request{})
		wantKind(t, err, exchange.Unavailable)
		if took := time.Since(began); took != 0 {
			t.Errorf("answered after %s", took)
		}
		cancel()
		synctest.Wait()
		select {
		case <-ended:
			t.Error("Run ended before the line was written")
		default:
		}
		if e := <-log.taken; e.Message != "token exchange failed" {
			t.Errorf("the next line is %q", e.Message)
		}
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// An exchange that ignores its timeout does not keep Run from ending.
func TestRunEndsIfAnExchangeHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stuck := make(chan struct{})
		cfg := tokens.Config{Exchanger: exchangeFunc(func() (exchange.Grant, error) {
			<-stuck
			return exchange.Grant{}, &exchange.Error{Kind: exchange.Unavailable}
		})}
		cfg.Prefetch = prefetch(resource)
		s := newService(t, cfg)
		stop := run(t, s)
		synctest.Wait()
		began := time.Now()
		stop()
		if got, want := time.Since(began), tokens.ExchangeTimeout+tokens.RecordTime; got != want {
			t.Errorf("Run took %s to end, want %s", got, want)
		}
		close(stuck)
	})
}

// callers starts n callers that wait for r. errs waits for them and returns their errors.
func callers(t *testing.T, s *tokens.Service, r tokens.Request, n int) (errs func() []error) {
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

// At the limit on waiting callers, a further caller is refused at once, a caller with a cached
// token is answered, and a caller that wants another token displaces one.
func TestWaitingCallersAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeEntra{}
		cfg, seen := watched(f)
		cfg.Observer.Exchanged = nil
		s := newService(t, cfg)
		wantAnswer(t, s, tokens.Request{}, tokens.SourceEntra, 1, 0)
		f.latency = 6 * time.Second
		slow := tokens.Request{ClientID: clientID, Resource: "https://slow.example.test"}
		errs := callers(t, s, slow, tokens.DefaultMaxWaiting)
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
			t.Errorf("%d of %d callers were displaced, want 1", got, len(all))
		}
		if got := seen.all(); len(got) != 10+1 {
			t.Errorf("%d callers are counted as refused, want 10 and the displaced one", len(got))
		}
		// All places are free again.
		again := callers(t, s, tokens.Request{ClientID: clientID, Resource: "https://slower.example.test"}, tokens.DefaultMaxWaiting)
		if got := overloaded(again()); got != 0 {
			t.Errorf("the next callers: %d of %d were refused", got, tokens.DefaultMaxWaiting)
		}
	})
}

// Callers of two resources share the limit: neither group keeps out the other.
func TestWaitingCallersShareTheLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeEntra{latency: time.Second}
		const places = 10
		s := newService(t, tokens.Config{Exchanger: f, MaxWaiting: places})
		first := callers(t, s, numbered("", 1), places)
		second := callers(t, s, numbered("", 2), places)
		if got := overloaded(first()); got != places/2 {
			t.Errorf("the first resource: %d of %d callers were refused, want half", got, places)
		}
		if got := overloaded(second()); got != places/2 {
			t.Errorf("the second resource: %d of %d callers were refused, want half", got, places)
		}
	})
}

// A caller with a fallback that finds no place gets the cached token, and places are free again
// after their callers have left.
func TestPlacesOfCallersThatLeaveAreFree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeEntra{}
		s := newService(t, tokens.Config{Exchanger: f, MaxWaiting: 1})
		wantAnswer(t, s, tokens.Request{}, tokens.SourceEntra, 1, 0)
		f.hangs(true)
		time.Sleep(time.Hour - tokens.StaleMargin)
		errs := callers(t, s, tokens.Request{ClientID: clientID, Resource: resource}, 1)
		wantAnswer(t, s, tokens.Request{}, tokens.SourceCache, 1, 0) // no place to wait for a new token
		if err := errs()[0]; err != nil {
			t.Errorf("with a fallback: %v", err)
		}
		errs = callers(t, s, numbered("", 1), 1)
		_, err := s.Token(t.Context(), numbered("", 1))
		wantOverloaded(t, err)
		errs()
		time.Sleep(tokens.ExchangeTimeout)
	})
}

// The exchange for a caller that may not wait runs all the same: its next request finds the
// token.
func TestRefusedCallerFindsItsTokenLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeEntra{latency: time.Second}
		s := newService(t, tokens.Config{Exchanger: f, MaxWaiting: 1})
		errs := callers(t, s, numbered("", 1), 1)
		_, err := s.Token(t.Context(), numbered("", 2))
		wantOverloaded(t, err)
		errs()
		synctest.Wait()
		wantAnswer(t, s, numbered("", 2), tokens.SourceCache, 1, 0)
	})
}
