package tokens

import (
	"testing/synctest"
	"time"
)

// What the tests outside of the package need to know of the inside.
const (
	TryTimeout      = tryTimeout
	ExchangeTimeout = exchangeTimeout
	Patience        = patience
	RecordTime      = recordTime
	StaleMargin     = staleMargin
	FreshInterval   = freshInterval
	MaxTries        = maxTries
	MaxRunning      = maxRunning
	MaxTokens       = maxTokens
	FailureLife     = failureLife
	RepeatInterval  = repeatInterval
	BudgetRate      = budgetRate
	BudgetBurst     = budgetBurst
	LimitPause      = limitPause
	ReservedPlaces  = reservedPlaces
	ReservedTries   = reservedTries
	MaxPlaces       = maxPlaces
	MaxTokenBytes   = maxTokenBytes
)

// FixChance replaces chance by a number in [0, 1).
func (s *Service) FixChance(x float64) { s.random = func() float64 { return x } }

// SetClockBack is as if the wall clock had been set back by d: all that was noted with
// it lies that much later. It is for synctest bubbles.
func (s *Service) SetClockBack(d time.Duration) {
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range s.memory.held.Values() {
		h.token.ExpiresOn = h.token.ExpiresOn.Add(d)
		for _, m := range []*moment{&h.forcible, &h.due, &h.stale, &h.end} {
			m.wall = m.wall.Add(d)
		}
	}
}
