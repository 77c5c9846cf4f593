package tokens_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/exchange"
	"imds-oidc-proxy/internal/tokens"
)

const (
	idA, idB, idC = "aaaaaaaa-0000-4000-8000-00000000000a", "aaaaaaaa-0000-4000-8000-00000000000b", "aaaaaaaa-0000-4000-8000-00000000000c"

	objectA, objectB, objectC = "0b0b0b0b-0000-4000-8000-00000000000a", "0b0b0b0b-0000-4000-8000-00000000000b", "0b0b0b0b-0000-4000-8000-00000000000c"

	resourceA = "/subscriptions/s/resourcegroups/g/providers/microsoft.managedidentity/userassignedidentities/a"
	resourceB = "/subscriptions/s/resourcegroups/g/providers/microsoft.managedidentity/userassignedidentities/b"

	vault, storage = "https://vault.azure.net", "https://storage.azure.com"
)

// claimingEntra is a fakeEntra whose tokens are JSON Web Tokens with these claims.
type claimingEntra struct {
	fakeEntra

	// claims returns the payload of a token. An empty payload makes it opaque.
	claims func(call) map[string]string

	mu        sync.Mutex
	exchanged map[azure.ClientID]int
}

func (e *claimingEntra) Exchange(ctx context.Context, clientID azure.ClientID, resource azure.Resource) (exchange.Grant, error) {
	e.mu.Lock()
	if e.exchanged == nil {
		e.exchanged = map[azure.ClientID]int{}
	}
	e.exchanged[clientID]++
	n := e.exchanged[clientID]
	e.mu.Unlock()
	g, err := e.fakeEntra.Exchange(ctx, clientID, resource)
	if claims := e.claims(call{clientID: clientID, resource: resource, n: n}); err == nil && len(claims) > 0 {
		claims["for"] = g.Token.AccessToken
		payload, _ := json.Marshal(claims)
		g.Token.AccessToken = "e30." + base64.RawURLEncoding.EncodeToString(payload) + ".c2ln"
	}
	return g, err
}

// of returns how many exchanges there were of each of A, B and C.
func (e *claimingEntra) of() [3]int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return [3]int{e.exchanged[idA], e.exchanged[idB], e.exchanged[idC]}
}

// names are the claims of A, B and C.
func names(c call) map[string]string {
	return map[azure.ClientID]map[string]string{
		idA: {"oid": objectA, "xms_mirid": resourceA},
		idB: {"oid": objectB, "xms_mirid": resourceB},
		idC: {"oid": objectC},
	}[c.clientID]
}

// identifying returns a service with the identities A, B and C.
func identifying(t *testing.T, e *claimingEntra, change ...func(*tokens.Config)) *tokens.Service {
	t.Helper()
	cfg := tokens.Config{Exchanger: e, Identities: []azure.ClientID{idA, idB, idC, idA}}
	for _, c := range change {
		c(&cfg)
	}
	return newService(t, cfg)
}

func bySelector(t *testing.T, s *tokens.Service, selector azure.Selector, resource azure.Resource) (tokens.Result, error) {
	t.Helper()
	got, err := s.Token(t.Context(), tokens.Request{Selector: selector, Resource: resource})
	if err == nil {
		if n := got.Token.Names(); n.Contradicts(selector) {
			t.Errorf("asked for %s, got a token of %+v", selector, n)
		}
	}
	return got, err
}

// wantUnknown checks that the selector is unknown, which no client may retry.
func wantUnknown(t *testing.T, err error) {
	t.Helper()
	if e, ok := errors.AsType[*exchange.Error](err); !ok || !errors.Is(err, tokens.ErrUnknownSelector) || !e.Kind.Permanent() {
		t.Errorf("got %v, want ErrUnknownSelector", err)
	}
}

// TestSelector: a selector gets the token of the identity whose token has it, and no other. An
// identity is exchanged only if that is not known without it.
func TestSelector(t *testing.T) {
	for _, test := range []struct {
		name      string
		selector  azure.Selector
		want      azure.ClientID // empty: unknown
		exchanged [3]int
	}{
		{"object ID of the default identity", objectA, idA, [3]int{1, 0, 0}},
		{"object ID of another one", objectB, idB, [3]int{1, 1, 1}},
		{"object ID of the last one", objectC, idC, [3]int{1, 1, 1}},
		{"resource ID of the default identity", resourceA, idA, [3]int{1, 0, 0}},
		{"resource ID of another one", resourceB, idB, [3]int{1, 1, 1}},
		{"unknown object ID", "0b0b0b0b-0000-4000-8000-0000000000ff", "", [3]int{1, 1, 1}},
		{"unknown resource ID", resourceA + "x", "", [3]int{1, 1, 1}},
		{"client ID of a configured identity", idA, "", [3]int{1, 1, 1}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e := &claimingEntra{claims: names}
				e.latency = time.Second
				s := identifying(t, e)
				for _, source := range []tokens.Source{tokens.SourceEntra, tokens.SourceCache} {
					got, err := bySelector(t, s, test.selector, vault)
					if e.of() != test.exchanged {
						t.Errorf("got %v exchanges of A, B, C; want %v", e.of(), test.exchanged)
					}
					if test.want == "" {
						wantUnknown(t, err)
						continue
					}
					if err != nil || got.ClientID != test.want || got.Source != source {
						t.Errorf("got %s from %q, error %v; want %s from %q", got.ClientID, got.Source, err, test.want, source)
					}
					if want := names(call{clientID: test.want})["oid"]; string(got.Token.Names().ObjectID) != want {
						t.Errorf("got the token of object ID %s, want %s", got.Token.Names().ObjectID, want)
					}
				}
			})
		})
	}
}

// TestSelectorByOrdinaryTraffic: the token of a request that names a client ID is read, too, so
// that a later request by object ID costs no exchange.
func TestSelectorByOrdinaryTraffic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &claimingEntra{claims: names}
		s := identifying(t, e)
		for _, id := range []azure.ClientID{idA, idB, idC} {
			if _, err := s.Token(t.Context(), tokens.Request{ClientID: id, Resource: vault}); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Second)
		if got, err := bySelector(t, s, objectC, vault); err != nil || got.ClientID != idC || got.Source != tokens.SourceCache {
			t.Errorf("got %s from %q, error %v; want C from the cache", got.ClientID, got.Source, err)
		}
		_, err := bySelector(t, s, "0b0b0b0b-0000-4000-8000-0000000000ff", storage)
		wantUnknown(t, err)
		if e.of() != [3]int{1, 1, 1} {
			t.Errorf("got %v exchanges, want one each", e.of())
		}
	})
}

// TestSelectorsInParallel: the identities other than the default one are exchanged at the same
// time.
func TestSelectorsInParallel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &claimingEntra{claims: names}
		e.latency = 4 * time.Second
		s := identifying(t, e)
		began := time.Now()
		if got, err := bySelector(t, s, objectC, vault); err != nil || got.ClientID != idC {
			t.Errorf("got %s, error %v", got.ClientID, err)
		}
		if took := time.Since(began); took != 2*e.latency {
			t.Errorf("took %s, want %s", took, 2*e.latency)
		}
	})
}

// TestFloodOfSelectors: whatever object IDs and resources the clients invent, one after the
// other or at the same time, each identity is exchanged once in the lifetime of its token, and
// no token is refreshed for them. No such request gets a token.
func TestFloodOfSelectors(t *testing.T) {
	const requests, lifetimes = tokens.DefaultMaxWaiting + 200, 2
	synctest.Test(t, func(t *testing.T) {
		e := &claimingEntra{claims: names}
		e.latency = 300 * time.Millisecond
		s := identifying(t, e)
		stop := run(t, s)
		defer stop()
		for life := range lifetimes {
			var all sync.WaitGroup
			overloaded := 0
			var mu sync.Mutex
			for i := range requests {
				all.Go(func() {
					_, err := s.Token(t.Context(), tokens.Request{
						Selector: azure.Selector(fmt.Sprintf("0d0d0d0d-%04x-4000-8000-%012x", life, i)),
						Resource: azure.Resource(fmt.Sprintf("https://r%d.example.test", i%700)),
					})
					if errors.Is(err, tokens.ErrOverloaded) {
						mu.Lock()
						overloaded++
						mu.Unlock()
						return
					}
					wantUnknown(t, err)
				})
			}
			all.Wait()
			if want := life + 1; e.of() != [3]int{want, want, want} {
				t.Fatalf("lifetime %d: got %v exchanges, want %d of each", life, e.of(), want)
			}
			if want := requests - tokens.DefaultMaxWaiting; overloaded > want {
				t.Errorf("%d requests were over the limit on waiting callers, want at most %d", overloaded, want)
			}
			time.Sleep(30 * time.Minute)
			for i := range requests {
				_, err := bySelector(t, s, azure.Selector(fmt.Sprintf("0c0c0c0c-%04x-4000-8000-%012x", life, i)), "https://late.example.test")
				wantUnknown(t, err)
			}
			time.Sleep(30 * time.Minute)
		}
	})
}

// TestFloodWhileExchangesFail: while the exchanges fail, the failure memory limits them: a flood
// of object IDs costs no more than a flood of requests that name the client IDs.
func TestFloodWhileExchangesFail(t *testing.T) {
	flood := func(t *testing.T, request func(i int) []tokens.Request) [3]int {
		var got [3]int
		synctest.Test(t, func(t *testing.T) {
			e := &claimingEntra{claims: names}
			e.failWith(&exchange.Error{Kind: exchange.UnknownIdentity, Code: 700016, Detail: "no such application"})
			s := identifying(t, e)
			for i := range 1_200 { // ten minutes
				for _, r := range request(i) {
					if _, err := s.Token(t.Context(), r); err == nil {
						t.Fatal("got a token")
					}
				}
				time.Sleep(500 * time.Millisecond)
			}
			got = e.of()
		})
		return got
	}
	bySelector := flood(t, func(i int) []tokens.Request {
		return []tokens.Request{{Selector: azure.Selector(fmt.Sprintf("0d0d0d0d-0000-4000-8000-%012x", i)), Resource: vault}}
	})
	byClientID := flood(t, func(int) []tokens.Request {
		return []tokens.Request{{ClientID: idA, Resource: vault}, {ClientID: idB, Resource: vault}, {ClientID: idC, Resource: vault}}
	})
	if bySelector != byClientID || bySelector[0] == 0 {
		t.Errorf("got %v exchanges by selector, want %v as by client ID", bySelector, byClientID)
	}
}

// TestSelectorWhileExchangesFail: if an identity cannot be looked at, it may be the named one.
// The error then is that of the exchange, so that clients retry, and not that the identity is
// unknown. Errors about the identity itself are not passed on.
func TestSelectorWhileExchangesFail(t *testing.T) {
	for _, test := range []struct {
		name string
		a, b exchange.Kind // zero: the exchange succeeds
		want exchange.Kind // zero: ErrUnknownSelector
	}{
		{"none fails", 0, 0, 0},
		{"A is unknown", exchange.UnknownIdentity, 0, 0},
		{"A is unknown, B is disabled", exchange.UnknownIdentity, exchange.UnauthorizedClient, 0},
		{"A is unavailable", exchange.Unavailable, 0, exchange.Unavailable},
		{"B is unavailable", 0, exchange.Unavailable, exchange.Unavailable},
		{"A is unavailable, B is unknown", exchange.Unavailable, exchange.UnknownIdentity, exchange.Unavailable},
		{"A is unknown, B is unavailable", exchange.UnknownIdentity, exchange.Unavailable, exchange.Unavailable},
		{"the resource is unknown", exchange.InvalidResource, exchange.InvalidResource, exchange.InvalidResource},
		{"the resource is unknown, B is throttled", exchange.InvalidResource, exchange.Throttled, exchange.Throttled},
		{"B has no federated credential", 0, exchange.FederationMismatch, exchange.FederationMismatch},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e := &claimingEntra{claims: names}
				e.fault = func(c call) *exchange.Error {
					if kind := map[azure.ClientID]exchange.Kind{idA: test.a, idB: test.b}[c.clientID]; kind != 0 {
						return &exchange.Error{Kind: kind, RetryAfter: time.Minute, Detail: "fault"}
					}
					return nil
				}
				s := identifying(t, e)
				for range 2 { // the second request gets the remembered failure
					_, err := bySelector(t, s, "0b0b0b0b-0000-4000-8000-0000000000ff", vault)
					if test.want == 0 {
						wantUnknown(t, err)
					} else {
						wantKind(t, err, test.want)
					}
				}
				if got, err := bySelector(t, s, objectC, vault); err != nil || got.ClientID != idC {
					t.Errorf("object ID of C: got %s, error %v", got.ClientID, err)
				}
				if got := e.of(); got[0] > 1 || got[1] > 1 || got[2] > 1 {
					t.Errorf("got %v exchanges, want at most one of each", got)
				}
			})
		})
	}
}

// TestSelectorWhileEntraHangs: a request waits no longer than for one exchange.
func TestSelectorWhileEntraHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &claimingEntra{claims: names}
		e.hangs(true)
		s := identifying(t, e)
		began := time.Now()
		_, err := bySelector(t, s, objectC, vault)
		wantKind(t, err, exchange.DeadlineExceeded)
		if took := time.Since(began); took > tokens.ExchangeTimeout+tokens.RecordTime {
			t.Errorf("waited %s", took)
		}
		time.Sleep(tokens.ExchangeTimeout) // until the other exchanges have ended
	})
}

// TestSelectorOfCallerThatLeaves: the exchange continues without the caller.
func TestSelectorOfCallerThatLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &claimingEntra{claims: names}
		e.latency = time.Second
		s := identifying(t, e)
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		_, err := s.Token(ctx, tokens.Request{Selector: objectA, Resource: vault})
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want the error of the caller's context", err)
		}
		time.Sleep(time.Second)
		if got, err := bySelector(t, s, objectA, vault); err != nil || got.Source != tokens.SourceCache || e.of()[0] != 1 {
			t.Errorf("got a token from %q, error %v, %v exchanges; want it from the cache", got.Source, err, e.of())
		}
	})
}

// TestTokenOfAnother: tokens whose claims do not fit together never answer a request for
// another identity, nor one that two tokens claim.
func TestTokenOfAnother(t *testing.T) {
	for _, test := range []struct {
		name     string
		claims   func(call) map[string]string
		selector azure.Selector
		want     azure.ClientID // empty: unknown
	}{
		{"A and B claim the same", func(call) map[string]string { return map[string]string{"oid": objectB} }, objectB, idA}, // A is looked at first, and its token says so
		{"the token of A claims to be B's", func(c call) map[string]string {
			if c.clientID == idA {
				return map[string]string{"oid": objectB}
			}
			return map[string]string{"oid": objectC}
		}, objectA, ""},
		{"no token has the claim", func(call) map[string]string { return map[string]string{"sub": objectB} }, objectB, ""},
		{"the claim is a name", func(call) map[string]string { return map[string]string{"oid": "cart"} }, "cart", ""},
		{"the object ID is in another claim", func(c call) map[string]string {
			return map[string]string{"appid": objectA, "sub": objectA, "azp": objectA, "xms_mirid": objectA}
		}, objectA, ""},
		{"the resource ID is in another claim", func(c call) map[string]string { return map[string]string{"oid": resourceA, "sub": resourceA} }, resourceA, ""},
		{"an object ID of one, the resource ID of another", func(c call) map[string]string {
			return map[azure.ClientID]map[string]string{
				idA: {"oid": objectA, "xms_mirid": resourceB},
				idB: {"oid": objectB, "xms_mirid": resourceA},
			}[c.clientID]
		}, resourceA, idB},
		{"opaque", func(call) map[string]string { return nil }, objectA, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := identifying(t, &claimingEntra{claims: test.claims})
				for range 2 {
					got, err := bySelector(t, s, test.selector, vault)
					if test.want == "" {
						wantUnknown(t, err)
					} else if err != nil || got.ClientID != test.want {
						t.Errorf("got %s, error %v, want %s", got.ClientID, err, test.want)
					}
				}
			})
		})
	}
}

// TestTwoTokensClaimTheSame: once it is known that two identities' tokens have the same object
// ID, neither is the answer.
func TestTwoTokensClaimTheSame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := identifying(t, &claimingEntra{claims: func(call) map[string]string { return map[string]string{"oid": objectB} }})
		for _, id := range []azure.ClientID{idA, idB} {
			if _, err := s.Token(t.Context(), tokens.Request{ClientID: id, Resource: vault}); err != nil {
				t.Fatal(err)
			}
		}
		_, err := bySelector(t, s, objectB, vault)
		wantUnknown(t, err)
	})
}

// TestTokenThatChangesItsNames: if a later token of an identity has another object ID, requests
// for the former one get no token of it, from the cache neither.
func TestTokenThatChangesItsNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const former, later = objectA, "0b0b0b0b-0000-4000-8000-0000000000aa"
		e := &claimingEntra{claims: func(c call) map[string]string {
			if c.clientID == idA && c.n > 1 {
				return map[string]string{"oid": later}
			}
			return names(c)
		}}
		s := identifying(t, e)
		if _, err := bySelector(t, s, former, vault); err != nil {
			t.Fatal(err)
		}
		// The next token of A is for another resource.
		if _, err := s.Token(t.Context(), tokens.Request{ClientID: idA, Resource: storage}); err != nil {
			t.Fatal(err)
		}
		for _, resource := range []azure.Resource{vault, storage} {
			_, err := bySelector(t, s, former, resource)
			wantUnknown(t, err)
		}
		_, err := bySelector(t, s, later, vault) // the cached token has the former object ID
		wantUnknown(t, err)
		if got, err := bySelector(t, s, later, storage); err != nil || got.ClientID != idA {
			t.Errorf("got %s, error %v, want A", got.ClientID, err)
		}
	})
}

// TestTokenThatChangesItsNamesOnRefresh is the same for a token that replaces the one that named
// the identity.
func TestTokenThatChangesItsNamesOnRefresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &claimingEntra{claims: func(c call) map[string]string {
			if c.clientID == idA && c.n > 1 {
				return map[string]string{"oid": objectB}
			}
			return map[string]string{"oid": objectA}
		}}
		s := identifying(t, e, func(cfg *tokens.Config) { cfg.Identities = []azure.ClientID{idA} })
		stop := run(t, s)
		defer stop()
		if _, err := bySelector(t, s, objectA, vault); err != nil {
			t.Fatal(err)
		}
		for e.of()[0] == 1 {
			time.Sleep(time.Minute) // until the refresh
		}
		synctest.Wait()
		_, err := bySelector(t, s, objectA, vault)
		wantUnknown(t, err)
		if got, err := bySelector(t, s, objectB, vault); err != nil || got.ClientID != idA {
			t.Errorf("got %s, error %v, want A", got.ClientID, err)
		}
	})
}

// TestOpaqueTokens: an opaque token settles nothing. A token for another resource may.
func TestOpaqueTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &claimingEntra{claims: func(c call) map[string]string {
			if c.resource == vault {
				return nil
			}
			return names(c)
		}}
		s := identifying(t, e)
		for range 3 {
			_, err := bySelector(t, s, objectB, vault)
			wantUnknown(t, err)
			if !strings.Contains(err.Error(), "3 have no readable token, such as "+idA) {
				t.Errorf("got the error %q", err)
			}
		}
		if got, err := bySelector(t, s, objectB, storage); err != nil || got.ClientID != idB {
			t.Errorf("got %s, error %v, want B", got.ClientID, err)
		}
		// Now the object ID is known, also for the resource whose tokens are opaque.
		if got, err := bySelector(t, s, objectB, vault); err != nil || got.ClientID != idB {
			t.Errorf("got %s, error %v, want B", got.ClientID, err)
		}
		if e.of() != [3]int{2, 2, 2} {
			t.Errorf("got %v exchanges, want one for each identity and resource", e.of())
		}
	})
}

// TestNamesEndWithTheirToken: a name is known as long as the token lives that has it. After that
// an exchange is made, first of the identity that had the name.
func TestNamesEndWithTheirToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &claimingEntra{claims: names}
		s := identifying(t, e) // without Run, so nothing is refreshed
		if _, err := bySelector(t, s, objectC, vault); err != nil {
			t.Fatal(err)
		}
		for _, test := range []struct {
			selector  azure.Selector
			pause     time.Duration
			exchanged [3]int
		}{
			{objectC, 20 * time.Minute, [3]int{1, 1, 1}},
			{"0d0d0d0d-0000-4000-8000-00000000000a", 40*time.Minute - exchange.MinLife - 1, [3]int{1, 1, 1}},
			{objectC, 1, [3]int{1, 1, 2}},
			{objectB, 0, [3]int{1, 2, 2}}, // B had this name, so A is not looked at
		} {
			time.Sleep(test.pause)
			_, err := bySelector(t, s, test.selector, vault)
			if known := strings.HasPrefix(string(test.selector), "0b"); (err == nil) != known || e.of() != test.exchanged {
				t.Errorf("%s: got error %v, %v exchanges, want %v", test.selector, err, e.of(), test.exchanged)
			}
		}
	})
}

// TestShorterTokenWithTheSameNames: names are known until the last token ends that has them,
// and a token with fewer names takes none away.
func TestShorterTokenWithTheSameNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &claimingEntra{claims: func(c call) map[string]string {
			if c.resource == storage {
				return map[string]string{"oid": objectA}
			}
			return names(c)
		}}
		s := identifying(t, e)
		for _, resource := range []azure.Resource{vault, storage, vault} {
			if got, err := bySelector(t, s, resourceA, resource); err != nil || got.ClientID != idA {
				t.Errorf("%s: got %s, error %v", resource, got.ClientID, err)
			}
			time.Sleep(10 * time.Minute)
		}
		if e.of() != [3]int{2, 0, 0} {
			t.Errorf("got %v exchanges, want one of A for each resource", e.of())
		}
	})
}

// TestLookWaitsForAnyExchange: an identity is not exchanged for a second resource while an
// exchange for another one is running, but a slow one delays the request for a moment only.
func TestLookWaitsForAnyExchange(t *testing.T) {
	for _, test := range []struct {
		latency   time.Duration
		exchanged [3]int
	}{
		{tokens.RefreshWait - time.Millisecond, [3]int{1, 0, 0}},
		{tokens.RefreshWait + time.Millisecond, [3]int{2, 0, 0}},
	} {
		synctest.Test(t, func(t *testing.T) {
			e := &claimingEntra{claims: names}
			e.latency = test.latency
			s := identifying(t, e, func(cfg *tokens.Config) { cfg.Identities = []azure.ClientID{idA} })
			var both sync.WaitGroup
			for _, resource := range []azure.Resource{vault, storage} {
				both.Go(func() {
					_, err := s.Token(t.Context(), tokens.Request{Selector: objectB, Resource: resource})
					wantUnknown(t, err)
				})
				synctest.Wait()
			}
			both.Wait()
			if e.of() != test.exchanged {
				t.Errorf("latency %s: got %v exchanges, want %v", test.latency, e.of(), test.exchanged)
			}
		})
	}
}

// TestLearnedOnce: a name is logged and counted when a request first uses it, not for each
// request or token.
func TestLearnedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		core, logged := observer.New(zapcore.InfoLevel)
		var learned []azure.Selector
		s := identifying(t, &claimingEntra{claims: names}, func(cfg *tokens.Config) {
			cfg.Log = zap.New(core)
			cfg.Observer.Learned = func(selector azure.Selector) { learned = append(learned, selector) }
		})
		for range 3 {
			for _, selector := range []azure.Selector{objectB, resourceB, objectA} {
				if _, err := bySelector(t, s, selector, vault); err != nil {
					t.Fatal(err)
				}
			}
			time.Sleep(time.Hour)
		}
		if got, want := fmt.Sprint(learned), fmt.Sprint([]azure.Selector{objectB, resourceB, objectA}); got != want {
			t.Errorf("learned %s, want %s", got, want)
		}
		var lines []string
		for _, entry := range logged.All() {
			lines = append(lines, fmt.Sprint(entry.Message, entry.ContextMap()))
		}
		want := []string{
			"learned object IDmap[client_id:" + idB + " object_id:" + objectB + "]",
			"learned resource IDmap[client_id:" + idB + " resource_id:" + resourceB + "]",
			"learned object IDmap[client_id:" + idA + " object_id:" + objectA + "]",
		}
		if fmt.Sprint(lines) != fmt.Sprint(want) {
			t.Errorf("logged %q, want %q", lines, want)
		}
	})
}

// TestFreshSelector: a request by object ID may bypass the cache, too.
func TestFreshSelector(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &claimingEntra{claims: names}
		s := identifying(t, e)
		for i, source := range []tokens.Source{tokens.SourceEntra, tokens.SourceEntra} {
			got, err := s.Token(t.Context(), tokens.Request{Selector: objectA, Resource: vault, Fresh: true})
			if err != nil || got.Source != source || e.of()[0] != i+1 {
				t.Errorf("request %d: got a token from %q, error %v, %v exchanges", i, got.Source, err, e.of())
			}
			time.Sleep(tokens.FreshInterval)
		}
	})
}

// TestSelectorWithoutIdentities: without configured identities there is no exchange.
func TestSelectorWithoutIdentities(t *testing.T) {
	e := &claimingEntra{claims: names}
	s := identifying(t, e, func(cfg *tokens.Config) { cfg.Identities = nil })
	_, err := bySelector(t, s, objectA, vault)
	wantUnknown(t, err)
	if len(e.all()) != 0 {
		t.Errorf("got exchanges %v, want none", e.all())
	}
}
