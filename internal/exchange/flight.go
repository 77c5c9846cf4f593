package exchange

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"
)

const (
	// tryTimeout bounds one try: discovery, TLS and the token request. The
	// resolver alone takes 5 s to get over one lost packet.
	tryTimeout = 8 * time.Second

	// exchangeTimeout bounds an exchange with all its tries, and so what a caller
	// waits. SDKs give a metadata request up to 30 s.
	exchangeTimeout = 20 * time.Second

	// maxTries is how often a key that has not failed before is tried in one
	// exchange. Federation that flaps is over by the next try more often than not.
	maxTries = 3

	// firstPause is before the second try; each further one is three times that.
	firstPause = 500 * time.Millisecond

	// maxFlights bounds the exchanges under way at once. Each has a connection
	// of some 60 KiB, and a sidecar has little memory.
	maxFlights = 256

	// noRoomPause is what a caller is told to wait when there are more.
	noRoomPause = time.Second
)

// exchanger makes one try at an exchange. It returns an [*Error] when it fails,
// and does so soon after ctx ends.
type exchanger interface {
	exchange(ctx context.Context, clientID, resource string) (grant, error)
}

// flight is an exchange under way. All who want its key wait for it; none of
// them owns it.
type flight struct {
	began  time.Time
	cancel context.CancelFunc
	done   chan struct{} // closed when token and err are set
	ended  chan struct{} // closed when its goroutine is over, after the log

	// refresh says that the key had a valid token when the flight began.
	refresh bool

	token Token
	err   *Error

	// Service.mu guards what follows.

	waiting int  // callers that wait now
	asked   bool // some caller began it or waited for it
	dropped bool // ended by drain: its outcome says nothing about Entra
}

// depart begins an exchange for k, in a goroutine with a context of its own: a
// caller that leaves does not end it. Service.mu is held.
func (s *Service) depart(k key, now time.Time) *flight {
	tries, refresh := maxTries, s.valid(k, now) != nil
	if refresh || s.failing(k, now) != nil {
		tries = 1 // the next exchange is the next try
	}
	// The caller's strings may be part of a much longer request in memory.
	k = key{clientID: strings.Clone(k.clientID), resource: strings.Clone(k.resource)}
	ctx, cancel := context.WithTimeout(context.Background(), exchangeTimeout)
	f := &flight{began: now, cancel: cancel, done: make(chan struct{}), ended: make(chan struct{}), refresh: refresh}
	s.flights[k] = f
	s.aloft[f] = struct{}{}
	go func() {
		defer cancel()
		g, err := s.attempt(ctx, k, tries)
		s.land(k, f, g, err)
		s.end(f)
	}()
	return f
}

func (s *Service) end(f *flight) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.aloft, f)
	close(f.ended)
}

// attempt tries until it has a grant, an error that another try does not mend,
// or no time.
func (s *Service) attempt(ctx context.Context, k key, tries int) (grant, *Error) {
	pause, reread := firstPause, false
	for n := 1; ; n++ {
		g, err := s.try(ctx, k)
		if err == nil || !err.again(n, tries, reread) {
			return g, err
		}
		reread = reread || err.retry == retryReread
		// Half to one and a half: a fleet must not retry in step.
		if !sleep(ctx, pause/2+time.Duration(float64(pause)*s.random())) || s.quiet(k) {
			return g, err
		}
		pause *= 3
	}
}

// again reports whether a further try may mend what the nth could not. reread says
// that one was made before for the federated token's sake.
func (e *Error) again(n, tries int, reread bool) bool {
	switch e.retry {
	case retrySoon:
		// A Retry-After is longer than any pause between tries.
		return n < tries && e.RetryAfter == 0
	case retryReread:
		return !reread
	}
	return false
}

func (s *Service) try(whole context.Context, k key) (grant, *Error) {
	ctx, cancel := context.WithTimeout(whole, tryTimeout)
	defer cancel()
	began := time.Now()
	g, err := s.exchanger.exchange(ctx, k.clientID, k.resource)
	var failed *Error
	if err != nil {
		g, failed = grant{}, asError(err)
	}
	if failed == nil || !errors.Is(whole.Err(), context.Canceled) { // dropped: it says nothing about Entra
		s.observer.exchanged(time.Since(began), failed)
	}
	return g, failed
}

// quiet reports whether Entra has asked for quiet since the flight for k began.
func (s *Service) quiet(k key) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.throttling(k, time.Now()) != nil
}

func asError(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	return &Error{Kind: Unavailable, Detail: "the exchange failed"}
}

// sleep reports whether the whole pause passed before ctx ended.
func sleep(ctx context.Context, pause time.Duration) bool {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// land records the outcome of a flight, tells those who wait, and then the log and
// the metrics: a log that is slow to take a line holds nobody up.
func (s *Service) land(k key, f *flight, g grant, err *Error) {
	now := time.Now()
	s.mu.Lock()
	if s.flights[k] == f {
		delete(s.flights, k)
	}
	var note report
	switch {
	case err == nil:
		note = s.succeeded(k, f, g, now)
	case !f.dropped:
		note = s.failed(k, err, now)
		err = note.failed.at(now)
	}
	f.token, f.err = g.token, err
	s.mu.Unlock()
	close(f.done)
	s.wakeUp()
	if f.refresh && note != (report{}) {
		s.observer.refreshed(err)
	}
	note.log(s.log, k, now.Sub(f.began))
}

// succeeded keeps the token. Service.mu is held.
func (s *Service) succeeded(k key, f *flight, g grant, now time.Time) report {
	past := s.failing(k, now)
	s.failures.Remove(k)
	s.unthrottled(k, now)
	h := newHolding(g, now, f.asked, s.random())
	s.held.Add(k, h)
	if _, standing := s.prefetch[k]; standing {
		s.prefetch[k] = now.Add(freshInterval)
	}
	return report{held: h, past: past}
}

// failed remembers the failure. Service.mu is held.
func (s *Service) failed(k key, err *Error, now time.Time) report {
	err.Hint = err.hint.advise(k.clientID, k.resource, err.federated)
	past := s.failing(k, now)
	h := s.valid(k, now)

	next := &failure{err: err, streak: 1}
	if past != nil {
		next.streak = past.streak + 1
	}
	spread := s.random()
	next.until = now.Add(rest(err, next.streak, h != nil, spread))
	if h != nil && err.RetryAfter == 0 {
		// Without the token callers wait, and may cause a try.
		next.until = earlier(next.until, h.end.next(now))
	}
	if err.Kind == Throttled {
		next.until = later(next.until, s.throttled(k, err, now, spread))
	}
	s.failures.Add(k, next)
	return s.reportOf(next, past, now)
}

// drain waits for the exchanges that callers wait for, and drops the others. It does
// not wait for longer than any may take: one that hangs all the same, such as in a
// file system, must not keep the process.
func (s *Service) drain() {
	s.mu.Lock()
	for k, f := range s.flights {
		if f.waiting == 0 {
			f.dropped = true
			f.cancel()
			delete(s.flights, k) // a caller that comes now gets one of its own
		}
	}
	underway := slices.Collect(maps.Keys(s.aloft))
	s.running = false
	s.mu.Unlock()
	limit := time.NewTimer(exchangeTimeout + landingTime)
	defer limit.Stop()
	for _, f := range underway {
		select {
		case <-f.ended:
		case <-limit.C:
			s.log.Warn("an exchange does not end, and is left behind")
			return
		}
	}
}
