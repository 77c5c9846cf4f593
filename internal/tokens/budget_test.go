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
	m.learn(m.begin(k, m.refreshes, known, now), exchange.Grant{Token: exchange.Token{ExpiresOn: now.Add(time.Hour)}}, nil, now, 0)
	check(24*time.Hour, known)
	m.noteRefused(k, now)
	check(0, known)
	check(returnAfter, returning)
}

// manyIdentities returns a memory of n configured identities, and all of its budgets but
// that of refreshes.
func manyIdentities(n int) (*memory, []*budget) {
	var cfg Config
	for i := range n {
		cfg.Identities = append(cfg.Identities, azure.ClientID(fmt.Sprint(i)))
	}
	m := newMemory(cfg)
	return m, append(slices.Collect(maps.Values(m.budgets)), m.others)
}

// fill begins runs of b for keys of class c until a limit refuses one, at most n. It returns
// how many it has begun. Their tries cost nothing.
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

// A budget may use shared places while the other budgets do not, however many identities
// are configured. Some are reserved for the classes above.
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

// With 30 identities, one of them gets as many new resources at once as its budget of tries
// allows.
func TestManyIdentitiesLeavePlacesToOne(t *testing.T) {
	now := time.Now()
	m, _ := manyIdentities(30)
	for i := range budgetBurst - 2*reservedTries {
		if d := m.decide(testKey("7", i), false, now); d.action != wait {
			t.Errorf("new resource %d: got action %d, error %v", i+1, d.action, d.err)
		}
	}
}

// Whatever the other budgets and the refreshes use, a budget has its reserved places, and
// the refreshes have theirs.
func TestReservedPlaces(t *testing.T) {
	for _, identities := range []int{0, 1, 2, 3, 11, 30, 63} {
		for _, step := range []int{1, maxRunning} { // in turn, or one budget after the other
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

// No more than maxRunning exchanges run, however many identities are configured, and all
// places are free after them.
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
		t.Errorf("after them: %d runs of a budget, %d of them in shared places", got, m.shared)
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
