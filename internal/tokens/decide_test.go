package tokens

import (
	"testing"
	"time"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/exchange"
)

// situation describes what a memory knows about a key when a request for it arrives.
type situation struct {
	life       time.Duration // of the cached token. Zero: there is none
	age        time.Duration // of the token
	failed     bool          // the last exchange failed just now
	throttle   time.Duration // Entra throttles the client ID, with this Retry-After
	running    bool          // an exchange is running, without callers
	full       bool          // no more callers may wait
	prefetched bool          // the key is prefetched
	spent      bool          // the budget of the client ID is used up
}

func (s situation) memory(now time.Time) *memory {
	k := testKey(idA, 0)
	cfg := Config{Identities: []azure.ClientID{idA}, MaxWaiting: 1}
	if s.prefetched {
		cfg.Prefetch = []Request{{ClientID: k.clientID, Resource: k.resource}}
	}
	m := newMemory(cfg)
	began := now.Add(-s.age)
	if s.life > 0 {
		m.keep(k, newEntry(exchange.Grant{Token: exchange.Token{AccessToken: "cached", ExpiresOn: began.Add(s.life)}}, began, false, 0.5))
	}
	if s.failed {
		m.failed(k, &exchange.Error{Kind: exchange.Unavailable}, now, 0.5)
	}
	if s.throttle > 0 {
		m.noteThrottle(k, &exchange.Error{Kind: exchange.Throttled, RetryAfter: s.throttle}, now, 0)
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

		action   action
		start    bool // an exchange starts
		fallback bool
	}{
		"no token":                                               {situation{}, false, wait, true, false},
		"no token, fresh":                                        {situation{}, true, wait, true, false},
		"no token, an exchange is running":                       {situation{running: true}, false, wait, false, false},
		"no token, the last exchange failed":                     {situation{failed: true}, false, refuse, false, false},
		"no token, Entra throttles for long":                     {situation{throttle: maxPause + 1}, false, refuse, false, false},
		"no token, Entra throttles":                              {situation{throttle: maxPause}, false, wait, true, false},
		"no token, Entra throttles, the last exchange failed":    {situation{throttle: maxPause, failed: true}, false, refuse, false, false},
		"no token, Entra throttles, over the budget":             {situation{throttle: maxPause, spent: true}, false, refuse, false, false},
		"no token, Entra throttles, no caller may wait":          {situation{throttle: maxPause, full: true}, false, refuse, true, false},
		"no token, the last exchange failed, another is running": {situation{failed: true, running: true}, false, wait, false, false},
		"no token, over the budget":                              {situation{spent: true}, false, refuse, false, false},
		"no token, over the budget, prefetched":                  {situation{spent: true, prefetched: true}, false, wait, true, false},
		"no token, over the budget, an exchange is running":      {situation{spent: true, running: true}, false, wait, false, false},
		"no token, no caller may wait":                           {situation{full: true}, false, refuse, true, false},

		"valid":                                  {situation{life: hour}, false, serve, false, false},
		"valid, fresh, too young":                {situation{life: hour, age: freshInterval - 1}, true, serve, false, false},
		"valid, fresh":                           {situation{life: hour, age: freshInterval}, true, wait, true, true},
		"valid, fresh, over the budget":          {situation{life: hour, age: freshInterval, spent: true}, true, serve, false, false},
		"valid, fresh, no caller may wait":       {situation{life: hour, age: freshInterval, full: true}, true, serve, true, false},
		"valid, fresh, the last exchange failed": {situation{life: hour, age: freshInterval, failed: true}, true, serve, false, false},
		"valid, fresh, Entra throttles":          {situation{life: hour, age: freshInterval, throttle: maxPause}, true, serve, false, false},
		"due, Entra throttles":                   {situation{life: hour, age: hour / 2, throttle: maxPause}, false, serve, false, false},
		"ended, Entra throttles":                 {situation{life: hour, age: hour, throttle: maxPause}, false, wait, true, false},
		"valid, fresh, the last exchange failed, another is running": {situation{life: hour, age: freshInterval, failed: true, running: true}, true, serve, false, false},

		"1 ns before it is due":         {situation{life: hour, age: hour/2 - 1}, false, serve, false, false},
		"due":                           {situation{life: hour, age: hour / 2}, false, serve, true, false},
		"due, an exchange is running":   {situation{life: hour, age: hour / 2, running: true}, false, serve, false, false},
		"due, over the budget":          {situation{life: hour, age: hour / 2, spent: true}, false, serve, true, false},
		"due, fresh, over the budget":   {situation{life: hour, age: hour / 2, spent: true}, true, wait, true, true},
		"due, the last exchange failed": {situation{life: hour, age: hour / 2, failed: true}, false, serve, false, false},

		"1 ns before it is stale":         {situation{life: hour, age: hour - staleMargin - 1}, false, serve, true, false},
		"stale":                           {situation{life: hour, age: hour - staleMargin}, false, wait, true, true},
		"stale, the last exchange failed": {situation{life: hour, age: hour - staleMargin, failed: true}, false, serve, false, false},
		"stale, no caller may wait":       {situation{life: hour, age: hour - staleMargin, full: true}, false, serve, true, false},
		"ends while a caller waits":       {situation{life: hour, age: hour - exchange.MinLife - refreshWait}, false, wait, true, false},
		"ends 1 ns after the wait":        {situation{life: hour, age: hour - exchange.MinLife - refreshWait - 1}, false, wait, true, true},
		"1 ns before it ends":             {situation{life: hour, age: hour - exchange.MinLife - 1, failed: true}, false, serve, false, false},
		"ended":                           {situation{life: hour, age: hour - exchange.MinLife}, false, wait, true, false},
		"ended, over the budget":          {situation{life: hour, age: hour - exchange.MinLife, spent: true}, false, refuse, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			m := c.memory(now)
			d := m.decide(testKey(idA, 0), c.fresh, now)
			if d.action != c.action || d.start != c.start || d.fallback != c.fallback {
				t.Errorf("got action %d, start %t, fallback %t; want %d, %t, %t", d.action, d.start, d.fallback, c.action, c.start, c.fallback)
			}
			if got := d.token.AccessToken == "cached"; got != (d.action == serve || d.action == wait && c.life > 0 && c.age < c.life-exchange.MinLife) {
				t.Errorf("decision has the token: %t", got)
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

// A token is refreshed after 2/3 to 4/3 of what Entra asks for, and before it is stale.
func TestRefreshDelay(t *testing.T) {
	now := time.Now()
	for _, life := range []time.Duration{2 * exchange.MinLife, time.Minute, 19 * time.Minute, 20 * time.Minute, time.Hour, 24 * time.Hour, 31 * 24 * time.Hour} {
		for _, asked := range []time.Duration{-time.Hour, 0, 1, life / 10, life / 2, life * 9 / 10, life - 1, life, 2 * life} {
			g := exchange.Grant{Token: exchange.Token{ExpiresOn: now.Add(life)}, RefreshOn: now.Add(asked)}
			earliest, latest := newEntry(g, now, true, 0), newEntry(g, now, true, 1)
			if earliest.due.wall.Before(now) || latest.due.wall.Before(earliest.due.wall) ||
				latest.stale.wall.Before(latest.due.wall) || !latest.stale.wall.Before(g.Token.ExpiresOn) {
				t.Errorf("life %s, asked %s: due from %s to %s, stale at %s", life, asked,
					earliest.due.wall.Sub(now), latest.due.wall.Sub(now), latest.stale.wall.Sub(now))
			}
			if asked <= 0 || asked >= life {
				asked = life / 2
			}
			if last := latest.due.wall.Sub(now); asked <= life/2 && life >= 20*time.Minute && (last < asked*4/3-2 || last > max(asked, minRefresh)*4/3) {
				t.Errorf("life %s, asked %s: due at the latest after %s", life, asked, last)
			}
			if latest.stale.wall.After(latest.end.wall) {
				t.Errorf("life %s, asked %s: stale %s after it has ended", life, asked, latest.stale.wall.Sub(latest.end.wall))
			}
		}
	}
}
