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

// slowLog takes a line whenever somebody reads the channel.
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

// A log that takes no line (a full pipe, a disk that hangs) keeps nobody from an answer;
// the end of the service waits for the line.
func TestSlowLogHoldsNobodyUp(t *testing.T) {
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

// An exchange that hangs in spite of its deadline does not keep the process.
func TestRunEndsWithoutAnExchangeThatDoesNot(t *testing.T) {
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
		cfg, seen := watched(f)
		cfg.Observer.Exchanged = nil
		s := newService(t, cfg)
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
		if got := seen.all(); len(got) != 10+1 {
			t.Errorf("%d callers are counted as refused, want 10 and the one that lost its place", len(got))
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
