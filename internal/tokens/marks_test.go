package tokens

import (
	"testing"
	"time"
)

func TestMarks(t *testing.T) {
	start := time.Now()
	m := newMarks(1 << 10)
	a, b := testKey(idA, 1), testKey(idB, 1)
	if _, ok := m.age(a, start); ok {
		t.Error("marked from the start")
	}
	m.set(a, start)
	for _, after := range []time.Duration{0, time.Millisecond, time.Hour, 40 * 24 * time.Hour} {
		if got, ok := m.age(a, start.Add(after)); !ok || got != after {
			t.Errorf("after %s: age %s, %t", after, got, ok)
		}
		if _, ok := m.age(b, start.Add(after)); ok {
			t.Error("another key is marked")
		}
	}
	m.set(a, start.Add(time.Hour))
	if got, ok := m.age(a, start.Add(time.Hour)); !ok || got != 0 {
		t.Errorf("marked again: age %s, %t", got, ok)
	}
}

// A table of one slot remembers the newest key, and takes it for no other.
func TestMarksAreBounded(t *testing.T) {
	now := time.Now()
	m := newMarks(1)
	for i := range 100 {
		m.set(testKey(idA, i), now)
		for j := range 100 {
			if _, ok := m.age(testKey(idA, j), now); ok != (i == j) {
				t.Errorf("with key %d in the slot: key %d is marked: %t", i, j, ok)
			}
		}
	}
	if len(m.slots) != 1 {
		t.Errorf("%d slots", len(m.slots))
	}
}

// While 5,000 other keys a second are refused, most are remembered for the second until
// their client comes back.
func TestMarksOutlastAFlood(t *testing.T) {
	now := time.Now()
	const tries, flood = 100, 5000
	survived := 0
	for range tries {
		m := newMarks(refusedSlots)
		m.set(testKey(idA, 0), now)
		for i := range flood {
			m.set(testKey(idA, i+1), now)
		}
		if _, ok := m.age(testKey(idA, 0), now.Add(limitPause)); ok {
			survived++
		}
	}
	if survived < tries*8/10 { // expected are 93
		t.Errorf("%d of %d marks survive %d others", survived, tries, flood)
	}
}
