package tokens

import (
	"hash/maphash"
	"time"

	"golang.org/x/time/rate"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/exchange"
)

// An exchange costs Entra a request, and any client of the pod can cause one by inventing a
// client ID or a resource. So exchanges for keys without a token draw on a budget: each
// configured identity has one, and all other client IDs share one. Refreshes and prefetched
// keys draw on none. ADR 0048 says why, and what these limits do not prevent.

const (
	// budgetRate and budgetBurst bound the tries of a budget, per second and at once. A
	// pod that starts asks for a handful of resources.
	budgetRate  = 5
	budgetBurst = 50

	// reservedTries of a budget's burst, and one in reservedShare of its places (at least
	// one), are reserved for each class above the lowest.
	reservedTries = 5
	reservedShare = 8

	// Of the maxRunning places for running exchanges, reservedPlaces are reserved for
	// refreshes, and as many for the budgets, in equal shares. All of them share the rest.
	reservedPlaces = 64
	sharedPlaces   = maxRunning - 2*reservedPlaces

	// maxPlaces bounds the running exchanges of one budget.
	maxPlaces = 64

	// limitPause is the Retry-After of requests that a limit of this package refuses.
	limitPause = time.Second

	// A key that was refused is in class returning from returnAfter, when its client may
	// have waited, until returnWithin.
	returnAfter  = limitPause / 2
	returnWithin = time.Minute

	// maxKnown bounds the keys that are remembered because they had a token, in some 500
	// KiB: four times those that have one.
	maxKnown = 4 * maxTokens

	// refusedSlots bounds the keys that are remembered as refused, in 512 KiB: while
	// 5,000 others a second are refused, one is remembered for a second with a
	// probability of 93 %.
	refusedSlots = 1 << 16
)

// class is how much of its budget a key may use.
type class int

const (
	returning class = iota // it was refused, and its client came back: all of it
	known                  // it had a token before
	unknown                // any other key
)

// budget bounds the exchanges of a configured identity, of all other client IDs, or of
// refreshes and prefetched keys.
type budget struct {
	of       string        // for errors
	tries    *rate.Limiter // nil: unlimited, for refreshes and prefetched keys
	reserved int           // places that no other budget can take; at least 1
	running  int
}

func newBudget(of string, reserved int) *budget {
	return &budget{of: of, tries: rate.NewLimiter(budgetRate, budgetBurst), reserved: reserved}
}

// newBudgets sets the budgets of the configured identities, of all other client IDs and of
// refreshes. Each has a reserved place at least: with more than 63 identities these are more
// than reservedPlaces, and admit limits their sum.
func (m *memory) newBudgets(identities []azure.ClientID) {
	m.budgets = make(map[azure.ClientID]*budget, len(identities))
	for _, id := range identities {
		m.budgets[id] = newBudget("new resources of this client ID", 0)
	}
	reserved := max(reservedPlaces/(len(m.budgets)+1), 1)
	for _, b := range m.budgets {
		b.reserved = reserved
	}
	m.others = newBudget("client IDs that are not configured", reserved)
	m.refreshes = &budget{of: "refreshes and prefetched resources", reserved: reservedPlaces}
}

// spend takes a try for a key of class c, if there is one. The tries reserved for the
// classes above are refilled first, so they have priority.
func (b *budget) spend(c class, now time.Time) bool {
	return b.tries == nil || b.tries.TokensAt(now) >= float64(1+reservedTries*c) && b.tries.AllowN(now, 1)
}

// budgetOf returns the budget of a client ID.
func (m *memory) budgetOf(id azure.ClientID) *budget {
	if b := m.budgets[id]; b != nil {
		return b
	}
	return m.others
}

// classOf returns the class of a key that needs an exchange.
func (m *memory) classOf(k key, now time.Time) class {
	if age, ok := m.refused.age(k, now); ok && age >= returnAfter && age <= returnWithin {
		return returning
	}
	if m.known.Contains(m.refused.hash(k)) {
		return known
	}
	return unknown
}

// places returns how many exchanges of b may run for keys of class c: those reserved for b,
// and more while shared places are free.
func (m *memory) places(b *budget, c class) int {
	most := max(b.reserved, b.running+sharedPlaces-m.shared)
	if b == m.refreshes {
		return most
	}
	most = min(most, maxPlaces)
	return max(most-max(most/reservedShare, 1)*int(c), 1)
}

// take counts a run of b. Beyond the places reserved for b it takes a shared one.
func (m *memory) take(b *budget) {
	if b.running++; b.running > b.reserved {
		m.shared++
	}
}

// release takes back take.
func (m *memory) release(b *budget) {
	if b.running > b.reserved {
		m.shared--
	}
	b.running--
}

// admit returns an error unless a run may begin now, which then has spent its first try.
func (m *memory) admit(b *budget, c class, now time.Time) *exchange.Error {
	switch {
	case len(m.running) >= maxRunning, b.running >= m.places(b, c):
		return limited(ErrRunningExchanges, "too many exchanges are running for "+b.of)
	case !b.spend(c, now):
		return limited(ErrExchangeRate, "over the budget of exchanges for "+b.of)
	}
	return nil
}

// noteRefused remembers that a limit refused k, and since when.
func (m *memory) noteRefused(k key, now time.Time) {
	if age, ok := m.refused.age(k, now); !ok || age > returnWithin {
		m.refused.set(k, now)
	}
}

func limited(limit Limit, detail string) *exchange.Error {
	return &exchange.Error{Kind: exchange.Throttled, RetryAfter: limitPause, Detail: detail, Cause: limit}
}

// marks remembers when keys were marked, in a table of fixed size by their hash. A newer
// key takes the place of an older one in the same slot. Clients cannot choose the slot of a
// key, since the seed of the hash is random.
type marks struct {
	seed  maphash.Seed
	size  uint64
	start time.Time
	slots []mark // nil until a key is marked
}

// mark is a marked key. The zero mark is no key's.
type mark struct {
	hash   uint32
	millis uint32 // since marks.start, and 1; it wraps around after 49 days
}

func newMarks(size uint64) marks { return marks{seed: maphash.MakeSeed(), size: size} }

func (m *marks) set(k key, now time.Time) {
	if m.slots == nil {
		m.slots, m.start = make([]mark, m.size), now
	}
	hash := m.hash(k)
	m.slots[hash%m.size] = mark{uint32(hash >> 32), m.millis(now)}
}

// age returns for how long k has been marked; ok is false if it is not.
func (m *marks) age(k key, now time.Time) (age time.Duration, ok bool) {
	if m.slots == nil {
		return 0, false
	}
	hash := m.hash(k)
	found := m.slots[hash%m.size]
	age = time.Duration(m.millis(now)-found.millis) * time.Millisecond
	return age, found.millis != 0 && found.hash == uint32(hash>>32)
}

func (m *marks) hash(k key) uint64 { return maphash.Comparable(m.seed, k) }

func (m *marks) millis(now time.Time) uint32 { return uint32(now.Sub(m.start).Milliseconds()) + 1 }

const (
	// maxTokens and maxTokenBytes bound the tokens held. A pod asks for a handful; the
	// bounds are for one that asks for a new resource each time. A token and its entry
	// take some 3 KiB; a token that lists many groups takes 30 KiB.
	maxTokens     = azure.MaxPrefetch
	maxTokenBytes = 8 << 20

	// entryBytes is about what an entry takes beside its strings.
	entryBytes = 512
)

// size is about how much memory a token in the cache takes.
func (h *holding) size(k key) int { return len(h.token.AccessToken) + len(k.resource) + entryBytes }

// evictableSize is the size of a token that may be evicted, and zero for a prefetched one:
// those may take as much as the configuration asks for, and must not push out the others.
func (m *memory) evictableSize(k key, h *holding) int {
	if _, standing := m.prefetch[k]; standing {
		return 0
	}
	return h.size(k)
}

// keep adds a token to the cache, in place of the one before, and makes room for it.
func (m *memory) keep(k key, h *holding) {
	m.forget(k)
	m.held.Add(k, h)
	m.bytes += m.evictableSize(k, h)
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
		m.bytes -= m.evictableSize(k, h)
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
		if bytes[b] += h.size(k); bytes[b] > bytes[most] {
			most = b
		}
	}
	k, ok = oldest[most]
	return k, ok
}
