package exchange

import (
	"context"
	"net/http"
	"testing/synctest"
	"time"
)

// What the tests outside of the package need to know of the inside.
const (
	TryTimeout      = tryTimeout
	ExchangeTimeout = exchangeTimeout
	Patience        = patience
	LandingTime     = landingTime
	StaleMargin     = staleMargin
	LeastLife       = leastLife
	FreshInterval   = freshInterval
	MaxTries        = maxTries
	MaxFlights      = maxFlights
	MaxResource     = maxResource
	MaxBody         = maxBody
	MaxRetryAfter   = maxRetryAfter
	FailureLife     = failureLife
	RepeatInterval  = repeatInterval
)

// ExchangeFunc is one try at an exchange: a token, and when to replace it.
type ExchangeFunc func(ctx context.Context, clientID, resource string) (Token, time.Time, error)

func (f ExchangeFunc) exchange(ctx context.Context, clientID, resource string) (grant, error) {
	token, refreshOn, err := f(ctx, clientID, resource)
	return grant{token: token, refreshOn: refreshOn}, err
}

// WithExchanger has f make the exchanges.
func (c Config) WithExchanger(f ExchangeFunc) Config {
	c.exchanger = f
	return c
}

// WithTransport has rt carry the requests to Entra, with no connection.
func (c Config) WithTransport(rt http.RoundTripper) Config {
	c.transport = rt
	return c
}

// FixSpread replaces chance by a number in [0, 1).
func (s *Service) FixSpread(x float64) { s.random = func() float64 { return x } }

// SetClockBack is as if the clock on the wall had been set back by d: all that was
// written down by it lies that much later. It is for synctest bubbles: a flight that
// has told its callers still reads, for its log line, what is written over here.
func (s *Service) SetClockBack(d time.Duration) {
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range s.held.Values() {
		h.token.ExpiresOn = h.token.ExpiresOn.Add(d)
		for _, m := range []*moment{&h.forcible, &h.due, &h.stale, &h.end} {
			m.wall = m.wall.Add(d)
		}
	}
}

// RetrySoon makes e one that is tried again before callers are told.
func (e *Error) RetrySoon() *Error { e.retry = retrySoon; return e }

// Held is the number of tokens in memory.
func (s *Service) Held() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.held.Len()
}

// Exchange makes one try, past the cache.
func (s *Service) Exchange(ctx context.Context, clientID, resource string) error {
	_, err := s.exchanger.exchange(ctx, clientID, resource)
	return err
}

// CloseIdle closes the idle connections, as Run does at its end.
func (s *Service) CloseIdle() { s.close() }
