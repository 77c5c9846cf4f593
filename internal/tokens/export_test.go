package tokens

import (
	"testing/synctest"
	"time"
)

// Constants for the tests of package tokens_test.
const (
	TryTimeout      = tryTimeout
	ExchangeTimeout = exchangeTimeout
	RefreshWait     = refreshWait
	MaxPause        = maxPause
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

// FixJitter replaces the random number of the jitter by x, in [0, 1).
func (s *Service) FixJitter(x float64) { s.random = func() float64 { return x } }

// SetClockBack simulates that the wall clock was set back by d: it moves all stored wall-clock
// times into the future by d. It is for synctest bubbles.
func (s *Service) SetClockBack(d time.Duration) {
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range s.memory.cache.Values() {
		h.token.ExpiresOn = h.token.ExpiresOn.Add(d)
		for _, m := range []*moment{&h.forceable, &h.due, &h.stale, &h.end} {
			m.wall = m.wall.Add(d)
		}
	}
}
