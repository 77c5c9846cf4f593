package tokens

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"go.uber.org/zap"

	"imds-oidc-proxy/internal/exchange"
)

// Service answers requests for access tokens, from memory or from Entra.
type Service struct {
	log       *zap.Logger
	observer  Observer
	exchanger Exchanger
	random    func() float64 // in [0, 1); safe for concurrent use

	wake chan struct{} // wakes the schedule; buffered

	// mu guards the fields below. It is never held during file or network access, or while
	// logging.
	mu     sync.Mutex
	memory *memory

	// unfinished holds every run whose goroutine has not returned. A run whose outcome is
	// recorded but not logged yet, or that was dropped, is in unfinished but no longer in
	// memory.running.
	unfinished map[*run]struct{}
	running    bool // Run is running
}

// New returns a Service for cfg, or an error that names the flag to change.
func New(cfg Config) (*Service, error) {
	if cfg.Exchanger == nil {
		return nil, errors.New("tokens.Config: Exchanger is required")
	}
	if len(cfg.Prefetch) > maxTokens {
		return nil, fmt.Errorf("--prefetch lists %d resources: must be at most %d", len(cfg.Prefetch), maxTokens)
	}
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	return &Service{
		log:        cfg.Log,
		observer:   cfg.Observer,
		exchanger:  cfg.Exchanger,
		random:     rand.Float64,
		wake:       make(chan struct{}, 1),
		memory:     newMemory(cfg),
		unfinished: make(map[*run]struct{}),
	}, nil
}

// Run connects to Entra, prefetches tokens, and refreshes the tokens in use before they
// expire. When ctx ends, it cancels the exchanges that no caller waits for, and returns after
// the others have ended, within [exchangeTimeout] + [recordTime].
func (s *Service) Run(ctx context.Context) error {
	s.mu.Lock()
	if s.running {
		s.mu.Unlock()
		return errors.New("the token service is already running")
	}
	s.running = true
	s.mu.Unlock()

	var connecting sync.WaitGroup
	connecting.Go(func() { s.connect(ctx) })
	s.schedule(ctx)
	connecting.Wait()
	s.drain()
	return nil
}

// connect does discovery and opens a connection before the first request.
func (s *Service) connect(ctx context.Context) {
	began := time.Now()
	err := s.exchanger.Discover(ctx)
	if ctx.Err() != nil {
		return // Run was stopped, which says nothing about Entra
	}
	if err != nil {
		s.log.Warn("entra cannot be reached yet", zap.Inline(asError(err)))
		return
	}
	s.log.Debug("connected to entra", zap.Duration("duration", time.Since(began)))
}

// schedule prefetches and refreshes tokens until ctx ends.
func (s *Service) schedule(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
		case <-timer.C:
		}
		timer.Reset(s.startDue())
	}
}

// startDue starts the exchanges that are due, and returns how long nothing else is due.
func (s *Service) startDue() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	due, pause := s.memory.due(time.Now())
	for _, r := range due {
		s.start(r)
	}
	return pause
}

// wakeUp makes the schedule check for due exchanges. It never blocks.
func (s *Service) wakeUp() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Token returns an access token for exactly the client ID and resource of the request. It
// returns a cached token at once. Otherwise it waits for the exchange of its own key, until
// that ends (within [exchangeTimeout]) or ctx ends. Its error is an [*exchange.Error].
func (s *Service) Token(ctx context.Context, r Request) (Result, error) {
	if r.Selector != "" {
		return s.tokenOfSelector(ctx, r)
	}
	k := keyOf(r)
	now := time.Now()
	s.mu.Lock()
	d := s.memory.decide(k, r.Fresh, now)
	if d.start {
		s.start(d.run)
	}
	s.mu.Unlock()
	switch d.action {
	case serve:
		return Result{Token: d.token, Source: SourceCache}, nil
	case refuse:
		s.observer.refused(d.err)
		return Result{}, d.err
	}
	return s.wait(ctx, d)
}

// wait waits until the run ends, the caller leaves, another caller takes its place, or the
// run has taken refreshWait and there is a fallback.
func (s *Service) wait(ctx context.Context, d decision) (Result, error) {
	defer s.leave(d.run, d.waiter)
	limit := exchangeTimeout + recordTime
	if d.fallback {
		limit = refreshWait
	}
	bounded, cancel := context.WithDeadline(ctx, d.run.began.Add(limit))
	defer cancel()
	var err *exchange.Error
	select {
	case <-d.run.done:
		if d.run.err == nil {
			return Result{Token: d.run.token, Source: SourceEntra}, nil
		}
		err = d.run.err
	case <-d.waiter:
		err = overloaded()
	case <-bounded.Done():
		err = outOfTime(ctx)
	}
	if d.fallback {
		return Result{Token: d.token, Source: SourceCache}, nil
	}
	s.observer.refused(err)
	return Result{}, err
}

func (s *Service) leave(r *run, w waiter) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.memory.leave(r, w)
}

// outOfTime returns the error of a caller that stopped waiting before the exchange ended:
// because its context ended, or because of the limit on all waits.
func outOfTime(caller context.Context) *exchange.Error {
	e := &exchange.Error{Kind: exchange.DeadlineExceeded, Detail: "the exchange took too long", Cause: context.DeadlineExceeded}
	if err := caller.Err(); err != nil {
		e.Detail, e.Cause = "the caller left before the exchange ended", err
	}
	return e
}

// Stats returns what the cache holds.
func (s *Service) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.memory.stats()
}
