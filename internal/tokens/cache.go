package tokens

import "imds-oidc-proxy/internal/azure"

const (
	// maxTokens and maxTokenBytes bound the tokens in the cache. A pod asks for a handful;
	// the bounds are for a client that asks for a new resource each time. A token and its
	// entry take some 3 KiB; a token that lists many groups takes 30 KiB.
	maxTokens     = azure.MaxPrefetch
	maxTokenBytes = 8 << 20

	// entryBytes is about what an entry takes beside its strings.
	entryBytes = 512
)

// size returns approximately how much memory a token in the cache takes.
func (e *entry) size(k key) int { return len(e.token.AccessToken) + len(k.resource) + entryBytes }

// evictableSize returns the size of a token that may be evicted, and zero for a prefetched
// token. The configuration bounds the prefetched tokens, and they must not evict the others.
func (m *memory) evictableSize(k key, e *entry) int {
	if _, prefetched := m.prefetch[k]; prefetched {
		return 0
	}
	return e.size(k)
}

// keep adds a token to the cache, replaces the previous one of the same key, and evicts
// other tokens until the cache is within its bounds.
func (m *memory) keep(k key, e *entry) {
	m.forget(k)
	m.cache.Add(k, e)
	m.bytes += m.evictableSize(k, e)
	for m.cache.Len() > maxTokens || m.bytes > maxTokenBytes {
		victim, ok := m.victim()
		if !ok {
			return // only prefetched tokens are left, and the configuration bounds those
		}
		m.forget(victim)
	}
}

// forget removes a token from the cache.
func (m *memory) forget(k key) {
	if e, ok := m.cache.Peek(k); ok {
		m.cache.Remove(k)
		m.bytes -= m.evictableSize(k, e)
	}
}

// victim returns the token to evict: the least recently used token of the budget whose tokens
// take the most bytes. So tokens for new resources of one identity evict none of another
// identity. Prefetched tokens are not evicted.
func (m *memory) victim() (k key, ok bool) {
	bytes := make(map[*budget]int)
	oldest := make(map[*budget]key)
	var most *budget
	for _, k := range m.cache.Keys() { // least recently used first
		if _, prefetched := m.prefetch[k]; prefetched {
			continue
		}
		b := m.budgetOf(k.clientID)
		if _, ok := oldest[b]; !ok {
			oldest[b] = k
		}
		e, _ := m.cache.Peek(k)
		if bytes[b] += e.size(k); bytes[b] > bytes[most] {
			most = b
		}
	}
	k, ok = oldest[most]
	return k, ok
}
