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

// entryOf returns an entry for a testKey that takes so many bytes.
func entryOf(bytes int, now time.Time) *entry {
	token := strings.Repeat("t", bytes-entryBytes-len(testKey(idA, 0).resource))
	return newEntry(exchange.Grant{Token: exchange.Token{AccessToken: token, ExpiresOn: now.Add(time.Hour)}}, now, true, 0)
}

func (m *memory) cachedBytes() (sum int) {
	for _, k := range m.cache.Keys() {
		h, _ := m.cache.Peek(k)
		sum += h.size(k)
	}
	return sum
}

func TestCacheIsBoundedInBytes(t *testing.T) {
	now := time.Now()
	m := newMemory(Config{})
	const size = 32 << 10
	for i := range maxTokenBytes/size + 10 {
		m.keep(testKey(idA, i), entryOf(size, now))
		m.keep(testKey(idA, i), entryOf(size, now)) // replaces the previous one
		if got := m.cachedBytes(); got != m.bytes || got > maxTokenBytes {
			t.Fatalf("after %d tokens: %d bytes cached, %d counted, want at most %d", i+1, got, m.bytes, maxTokenBytes)
		}
	}
	if got, want := m.cache.Len(), maxTokenBytes/size; got != want {
		t.Errorf("%d tokens cached, want %d", got, want)
	}
	if m.cache.Contains(testKey(idA, 9)) || !m.cache.Contains(testKey(idA, 10)) {
		t.Error("the evicted token is not the least recently used one")
	}
	m.keep(testKey(idA, 10), entryOf(maxTokenBytes+1, now)) // larger than the whole cache
	if m.cache.Len() != 0 || m.bytes != 0 {
		t.Errorf("%d tokens of %d bytes after one that is too large", m.cache.Len(), m.bytes)
	}
}

// New resources of one identity evict neither tokens of another identity nor prefetched tokens.
func TestEvictionIsFromTheIdentityWithMostBytes(t *testing.T) {
	now := time.Now()
	prefetched := testKey(idA, 0)
	m := newMemory(Config{Identities: []azure.ClientID{idA, idB}, Prefetch: []Request{{ClientID: prefetched.clientID, Resource: prefetched.resource}}})
	m.keep(prefetched, entryOf(600, now))
	const few = 10
	for i := range few {
		m.keep(testKey(idB, i), entryOf(600, now))
	}
	for i := range 2 * maxTokens {
		m.keep(testKey(idA, i+1), entryOf(600, now))
		m.keep(testKey(azure.ClientID(fmt.Sprint(i)), 0), entryOf(600, now)) // not configured
	}
	if got := m.cache.Len(); got != maxTokens {
		t.Errorf("%d tokens cached, want %d", got, maxTokens)
	}
	for i := range few {
		if !m.cache.Contains(testKey(idB, i)) {
			t.Errorf("token %d of the other identity was evicted", i)
		}
	}
	if !m.cache.Contains(prefetched) {
		t.Error("the prefetched token was evicted")
	}
	counts := make(map[*budget]int)
	for _, k := range m.cache.Keys() {
		counts[m.budgetOf(k.clientID)]++
	}
	if a, others := counts[m.budgetOf(idA)], counts[m.others]; a-others > 2 || others-a > 2 {
		t.Errorf("%d tokens of the identity and %d of client IDs that are not configured, want equal numbers", a, others)
	}
}

func TestPrefetchedTokensAreNotEvicted(t *testing.T) {
	now := time.Now()
	var prefetch []Request
	const size = 1 << 20
	for i := range 2 * maxTokenBytes / size {
		prefetch = append(prefetch, Request{ClientID: idA, Resource: testKey(idA, i).resource})
	}
	m := newMemory(Config{Prefetch: prefetch})
	for _, r := range prefetch {
		m.keep(keyOf(r), entryOf(size, now))
	}
	if got := m.cache.Len(); got != len(prefetch) {
		t.Errorf("%d prefetched tokens cached, want %d", got, len(prefetch))
	}
}
