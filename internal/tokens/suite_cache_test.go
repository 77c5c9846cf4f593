package tokens

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/exchange"
)

const idA, idB = azure.ClientID("aaaaaaaa-0000-4000-8000-000000000001"), azure.ClientID("bbbbbbbb-0000-4000-8000-000000000002")

func testKey(id azure.ClientID, i int) key {
	return key{id, azure.Resource(fmt.Sprintf("https://%06d.example.test", i))}
}

// holdingOf returns a token that makes an entry of so many bytes for a testKey.
func holdingOf(bytes int, now time.Time) *holding {
	token := strings.Repeat("t", bytes-entryBytes-len(testKey(idA, 0).resource))
	return newHolding(exchange.Grant{Token: exchange.Token{AccessToken: token, ExpiresOn: now.Add(time.Hour)}}, now, true, 0)
}

func (m *memory) heldBytes() (sum int) {
	for _, k := range m.held.Keys() {
		h, _ := m.held.Peek(k)
		sum += h.size(k)
	}
	return sum
}

func TestCacheIsBoundedInBytes(t *testing.T) {
	now := time.Now()
	m := newMemory(Config{})
	const size = 32 << 10
	for i := range maxTokenBytes/size + 10 {
		m.keep(testKey(idA, i), holdingOf(size, now))
		m.keep(testKey(idA, i), holdingOf(size, now)) // in place of the one before
		if got := m.heldBytes(); got != m.bytes || got > maxTokenBytes {
			t.Fatalf("after %d tokens: %d bytes held, %d counted, at most %d wanted", i+1, got, m.bytes, maxTokenBytes)
		}
	}
	if got, want := m.held.Len(), maxTokenBytes/size; got != want {
		t.Errorf("%d tokens held, want %d", got, want)
	}
	if m.held.Contains(testKey(idA, 9)) || !m.held.Contains(testKey(idA, 10)) {
		t.Error("evicted is not the token used least recently")
	}
	m.keep(testKey(idA, 10), holdingOf(maxTokenBytes+1, now)) // too large for all
	if m.held.Len() != 0 || m.bytes != 0 {
		t.Errorf("%d tokens of %d bytes after one that is too large", m.held.Len(), m.bytes)
	}
}

// New resources of one identity evict no token of another, nor a prefetched one.
func TestEvictionIsOfTheIdentityThatHoldsMost(t *testing.T) {
	now := time.Now()
	standing := testKey(idA, 0)
	m := newMemory(Config{Identities: []azure.ClientID{idA, idB}, Prefetch: []Request{{ClientID: standing.clientID, Resource: standing.resource}}})
	m.keep(standing, holdingOf(600, now))
	const few = 10
	for i := range few {
		m.keep(testKey(idB, i), holdingOf(600, now))
	}
	for i := range 2 * maxTokens {
		m.keep(testKey(idA, i+1), holdingOf(600, now))
		m.keep(testKey(azure.ClientID(fmt.Sprint(i)), 0), holdingOf(600, now)) // not configured
	}
	if got := m.held.Len(); got != maxTokens {
		t.Errorf("%d tokens held, want %d", got, maxTokens)
	}
	for i := range few {
		if !m.held.Contains(testKey(idB, i)) {
			t.Errorf("token %d of the other identity is evicted", i)
		}
	}
	if !m.held.Contains(standing) {
		t.Error("the prefetched token is evicted")
	}
	counts := make(map[*budget]int)
	for _, k := range m.held.Keys() {
		counts[m.budgetOf(k.clientID)]++
	}
	if a, others := counts[m.budgetOf(idA)], counts[m.others]; a-others > 2 || others-a > 2 {
		t.Errorf("%d tokens of the identity and %d of client IDs that are not configured, want as many", a, others)
	}
}

func TestPrefetchedTokensAloneAreNotEvicted(t *testing.T) {
	now := time.Now()
	var prefetch []Request
	const size = 1 << 20
	for i := range 2 * maxTokenBytes / size {
		prefetch = append(prefetch, Request{ClientID: idA, Resource: testKey(idA, i).resource})
	}
	m := newMemory(Config{Prefetch: prefetch})
	for _, r := range prefetch {
		m.keep(keyOf(r), holdingOf(size, now))
	}
	if got := m.held.Len(); got != len(prefetch) {
		t.Errorf("%d prefetched tokens held, want %d", got, len(prefetch))
	}
}

// The refresh is between 2/3 and 4/3 of what was asked, and before the token is
// stale, whatever Entra says.
func TestRefreshDelay(t *testing.T) {
	now := time.Now()
	for _, life := range []time.Duration{2 * exchange.MinLife, time.Minute, 19 * time.Minute, 20 * time.Minute, time.Hour, 24 * time.Hour, 31 * 24 * time.Hour} {
		for _, asked := range []time.Duration{-time.Hour, 0, 1, life / 10, life / 2, life * 9 / 10, life - 1, life, 2 * life} {
			g := exchange.Grant{Token: exchange.Token{ExpiresOn: now.Add(life)}, RefreshOn: now.Add(asked)}
			earliest, latest := newHolding(g, now, true, 0), newHolding(g, now, true, 1)
			if earliest.due.wall.Before(now) || latest.due.wall.Before(earliest.due.wall) ||
				latest.stale.wall.Before(latest.due.wall) || !latest.stale.wall.Before(g.Token.ExpiresOn) {
				t.Errorf("life %s, asked %s: due from %s to %s, stale at %s", life, asked,
					earliest.due.wall.Sub(now), latest.due.wall.Sub(now), latest.stale.wall.Sub(now))
			}
			if asked <= 0 || asked >= life {
				asked = life / 2
			}
			if last := latest.due.wall.Sub(now); asked <= life/2 && life >= 20*time.Minute && (last < asked*4/3-2 || last > max(asked, minRefresh)*4/3) {
				t.Errorf("life %s, asked %s: due at the latest after %s", life, asked, last)
			}
			if latest.stale.wall.After(latest.end.wall) {
				t.Errorf("life %s, asked %s: stale %s after its end", life, asked, latest.stale.wall.Sub(latest.end.wall))
			}
		}
	}
}
