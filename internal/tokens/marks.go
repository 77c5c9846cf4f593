package tokens

import (
	"hash/maphash"
	"time"
)

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
