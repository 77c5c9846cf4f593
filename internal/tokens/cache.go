package tokens

const (
	// maxTokens and maxTokenBytes bound the tokens held. A pod asks for a handful; the
	// bounds are for one that asks for a new resource each time. A token and its entry
	// take some 3 KiB; a token that lists many groups takes 30 KiB.
	maxTokens     = 1024
	maxTokenBytes = 8 << 20

	// entryBytes is about what an entry takes beside its strings.
	entryBytes = 512
)

// size is about how much memory a token in the cache takes.
func (h *holding) size(k key) int { return len(h.token.AccessToken) + len(k.resource) + entryBytes }

// keep adds a token to the cache, in place of the one before, and makes room for it.
func (m *memory) keep(k key, h *holding) {
	m.forget(k)
	m.held.Add(k, h)
	m.bytes += h.size(k)
	for m.held.Len() > maxTokens || m.bytes > maxTokenBytes {
		victim, ok := m.victim()
		if !ok {
			return // only prefetched tokens are left, and the configuration bounds those
		}
		m.forget(victim)
	}
}

// forget removes a token from the cache.
func (m *memory) forget(k key) {
	if h, ok := m.held.Peek(k); ok {
		m.held.Remove(k)
		m.bytes -= h.size(k)
	}
}

// victim is the token to evict: the one used least recently of the budget that holds the
// most bytes. So tokens for new resources of one identity evict none of another identity.
// Prefetched tokens stay.
func (m *memory) victim() (k key, ok bool) {
	bytes := make(map[*budget]int)
	oldest := make(map[*budget]key)
	var most *budget
	for _, k := range m.held.Keys() { // from the one used least recently
		if _, standing := m.prefetch[k]; standing {
			continue
		}
		b := m.budgetOf(k.clientID)
		if _, ok := oldest[b]; !ok {
			oldest[b] = k
		}
		h, _ := m.held.Peek(k)
		if bytes[b] += h.size(k); most == nil || bytes[b] > bytes[most] {
			most = b
		}
	}
	k, ok = oldest[most]
	return k, ok
}
