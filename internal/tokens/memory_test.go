package tokens

import (
	"fmt"
	"testing"
	"time"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/exchange"
)

func TestRestStaysWithinBounds(t *testing.T) {
	for _, kind := range []exchange.Kind{exchange.UnknownIdentity, exchange.FederationMismatch, exchange.Throttled, exchange.Unavailable, exchange.DeadlineExceeded} {
		for _, asked := range []time.Duration{0, time.Second, 10 * time.Minute} {
			for streak := 1; streak < 100; streak++ {
				for _, spread := range []float64{0, 0.999} {
					for _, have := range []bool{false, true} {
						got := rest(&exchange.Error{Kind: kind, RetryAfter: asked}, streak, have, spread)
						if got < asked || got <= 0 || got > 2*max(asked, refreshBackoff.most) {
							t.Fatalf("%s, asked %s, streak %d: %s", kind, asked, streak, got)
						}
					}
				}
			}
		}
	}
}

// situation is what a memory knows of a key when a request for it comes.
type situation struct {
	life     time.Duration // of the token held. Zero: there is none
	age      time.Duration // of the token
	failed   bool          // the last exchange failed just now
	throttle bool          // Entra throttles the client ID
	running  bool          // an exchange runs, with no callers
	full     bool          // no more callers may wait
	standing bool          // the key is prefetched
	spent    bool          // the budget of the client ID is used up
}

func (s situation) memory(now time.Time) *memory {
	k := testKey(idA, 0)
	cfg := Config{Identities: []azure.ClientID{idA}, MaxWaiting: 1}
	if s.standing {
		cfg.Prefetch = []Request{{ClientID: k.clientID, Resource: k.resource}}
	}
	m := newMemory(cfg)
	began := now.Add(-s.age)
	if s.life > 0 {
		m.keep(k, newHolding(exchange.Grant{Token: exchange.Token{AccessToken: "held", ExpiresOn: began.Add(s.life)}}, began, false, 0.5))
	}
	if s.failed {
		m.failed(k, &exchange.Error{Kind: exchange.Unavailable}, now, 0.5)
	}
	if s.throttle {
		m.throttled(k, &exchange.Error{Kind: exchange.Throttled}, now, 0.5)
	}
	if s.running {
		m.begin(k, nil, known, now)
	}
	if s.full {
		m.enter(m.begin(testKey(idB, 0), nil, known, now))
	}
	for s.spent && m.budgets[idA].spend(unknown, now) {
	}
	return m
}

func TestDecide(t *testing.T) {
	const hour = time.Hour
	now := time.Now()
	for name, c := range map[string]struct {
		situation
		fresh bool

		action action
		start  bool // an exchange starts
		backup bool
	}{
		"nothing is held":                      {situation{}, false, wait, true, false},
		"nothing, fresh":                       {situation{}, true, wait, true, false},
		"nothing, an exchange runs":            {situation{running: true}, false, wait, false, false},
		"nothing, it failed":                   {situation{failed: true}, false, refuse, false, false},
		"nothing, Entra throttles":             {situation{throttle: true}, false, refuse, false, false},
		"nothing, it failed, but runs again":   {situation{failed: true, running: true}, false, wait, false, false},
		"nothing, over the budget":             {situation{spent: true}, false, refuse, false, false},
		"nothing, over the budget, prefetched": {situation{spent: true, standing: true}, false, wait, true, false},
		"nothing, over the budget, but runs":   {situation{spent: true, running: true}, false, wait, false, false},
		"nothing, no caller may wait":          {situation{full: true}, false, refuse, true, false},

		"valid":                              {situation{life: hour}, false, serve, false, false},
		"valid, fresh, too young":            {situation{life: hour, age: freshInterval - 1}, true, serve, false, false},
		"valid, fresh":                       {situation{life: hour, age: freshInterval}, true, wait, true, true},
		"valid, fresh, over the budget":      {situation{life: hour, age: freshInterval, spent: true}, true, serve, false, false},
		"valid, fresh, no caller may wait":   {situation{life: hour, age: freshInterval, full: true}, true, serve, true, false},
		"valid, fresh, it failed":            {situation{life: hour, age: freshInterval, failed: true}, true, serve, false, false},
		"valid, fresh, Entra throttles":      {situation{life: hour, age: freshInterval, throttle: true}, true, serve, false, false},
		"valid, fresh, runs after it failed": {situation{life: hour, age: freshInterval, failed: true, running: true}, true, serve, false, false},

		"1 ns before it is due":       {situation{life: hour, age: hour/2 - 1}, false, serve, false, false},
		"due":                         {situation{life: hour, age: hour / 2}, false, serve, true, false},
		"due, runs":                   {situation{life: hour, age: hour / 2, running: true}, false, serve, false, false},
		"due, over the budget":        {situation{life: hour, age: hour / 2, spent: true}, false, serve, true, false},
		"due, fresh, over the budget": {situation{life: hour, age: hour / 2, spent: true}, true, wait, true, true},
		"due, it failed":              {situation{life: hour, age: hour / 2, failed: true}, false, serve, false, false},

		"1 ns before it is stale":       {situation{life: hour, age: hour - staleMargin - 1}, false, serve, true, false},
		"stale":                         {situation{life: hour, age: hour - staleMargin}, false, wait, true, true},
		"stale, it failed":              {situation{life: hour, age: hour - staleMargin, failed: true}, false, serve, false, false},
		"stale, no caller may wait":     {situation{life: hour, age: hour - staleMargin, full: true}, false, serve, true, false},
		"it ends while a caller waits":  {situation{life: hour, age: hour - exchange.MinLife - patience}, false, wait, true, false},
		"it outlasts the wait":          {situation{life: hour, age: hour - exchange.MinLife - patience - 1}, false, wait, true, true},
		"1 ns before it ends":           {situation{life: hour, age: hour - exchange.MinLife - 1, failed: true}, false, serve, false, false},
		"it has ended":                  {situation{life: hour, age: hour - exchange.MinLife}, false, wait, true, false},
		"it has ended, over the budget": {situation{life: hour, age: hour - exchange.MinLife, spent: true}, false, refuse, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			m := c.memory(now)
			d := m.decide(testKey(idA, 0), c.fresh, now)
			if d.action != c.action || d.start != c.start || d.backup != c.backup {
				t.Errorf("got action %d, start %t, backup %t; want %d, %t, %t", d.action, d.start, d.backup, c.action, c.start, c.backup)
			}
			if got := d.token.AccessToken == "held"; got != (d.action == serve || d.action == wait && c.life > 0 && c.age < c.life-exchange.MinLife) {
				t.Errorf("the token is in the decision: %t", got)
			}
			if (d.err != nil) != (d.action == refuse) || (d.waiter != nil) != (d.action == wait) {
				t.Errorf("got error %v, waiter %v", d.err, d.waiter)
			}
			if running := m.running[testKey(idA, 0)]; running != nil && d.run != running || d.run == nil && d.start {
				t.Errorf("got run %p, want %p", d.run, running)
			}
		})
	}
}

// What is counted of running exchanges is right whatever becomes of them.
func TestRunsAreCounted(t *testing.T) {
	now := time.Now()
	m := newMemory(Config{Identities: []azure.ClientID{idA}})
	var runs []*run
	for i, id := range []azure.ClientID{idA, idA, idB} {
		runs = append(runs, m.decide(testKey(id, i), false, now).run)
	}
	check := func(budgeted, ofA, others int) {
		t.Helper()
		if m.budgeted != budgeted || m.budgets[idA].running != ofA || m.others.running != others {
			t.Errorf("%d runs, %d of the identity and %d others; want %d, %d and %d",
				m.budgeted, m.budgets[idA].running, m.others.running, budgeted, ofA, others)
		}
	}
	check(3, 2, 1)
	m.drop(runs[0])
	check(2, 1, 1)
	again := m.decide(runs[0].key, false, now).run
	check(3, 2, 1)
	m.learn(runs[0], exchange.Grant{}, &exchange.Error{Kind: exchange.Unavailable}, now, 0) // dropped before
	check(3, 2, 1)
	m.learn(again, exchange.Grant{}, &exchange.Error{Kind: exchange.Unavailable}, now, 0)
	m.learn(runs[1], exchange.Grant{Token: exchange.Token{ExpiresOn: now.Add(time.Hour)}}, nil, now, 0)
	m.learn(runs[2], exchange.Grant{}, &exchange.Error{Kind: exchange.Throttled}, now, 0)
	check(0, 0, 0)
	if m.waiting != 0 || len(m.running) != 0 {
		t.Errorf("%d callers wait for %d runs", m.waiting, len(m.running))
	}
}

func TestClassesOfABudget(t *testing.T) {
	now := time.Now()
	b := newBudget("a test")
	spend := func(c class) (n int) {
		for b.spend(c, now) {
			n++
		}
		return n
	}
	for _, want := range []struct {
		class class
		n     int
	}{{unknown, 40}, {returning, 5}, {unknown, 0}, {known, 5}, {returning, 0}} {
		if got := spend(want.class); got != want.n {
			t.Errorf("class %d: %d tries, want %d", want.class, got, want.n)
		}
	}
	now = now.Add(time.Second) // one second's tries are for who has priority
	for _, want := range []struct {
		class class
		n     int
	}{{unknown, 0}, {returning, 0}, {known, budgetRate}} {
		if got := spend(want.class); got != want.n {
			t.Errorf("a second later, class %d: %d tries, want %d", want.class, got, want.n)
		}
	}
	now = now.Add(time.Hour)
	if got := spend(known); got != budgetBurst {
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
	m.learn(m.begin(k, nil, known, now), exchange.Grant{Token: exchange.Token{ExpiresOn: now.Add(time.Hour)}}, nil, now, 0)
	check(24*time.Hour, known)
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
			for ; m.admit(m.others, class, now) == nil; n++ {
				m.begin(testKey(idA, n), m.others, class, now)
				m.others.tries = newBudget("").tries // places are what is tested
			}
			return n
		}
		if got := fill(unknown); got != c.unknown {
			t.Errorf("%d identities: %d places for unknown keys, want %d", c.identities, got, c.unknown)
		}
		if got, want := fill(returning), c.unknown+(c.all-c.unknown)/2; got != want {
			t.Errorf("%d identities: %d places for keys that return, want %d", c.identities, got, want)
		}
		if got := fill(known); got != c.all {
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
			if m.admit(b, known, now) != nil {
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
