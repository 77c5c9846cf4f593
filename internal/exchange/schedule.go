package exchange

import (
	"context"
	"time"

	"go.uber.org/zap"
)

// idleLook is how often the schedule looks where it has nothing planned.
const idleLook = time.Hour

// schedule replaces tokens ahead of time until ctx ends.
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
		timer.Reset(s.departDue(time.Now()))
	}
}

// departDue begins the exchanges that are due, lets go of tokens that have
// ended, and returns how long nothing else is due.
func (s *Service) departDue(now time.Time) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := now.Add(idleLook)
	for _, k := range s.held.Keys() {
		h, _ := s.held.Peek(k)
		if h.end.come(now) {
			s.held.Remove(k)
			continue
		}
		next = earlier(next, h.end.next(now))
		if _, standing := s.prefetch[k]; h.used || standing {
			next = earlier(next, s.departAt(k, later(h.due.next(now), h.forcible.next(now)), now))
		} else if !h.due.come(now) {
			next = earlier(next, h.due.next(now))
		}
	}
	for k, due := range s.prefetch {
		if !s.held.Contains(k) {
			next = earlier(next, s.departAt(k, due, now))
		}
	}
	return next.Sub(now)
}

// departAt begins the exchange for k if it is due at the given time and not
// under way; else it returns when to look again.
func (s *Service) departAt(k key, due, now time.Time) time.Time {
	never := now.Add(idleLook)
	if s.flights[k] != nil {
		return never // its landing wakes the schedule
	}
	due = later(due, s.restsUntil(k, now))
	if now.Before(due) {
		return due
	}
	if len(s.flights) >= maxFlights {
		return now.Add(noRoomPause)
	}
	s.depart(k, now)
	return never
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// warmUp has discovery done and a connection open before the first request.
func (s *Service) warmUp(ctx context.Context) {
	try, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	began := time.Now()
	err := s.warm(try)
	if ctx.Err() != nil {
		return // stopped, which says nothing about Entra
	}
	if err != nil {
		err.Hint = err.hint.advise("", "", err.federated)
		s.log.Warn("entra cannot be reached yet", err.fields()...)
		return
	}
	s.log.Debug("connected to entra", zap.Duration("duration", time.Since(began)))
}
