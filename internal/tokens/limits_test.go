package tokens_test

import (
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"imds-oidc-proxy/internal/exchange"
	"imds-oidc-proxy/internal/tokens"
)

func TestCacheIsBoundedAndFailuresEvictNoToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeEntra{}
		s := fakeService(t, f)
		const more = 10
		for i := range tokens.MaxTokens + more {
			if _, err := ask(t, s, tokens.Request{Resource: fmt.Sprintf("https://%d.example.test", i)}); err != nil {
				t.Fatal(err)
			}
		}
		if got := s.Stats().Entries; got != tokens.MaxTokens {
			t.Errorf("holds %d tokens, want %d", got, tokens.MaxTokens)
		}
		f.failWith(&exchange.Error{Kind: exchange.InvalidResource, Detail: "unknown"})
		for i := range 2 * tokens.MaxTokens {
			_, err := ask(t, s, tokens.Request{Resource: fmt.Sprintf("https://bad%d.example.test", i)})
			wantKind(t, err, exchange.InvalidResource)
		}
		for i := more; i < tokens.MaxTokens+more; i++ {
			wantAnswer(t, s, tokens.Request{Resource: fmt.Sprintf("https://%d.example.test", i)}, tokens.SourceCache, 1, 0)
		}
	})
}

func TestTooManyExchangesAtOnceAreRefusedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeEntra{latency: time.Second}
		s := fakeService(t, f)
		wantAnswer(t, s, tokens.Request{}, tokens.SourceEntra, 1, time.Second)
		var wg sync.WaitGroup
		for i := range tokens.MaxRunning {
			wg.Go(func() {
				if _, err := ask(t, s, tokens.Request{Resource: fmt.Sprintf("https://%d.example.test", i)}); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		_, err := ask(t, s, tokens.Request{Resource: "https://more.example.test"})
		if e := wantKind(t, err, exchange.Throttled); e.RetryAfter <= 0 {
			t.Error("the refusal does not say when to come back")
		}
		wantAnswer(t, s, tokens.Request{}, tokens.SourceCache, 1, 0)
		wg.Wait()
		if _, err := ask(t, s, tokens.Request{Resource: "https://more.example.test"}); err != nil {
			t.Errorf("once there is room: %v", err)
		}
	})
}

// With no room for an exchange, what is held is handed out, and the schedule waits.
func TestNoRoomForExchangesCostsNoHeldToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeEntra{}
		s := fakeService(t, f)
		defer run(t, s)()
		wantAnswer(t, s, tokens.Request{}, tokens.SourceEntra, 1, 0)
		time.Sleep(30*time.Minute - time.Second)
		f.hangsFor(func(c call) bool { return c.resource != resource })
		for i := range tokens.MaxRunning {
			go s.Token(t.Context(), tokens.Request{ClientID: clientID, Resource: key50(i).Resource})
		}
		synctest.Wait()
		time.Sleep(time.Second) // the token is due
		wantAnswer(t, s, tokens.Request{Fresh: true}, tokens.SourceCache, 1, 0)
		synctest.Wait()
		if got := f.count(resource); got != 1 {
			t.Errorf("%d exchanges of the token that is due, want 1: there is no room for another", got)
		}
		time.Sleep(tokens.ExchangeTimeout)
		synctest.Wait()
		if got := f.count(resource); got != 2 {
			t.Errorf("%d exchanges once there was room, want 2", got)
		}
	})
}

// What a caller asks with is cut out of its request, which is not kept with it.
func TestCacheKeepsNoRequestAlive(t *testing.T) {
	const requests, size = 100, 1 << 20
	for name, cut := range map[string]func(string) tokens.Request{
		"client ID": func(s string) tokens.Request { return tokens.Request{ClientID: s, Resource: resource} },
		"resource":  func(s string) tokens.Request { return tokens.Request{ClientID: clientID, Resource: s} },
	} {
		s := fakeService(t, &fakeEntra{})
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		for i := range requests {
			request := fmt.Sprintf("%032d", i) + strings.Repeat("x", size)
			if _, err := s.Token(t.Context(), cut(request[:32])); err != nil {
				t.Fatal(err)
			}
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		if got := int64(after.HeapAlloc) - int64(before.HeapAlloc); got > requests*size/2 {
			t.Errorf("%s: %d bytes are kept for %d requests", name, got, requests)
		}
		runtime.KeepAlive(s)
	}
}

func TestHitAllocatesNothing(t *testing.T) {
	s := fakeService(t, &fakeEntra{})
	r := tokens.Request{ClientID: clientID, Resource: resource}
	ctx := t.Context()
	if _, err := s.Token(ctx, r); err != nil {
		t.Fatal(err)
	}
	if got := testing.AllocsPerRun(1000, func() { _, _ = s.Token(ctx, r) }); got != 0 {
		t.Errorf("got %v allocations, want 0", got)
	}
}

func BenchmarkHit(b *testing.B) {
	for _, keys := range []int{1, 10, 100, 1000} {
		b.Run(fmt.Sprintf("keys=%d", keys), func(b *testing.B) {
			s, err := tokens.New(tokens.Config{Exchanger: &fakeEntra{life: 24 * time.Hour}})
			if err != nil {
				b.Fatal(err)
			}
			requests := make([]tokens.Request, keys)
			for i := range requests {
				requests[i] = tokens.Request{ClientID: clientID, Resource: fmt.Sprintf("https://%d.example.test", i)}
				if _, err := s.Token(b.Context(), requests[i]); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for i := 0; pb.Next(); i++ {
					if _, err := s.Token(b.Context(), requests[i%keys]); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}
