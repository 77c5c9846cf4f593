package tokens

import (
	"testing"
	"time"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/exchange"
)

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
		m.begin(k, m.refreshes, known, now)
	}
	if s.full {
		m.enter(m.begin(testKey(idB, 0), m.refreshes, known, now))
	}
	for n := 0; s.spent && n < budgetBurst && m.budgets[idA].spend(unknown, now); n++ {
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
