package tokens

import (
	"fmt"
	"testing"
	"time"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/exchange"
)

func TestClassesOfABudget(t *testing.T) {
	now := time.Now()
	b := newBudget("a test")
	spend := func(c class) (n int) {
		for n <= budgetBurst && b.spend(c, now) { // a limit that does not hold must end the test
			n++
		}
		return n
	}
	for _, want := range []struct {
		class class
		n     int
	}{{unknown, 40}, {known, 5}, {unknown, 0}, {returning, 5}, {known, 0}} {
		if got := spend(want.class); got != want.n {
			t.Errorf("class %d: %d tries, want %d", want.class, got, want.n)
		}
	}
	now = now.Add(time.Second) // one second's tries are for who has priority
	for _, want := range []struct {
		class class
		n     int
	}{{unknown, 0}, {known, 0}, {returning, budgetRate}} {
		if got := spend(want.class); got != want.n {
			t.Errorf("a second later, class %d: %d tries, want %d", want.class, got, want.n)
		}
	}
	now = now.Add(time.Hour)
	if got := spend(returning); got != budgetBurst {
		t.Errorf("an hour later: %d tries, want %d", got, budgetBurst)
	}
}

func TestClassOfAKey(t *testing.T) {
	now := time.Now()
	k := testKey(idA, 0)
	m := newMemory(Config{})
	check := func(after time.Duration, want class) {
		t.Helper()
		if got := m.classOf(k, now.Add(after)); got != want {
			t.Errorf("%s after: class %d, want %d", after, got, want)
		}
	}
	check(0, unknown)
	m.noteRefused(k, now)
	check(0, unknown)
	check(returnAfter-time.Millisecond, unknown)
	check(returnAfter, returning)
	check(returnWithin, returning)
	check(returnWithin+time.Millisecond, unknown)
	m.noteRefused(k, now.Add(returnWithin)) // it counts from the first time
	check(returnWithin, returning)
	m.noteRefused(k, now.Add(returnWithin+time.Millisecond)) // and then anew
	check(returnWithin+time.Millisecond+returnAfter, returning)
	m = newMemory(Config{})
	m.learn(m.begin(k, nil, known, now), exchange.Grant{Token: exchange.Token{ExpiresOn: now.Add(time.Hour)}}, nil, now, 0)
	check(24*time.Hour, known)
	m.noteRefused(k, now)
	check(0, known)
	check(returnAfter, returning)
}

// The more identities there are, the fewer places each has; what is reserved is for the
// classes above.
func TestPlacesOfABudget(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		identities   int
		unknown, all int
	}{{0, 48, 64}, {1, 48, 64}, {2, 48, 64}, {3, 36, 48}, {11, 12, 16}, {23, 6, 8}, {24, 6, 8}, {100, 6, 8}} {
		var cfg Config
		for i := range c.identities {
			cfg.Identities = append(cfg.Identities, azure.ClientID(fmt.Sprint(i)))
		}
		m := newMemory(cfg)
		n := 0
		fill := func(class class) int {
			for ; n <= maxRunning && m.admit(m.others, class, now) == nil; n++ {
				m.begin(testKey(idA, n), m.others, class, now)
				m.others.tries = newBudget("").tries // places are what is tested
			}
			return n
		}
		if got := fill(unknown); got != c.unknown {
			t.Errorf("%d identities: %d places for unknown keys, want %d", c.identities, got, c.unknown)
		}
		if got, want := fill(known), c.unknown+(c.all-c.unknown)/2; got != want {
			t.Errorf("%d identities: %d places for known keys, want %d", c.identities, got, want)
		}
		if got := fill(returning); got != c.all {
			t.Errorf("%d identities: %d places, want %d", c.identities, got, c.all)
		}
	}
}

// Refreshes leave places to the budgets, the budgets to refreshes, and all of them together
// take no more than there are.
func TestReservedPlaces(t *testing.T) {
	now := time.Now()
	m := newMemory(Config{})
	n := 0
	fill := func(budgets int) (begun int) {
		for ; ; n++ {
			var b *budget
			if budgets > 0 {
				b = newBudget("")
			}
			if begun > maxRunning || m.admit(b, returning, now) != nil {
				return begun
			}
			m.begin(testKey(idA, n), b, known, now)
			begun++
		}
	}
	if got := fill(1); got != maxRunning-reservedPlaces {
		t.Errorf("%d exchanges of budgets, want %d", got, maxRunning-reservedPlaces)
	}
	if got := fill(0); got != reservedPlaces {
		t.Errorf("then %d refreshes, want %d", got, reservedPlaces)
	}
	m = newMemory(Config{})
	if got := fill(0); got != maxRunning-reservedPlaces {
		t.Errorf("%d refreshes, want %d", got, maxRunning-reservedPlaces)
	}
	if got := fill(1); got != reservedPlaces {
		t.Errorf("then %d exchanges of budgets, want %d", got, reservedPlaces)
	}
}

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
