package tokens

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/exchange"
)

func TestClassesOfABudget(t *testing.T) {
	now := time.Now()
	b := newBudget("a test", 1)
	spend := func(c class) (n int) {
		for n <= budgetBurst && b.spend(c, now) { // the bound ends the loop if the limit is broken
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
	now = now.Add(time.Second) // the tries of a second go to the class with priority
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
	m.noteRefused(k, now.Add(returnWithin)) // the first refusal counts
	check(returnWithin, returning)
	m.noteRefused(k, now.Add(returnWithin+time.Millisecond)) // and after a minute the next one
	check(returnWithin+time.Millisecond+returnAfter, returning)
	m = newMemory(Config{})
	m.learn(m.begin(k, m.refreshes, known, now), exchange.Grant{Token: exchange.Token{ExpiresOn: now.Add(time.Hour)}}, nil, now, 0)
	check(24*time.Hour, known)
	m.noteRefused(k, now)
	check(0, known)
	check(returnAfter, returning)
}

// manyIdentities returns a memory with n configured identities, and all its budgets except
// that of refreshes.
func manyIdentities(n int) (*memory, []*budget) {
	var cfg Config
	for i := range n {
		cfg.Identities = append(cfg.Identities, azure.ClientID(fmt.Sprint(i)))
	}
	m := newMemory(cfg)
	return m, append(slices.Collect(maps.Values(m.budgets)), m.others)
}

// fill begins at most n runs of b for keys of class c until a limit refuses one, and returns
// their number. The rate limit of b is off meanwhile.
func (m *memory) fill(b *budget, c class, n int) (begun int) {
	tries := b.tries
	b.tries = nil
	defer func() { b.tries = tries }()
	now := time.Now()
	for begun < n && m.admit(b, c, now) == nil {
		m.begin(testKey(idA, len(m.running)), b, c, now)
		begun++
	}
	return begun
}

// TestPlacesOfABudget: a budget may use the shared places that the other budgets leave free,
// however many identities are configured. Some of its places are reserved for higher classes.
func TestPlacesOfABudget(t *testing.T) {
	for _, identities := range []int{0, 1, 2, 30, 63, 64, 300} {
		m, budgets := manyIdentities(identities)
		for _, want := range []struct {
			class class
			n     int
		}{{unknown, maxPlaces * 3 / 4}, {known, maxPlaces / 8}, {returning, maxPlaces / 8}} {
			if got := m.fill(budgets[0], want.class, maxRunning); got != want.n {
				t.Errorf("%d identities: %d runs of class %d, want %d", identities, got, want.class, want.n)
			}
		}
	}
}

// TestManyIdentitiesLeavePlacesToOne: with 30 identities, one of them gets as many new
// resources at once as its tries allow.
func TestManyIdentitiesLeavePlacesToOne(t *testing.T) {
	now := time.Now()
	m, _ := manyIdentities(30)
	for i := range budgetBurst - 2*reservedTries {
		if d := m.decide(testKey("7", i), false, now); d.action != wait {
			t.Errorf("new resource %d: got action %d, error %v", i+1, d.action, d.err)
		}
	}
}

// TestReservedPlaces: whatever the other budgets use, an idle budget and the refreshes have
// their reserved places.
func TestReservedPlaces(t *testing.T) {
	for _, identities := range []int{0, 1, 2, 3, 11, 30, 63} {
		for _, step := range []int{1, maxRunning} { // alternating, or one budget after the other
			m, budgets := manyIdentities(identities)
			victim, others := budgets[0], budgets[1:]
			check := func(name string, b *budget, c class, want int) {
				t.Helper()
				if got := m.fill(b, c, maxRunning); got != want {
					t.Errorf("%d identities, step %d: %d runs of %s, want %d", identities, step, got, name, want)
				}
			}
			for range maxRunning {
				for _, b := range others {
					m.fill(b, returning, step)
				}
			}
			wantOthers := min(len(others)*maxPlaces, sharedPlaces+len(others)*victim.reserved)
			if got := len(m.running); got != wantOthers {
				t.Errorf("%d identities, step %d: %d runs of the other budgets, want %d", identities, step, got, wantOthers)
			}
			check("refreshes", m.refreshes, known, reservedPlaces+sharedPlaces-m.sharedBy(others))
			check("an unknown key of the idle budget", victim, unknown, max(victim.reserved-2*max(victim.reserved/reservedShare, 1), 1))
			check("the idle budget", victim, returning, victim.reserved-victim.running)
			if len(m.running) > maxRunning || m.shared != sharedPlaces {
				t.Errorf("%d identities: %d runs, %d of them in shared places", identities, len(m.running), m.shared)
			}
			for _, r := range m.running {
				m.remove(r)
			}
			if m.shared != 0 {
				t.Errorf("%d identities: %d shared places are taken after all runs have ended", identities, m.shared)
			}
		}
	}
}

// sharedBy returns the shared places in use by budgets.
func (m *memory) sharedBy(budgets []*budget) (n int) {
	for _, b := range budgets {
		n += max(b.running-b.reserved, 0)
	}
	return n
}

// TestRunningExchangesAreBounded: at most maxRunning exchanges run, however many identities
// are configured. All places are free again when they have ended.
func TestRunningExchangesAreBounded(t *testing.T) {
	m, budgets := manyIdentities(300)
	for range maxRunning {
		for _, b := range append(budgets, m.refreshes) {
			m.fill(b, returning, 1)
		}
	}
	if got := len(m.running); got != maxRunning {
		t.Errorf("%d runs, want %d", got, maxRunning)
	}
	for _, r := range m.running {
		m.remove(r)
	}
	if got := m.fill(budgets[0], returning, maxRunning); m.shared != maxPlaces-1 || got != maxPlaces {
		t.Errorf("afterwards: %d runs of a budget, %d of them in shared places", got, m.shared)
	}
}

func TestMarks(t *testing.T) {
	start := time.Now()
	m := newMarks(1 << 10)
	a, b := testKey(idA, 1), testKey(idB, 1)
	if _, ok := m.age(a, start); ok {
		t.Error("a key is marked at the start")
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

// A table with one bucket remembers the newest keys only, and confuses them with no other key.
func TestMarksAreBounded(t *testing.T) {
	now := time.Now()
	m := newMarks(bucketSize)
	for i := range 100 {
		now = now.Add(time.Millisecond)
		m.set(testKey(idA, i), now)
		m.set(testKey(idA, i), now) // a key has one slot, however often it is marked
		for j := range 100 {
			if _, ok := m.age(testKey(idA, j), now); ok != (j <= i && j > i-bucketSize) {
				t.Errorf("with key %d as the newest: key %d is marked: %t", i, j, ok)
			}
		}
	}
	if len(m.buckets) != 1 {
		t.Errorf("%d buckets", len(m.buckets))
	}
}

// While 5,000 other keys a second are refused, most keys are remembered for the second after
// which their client retries.
func TestMarksSurviveAFlood(t *testing.T) {
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
	if survived < tries*98/100 { // each with a probability of 99.9 %
		t.Errorf("%d of %d marks survived %d others", survived, tries, flood)
	}
}
