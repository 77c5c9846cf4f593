package exchange

import (
	"strings"
	"time"
)

const (
	// staleMargin is the life that is left of a token when it is no longer handed
	// out while a fresh one can be had. SDKs fetch anew at 5 minutes and less, so
	// a token with less would be asked for again on every call.
	staleMargin = 5 * time.Minute

	// staleShare keeps the margin from being most of a short life.
	staleShare = 4

	// leastLife is what a token has left when it is still of use: clients are told
	// whole seconds, crash on none, and their answer is yet to be written.
	leastLife = 2 * time.Second

	// minRefresh is the least time after which a token is replaced because Entra
	// asks for it. A refresh_in of a second, once, is a mistake; for a fleet it
	// would be an exchange a second for each token.
	minRefresh = 5 * time.Minute

	// freshInterval is the least time between exchanges that callers force with
	// [Request.Fresh], whose token would be as young as this, and between those that
	// nobody waits for: an Entra that grants a second of life must not be asked each
	// second.
	freshInterval = 30 * time.Second

	// maxResource bounds a resource. Entra's identifiers end at 255 characters.
	maxResource = 2048

	// maxClientID bounds a client ID, which is a GUID of 36 characters.
	maxClientID = 64
)

// key is what a token is for. The resource stays as it was spelled: its case and
// its trailing slash decide the audience of the token.
type key struct{ clientID, resource string }

// keyOf is the key of a request, whatever it holds.
func keyOf(r Request) key {
	return key{clientID: strings.ToLower(r.ClientID), resource: r.Resource}
}

// check refuses what could not be a single scope, or is too long to keep.
func (r Request) check() error {
	switch {
	case r.ClientID == "" || len(r.ClientID) > maxClientID || strings.ContainsFunc(r.ClientID, notPrintable):
		return &Error{Kind: UnknownIdentity, Detail: "the client ID is not one"}
	case r.Resource == "":
		return &Error{Kind: InvalidResource, Detail: "the resource is empty"}
	case len(r.Resource) > maxResource:
		return &Error{Kind: InvalidResource, Detail: "the resource is too long"}
	case strings.ContainsFunc(r.Resource, notPrintable):
		return &Error{Kind: InvalidResource, Detail: "the resource holds white space or control characters"}
	}
	return nil
}

// notPrintable reports white space (which separates scopes), control characters
// and what is not ASCII.
func notPrintable(r rune) bool { return r <= ' ' || r > '~' }

// grant is what one exchange brought.
type grant struct {
	token Token

	// refreshOn is when Entra asks for the token to be replaced. Zero: not said.
	refreshOn time.Time
}

// moment is a point in the life of a token. It has come when either clock says
// so: the one on the wall may be set back, which makes no token live longer, and
// the monotonic one stands still while a machine sleeps.
type moment struct{ wall, monotonic time.Time }

func momentAfter(now time.Time, d time.Duration) moment {
	at := now.Add(d)
	return moment{wall: at.Round(0), monotonic: at}
}

func (m moment) come(now time.Time) bool {
	return !now.Before(m.wall) || !now.Before(m.monotonic)
}

// next is when m comes, as far as can be told now.
func (m moment) next(now time.Time) time.Time {
	return now.Add(min(m.wall.Sub(now), m.monotonic.Sub(now)))
}

// holding is a token in the cache. Service.mu guards it.
type holding struct {
	token Token

	// forcible is when callers may force the next exchange, and the schedule begin
	// it of its own accord.
	forcible moment

	// due is when to replace the token in the background.
	due moment

	// stale is when the token stops being handed out while a fresh one can be
	// had. It is never before due.
	stale moment

	// end is when the token is of no more use, leastLife before it ends.
	end moment

	// used says that somebody asked since the token was last replaced. The
	// request that brought the token about counts.
	used bool
}

// clockNoise is how far the two clocks drift apart without anybody setting one. Below
// it, the same token is said to end at the same second each time.
const clockNoise = time.Second

// tokenAt is the token as it is handed out. Where the clock on the wall was set back,
// ExpiresOn is what that clock will show at the token's end: callers, whose clock it
// is too, count from it what remains, and must not get more than Entra said.
func (h *holding) tokenAt(now time.Time) Token {
	token := h.token
	if end := h.end.next(now).Add(leastLife).Round(0); token.ExpiresOn.Sub(end) > clockNoise {
		token.ExpiresOn = end
	}
	return token
}

// newHolding plans the life of a token obtained now. spread is in [0, 1).
func newHolding(g grant, now time.Time, used bool, spread float64) *holding {
	life := g.token.ExpiresOn.Sub(now)
	fresh := min(life-min(staleMargin, life/staleShare), life-leastLife)
	delay := refreshDelay(g.refreshOn.Sub(now), life, fresh, spread)
	return &holding{
		token:    g.token,
		forcible: momentAfter(now, freshInterval),
		due:      momentAfter(now, delay),
		stale:    momentAfter(now, fresh),
		end:      momentAfter(now, life-leastLife),
		used:     used,
	}
}

// refreshDelay is how long after it was obtained a token is replaced: a third
// more or less than what Entra asks for, or than half of its life. Spread so, a
// fleet that started in one second is even after one life: what it asks for in
// the first is 3/2 of the mean at its peak (a window of 2/3 of the period).
func refreshDelay(asked, life, fresh time.Duration, spread float64) time.Duration {
	if asked <= 0 || asked >= life {
		asked = life / 2
	}
	asked = max(asked, min(minRefresh, life/2))
	asked = min(asked, fresh*3/4) // so that a third more is still before stale
	return asked*2/3 + time.Duration(float64(asked)*2/3*spread)
}
