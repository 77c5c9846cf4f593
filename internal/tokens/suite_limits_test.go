package tokens_test

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/exchange"
	"imds-oidc-proxy/internal/tokens"
)

func TestFailuresEvictNoToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeEntra{}
		s := fakeService(t, f)
		const more = 10
		for i := range tokens.MaxTokens + more {
			if _, err := ask(t, s, numbered("", i)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second / tokens.BudgetRate)
		}
		if got := s.Stats().Entries; got != tokens.MaxTokens {
			t.Errorf("%d tokens cached, want %d", got, tokens.MaxTokens)
		}
		f.failWith(&exchange.Error{Kind: exchange.InvalidResource, Detail: "unknown"})
		for i := range 2 * tokens.MaxTokens {
			_, err := ask(t, s, numbered("bad", i))
			wantKind(t, err, exchange.InvalidResource)
			time.Sleep(time.Second / tokens.BudgetRate)
		}
		for i := more; i < tokens.MaxTokens+more; i++ {
			wantAnswer(t, s, numbered("", i), tokens.SourceCache, 1, 0)
		}
	})
}

// numbered returns a request for the ith of the resources with a prefix.
func numbered(prefix string, i int) tokens.Request {
	return tokens.Request{ClientID: clientID, Resource: azure.Resource(fmt.Sprintf("https://%s%d.example.test", prefix, i))}
}

func TestRunningExchangesOfAnIdentityAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeEntra{}
		s := fakeService(t, f)
		wantAnswer(t, s, tokens.Request{}, tokens.SourceEntra, 1, 0)
		f.hangs(true)
		for i := range tokens.MaxPlaces - tokens.MaxPlaces/4 { // the other places are reserved
			go s.Token(t.Context(), numbered("", i))
			time.Sleep(time.Second / tokens.BudgetRate)
		}
		_, err := ask(t, s, numbered("more", 0))
		if e := wantKind(t, err, exchange.Throttled); e.RetryAfter <= 0 || !strings.Contains(e.Detail, "running") {
			t.Errorf("got %q, Retry-After %s", e.Detail, e.RetryAfter)
		}
		wantAnswer(t, s, tokens.Request{}, tokens.SourceCache, 1, 0)
		time.Sleep(tokens.ExchangeTimeout)
		synctest.Wait()
		f.hangs(false)
		if _, err := ask(t, s, numbered("more", 0)); err != nil {
			t.Errorf("after the exchanges have ended: %v", err)
		}
	})
}

// When too many refreshes are running for another one, the cached token is returned and the
// refresh begins later. A new resource still gets its token.
func TestRefreshWaitsForAPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeEntra{}
		const each = 30
		cfg := tokens.Config{Exchanger: f, Identities: manyIDs(7)}
		s := newService(t, cfg)
		defer run(t, s)()
		n := 0
		for _, id := range cfg.Identities {
			for range each {
				if n++; n > tokens.MaxRunning-tokens.ReservedPlaces {
					break
				}
				r := numbered("", n)
				r.ClientID = id
				wantAnswer(t, s, r, tokens.SourceEntra, 1, 0)
			}
		}
		wantAnswer(t, s, tokens.Request{}, tokens.SourceEntra, 1, 0)
		const fresh = "https://new.example.test"
		f.hangsFor(func(c call) bool { return c.resource != resource && c.resource != fresh })
		time.Sleep(30 * time.Minute) // all are due
		synctest.Wait()
		wantAnswer(t, s, tokens.Request{Fresh: true}, tokens.SourceCache, 1, 0)
		synctest.Wait()
		if got := f.count(resource); got != 1 {
			t.Errorf("%d exchanges of the token that is due, want 1: too many are running", got)
		}
		wantAnswer(t, s, tokens.Request{ClientID: cfg.Identities[0], Resource: fresh}, tokens.SourceEntra, 1, 0)
		time.Sleep(tokens.ExchangeTimeout)
		synctest.Wait()
		if got := f.count(resource); got != 2 {
			t.Errorf("%d exchanges after the others have ended, want 2", got)
		}
	})
}

// manyIDs returns n client IDs.
func manyIDs(n int) []azure.ClientID {
	var ids []azure.ClientID
	for i := range n {
		ids = append(ids, azure.ClientID(fmt.Sprintf("cccccccc-0000-4000-8000-%012d", i)))
	}
	return ids
}

// Client ID and resource may be substrings of a large request. The cache must not keep that in
// memory.
func TestCacheKeepsNoRequestInMemory(t *testing.T) {
	const requests, size = 100, 1 << 20
	for name, cut := range map[string]func(string) tokens.Request{
		"client ID": func(s string) tokens.Request { return tokens.Request{ClientID: azure.ClientID(s), Resource: resource} },
		"resource":  func(s string) tokens.Request { return tokens.Request{ClientID: clientID, Resource: azure.Resource(s)} },
	} {
		s := fakeService(t, &fakeEntra{})
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		for i := range requests {
			request := fmt.Sprintf("%032d", i) + strings.Repeat("x", size)
			_, err := s.Token(t.Context(), cut(request[:32]))
			if over := i >= 40; err != nil { // over the budget
				if e := wantKind(t, err, exchange.Throttled); !over {
					t.Errorf("request %d: %v", i, e)
				}
			}
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		if got := int64(after.HeapAlloc) - int64(before.HeapAlloc); got > requests*size/4 {
			t.Errorf("%s: %d bytes are in use after %d requests", name, got, requests)
		}
		runtime.KeepAlive(s)
	}
}

func TestCacheHitAllocatesNothing(t *testing.T) {
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

func BenchmarkCacheHit(b *testing.B) {
	for _, keys := range []int{1, 10, 100, 1000} {
		b.Run(fmt.Sprintf("keys=%d", keys), func(b *testing.B) {
			const each = 30 // within the budget of an identity
			ids := manyIDs(keys/each + 1)
			s, err := tokens.New(tokens.Config{Exchanger: &fakeEntra{life: 24 * time.Hour}, Identities: ids})
			if err != nil {
				b.Fatal(err)
			}
			requests := make([]tokens.Request, keys)
			for i := range requests {
				requests[i] = numbered("", i)
				requests[i].ClientID = ids[i/each]
				if _, err := s.Token(b.Context(), requests[i]); err != nil {
					b.Fatal(err)
				}
			}
			b.ResetTimer()
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
