package tokens

import (
	"time"

	"imds-oidc-proxy/internal/exchange"
)

const (
	// maxTokens and maxTokenBytes bound the tokens held. A pod asks for a handful; the
	// bounds are for one that asks for a new resource each time. A token and its entry
	// take some 3 KiB; a token that lists many groups takes 30 KiB.
	maxTokens     = 1024
	maxTokenBytes = 8 << 20

	// entryBytes is about what an entry takes beside its strings.
	entryBytes = 512
)

// size is about how much memory a token in the cache takes.
func (h *holding) size(k key) int { return len(h.token.AccessToken) + len(k.resource) + entryBytes }

// keep adds a token to the cache, in place of the one before, and makes room for it.
func (m *memory) keep(k key, h *holding) {
	m.forget(k)
	m.held.Add(k, h)
	m.bytes += h.size(k)
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
		m.bytes -= h.size(k)
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

const (
	// staleMargin is the remaining life below which a token is no longer returned if a
	// fresh one can be had. SDKs fetch a new token at 5 minutes and less, so they would
	// ask for one with less again on every call.
	staleMargin = 5 * time.Minute

	// staleShare limits the margin to a quarter of a short life.
	staleShare = 4

	// minRefresh is the least time after which a token is replaced because Entra
	// asks for it. A refresh_in of a second, once, is a mistake; for a fleet it
	// would be an exchange a second for each token.
	minRefresh = 5 * time.Minute

	// freshInterval is the least time between exchanges of one key that callers force
	// with [Request.Fresh], or that the schedule starts: if Entra grants a second of
	// life, it must not be asked each second.
	freshInterval = 30 * time.Second
)

// moment is a point in the life of a token. It has come when either clock says so: the
// wall clock may be set back, which makes no token live longer, and the monotonic clock
// stands still while a machine sleeps.
type moment struct{ wall, monotonic time.Time }

func momentAfter(now time.Time, d time.Duration) moment {
	at := now.Add(d)
	return moment{wall: at.Round(0), monotonic: at}
}

func (m moment) come(now time.Time) bool {
	return !now.Before(m.wall) || !now.Before(m.monotonic)
}

// next is when m comes, as far as is known now.
func (m moment) next(now time.Time) time.Time {
	return now.Add(min(m.wall.Sub(now), m.monotonic.Sub(now)))
}

// holding is a token in the cache.
type holding struct {
	token exchange.Token

	// forcible is when callers may force the next exchange, or the schedule start it.
	forcible moment

	// due is when to replace the token in the background.
	due moment

	// stale is when the token is no longer returned if a fresh one can be had. It is
	// never before due.
	stale moment

	// end is when the token is of no more use, [exchange.MinLife] before it ends.
	end moment

	// used says that a caller asked since the token was last replaced. The request that
	// caused the exchange counts.
	used bool
}

// clockNoise is how far the two clocks drift apart without being set. Below it, ExpiresOn
// of the same token does not change.
const clockNoise = time.Second

// tokenAt returns the token for a caller. If the wall clock was set back, ExpiresOn is
// what that clock will show at the token's end: callers have the same clock, compute the
// remaining life with it, and must not get more than Entra said.
func (h *holding) tokenAt(now time.Time) exchange.Token {
	token := h.token
	if end := h.end.next(now).Add(exchange.MinLife).Round(0); token.ExpiresOn.Sub(end) > clockNoise {
		token.ExpiresOn = end
	}
	return token
}

// newHolding plans the life of a token obtained now. chance is in [0, 1).
func newHolding(g exchange.Grant, now time.Time, used bool, chance float64) *holding {
	life := g.Token.ExpiresOn.Sub(now)
	fresh := min(life-min(staleMargin, life/staleShare), life-exchange.MinLife)
	delay := refreshDelay(g.RefreshOn.Sub(now), life, fresh, chance)
	return &holding{
		token:    g.Token,
		forcible: momentAfter(now, freshInterval),
		due:      momentAfter(now, delay),
		stale:    momentAfter(now, fresh),
		end:      momentAfter(now, life-exchange.MinLife),
		used:     used,
	}
}

// refreshDelay is how long after it was obtained a token is replaced: a third more or
// less than what Entra asks for, or than half of its life. With this jitter, the
// refreshes of a fleet that started in one second are even after one life of a token: in
// the first life their peak is 3/2 of the mean (a window of 2/3 of the period).
func refreshDelay(asked, life, fresh time.Duration, chance float64) time.Duration {
	if asked <= 0 || asked >= life {
		asked = life / 2
	}
	asked = max(asked, min(minRefresh, life/2))
	asked = min(asked, fresh*3/4) // so that a third more is still before stale
	return asked*2/3 + time.Duration(float64(asked)*2/3*chance)
}
