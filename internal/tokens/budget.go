package tokens

import (
	"hash/maphash"
	"time"

	"golang.org/x/time/rate"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/exchange"
)

// An exchange costs Entra a request, and any client of the pod can cause one by inventing a
// client ID or a resource. So exchanges for keys without a token are rate-limited by a budget:
// each configured identity has one, and all other client IDs share one. Refreshes and
// prefetched keys are not rate-limited. ADR 0048 has the reasons, and what these limits do not
// prevent.

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

	// A key that a limit refused is in class returning from returnAfter, when its client may
	// have obeyed Retry-After, until returnWithin.
	returnAfter  = limitPause / 2
	returnWithin = time.Minute

	// maxKnown bounds the keys that are remembered because they had a token, in some 500
	// KiB: four times as many keys as can have one.
	maxKnown = 4 * maxTokens

	// refusedSlots bounds the keys that are remembered as refused, in 512 KiB: while
	// 5,000 others a second are refused, a key is remembered for a second with a
	// probability of 99.9 %, and for 4 seconds of 96 %.
	refusedSlots = 1 << 16
)

// class says how much of its budget a key may use.
type class int

const (
	returning class = iota // a limit refused it, and its client retries: all of the budget
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
// refreshes. Each has at least one reserved place. With more than 63 identities, the budgets
// have more than reservedPlaces in sum, and only maxRunning bounds the running exchanges.
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
// classes above are refilled first, so these classes have priority.
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

// take counts a running exchange of b. Beyond the places reserved for b it takes a shared
// place.
func (m *memory) take(b *budget) {
	if b.running++; b.running > b.reserved {
		m.shared++
	}
}

// release undoes take.
func (m *memory) release(b *budget) {
	if b.running > b.reserved {
		m.shared--
	}
	b.running--
}

// admit returns an error unless an exchange for a key of class c may begin now. It takes the
// first try from b.
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

// marks is a hash table of fixed size that remembers when keys were marked. A newer key
// replaces the oldest one in the same bucket. Clients cannot choose the bucket of a key, since
// the seed of the hash is random.
type marks struct {
	seed    maphash.Seed
	size    uint64
	start   time.Time
	buckets []bucket // nil until a key is marked
}

type bucket [bucketSize]mark

// bucketSize makes it improbable that all marks of a bucket are replaced in a short time.
const bucketSize = 4

// mark is a marked key. No key has the zero mark.
type mark struct {
	hash   uint32
	millis uint32 // since marks.start, plus 1; it wraps around after 49 days
}

// newMarks returns a table for size keys, which must be a multiple of bucketSize.
func newMarks(size uint64) marks { return marks{seed: maphash.MakeSeed(), size: size / bucketSize} }

func (m *marks) set(k key, now time.Time) {
	if m.buckets == nil {
		m.buckets, m.start = make([]bucket, m.size), now
	}
	hash, millis := m.hash(k), m.millis(now)
	b := &m.buckets[hash%m.size]
	b[b.slotFor(uint32(hash>>32), millis)] = mark{uint32(hash >> 32), millis}
}

// slotFor returns the slot of a key, or else the one that is empty or has the oldest mark.
func (b *bucket) slotFor(hash, now uint32) int {
	slot, oldest := 0, uint32(0)
	for i, found := range b {
		if found.millis != 0 && found.hash == hash {
			return i
		}
		if age := now - found.millis; age > oldest {
			slot, oldest = i, age
		}
	}
	return slot
}

// age returns how long ago k was marked; ok is false if k is not marked.
func (m *marks) age(k key, now time.Time) (age time.Duration, ok bool) {
	if m.buckets == nil {
		return 0, false
	}
	hash := m.hash(k)
	for _, found := range m.buckets[hash%m.size] {
		if found.millis != 0 && found.hash == uint32(hash>>32) {
			return time.Duration(m.millis(now)-found.millis) * time.Millisecond, true
		}
	}
	return 0, false
}

func (m *marks) hash(k key) uint64 { return maphash.Comparable(m.seed, k) }

func (m *marks) millis(now time.Time) uint32 { return uint32(now.Sub(m.start).Milliseconds()) + 1 }
