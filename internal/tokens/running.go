package tokens

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"imds-oidc-proxy/internal/exchange"
)

const (
	// tryTimeout bounds one try: discovery, TLS and the token request. The resolver
	// alone takes 5 s to recover from one lost packet.
	tryTimeout = 8 * time.Second

	// exchangeTimeout bounds an exchange with all its tries, and so how long a caller
	// waits. The timeout of SDKs for a metadata request is up to 30 s.
	exchangeTimeout = 20 * time.Second

	// recordTime is the time for recording an exchange that has timed out. After it a
	// caller stops waiting, even if the exchange ignores its timeout.
	recordTime = time.Second
)

// run is a running exchange. All callers that want the token of its key wait for it (as with
// singleflight). It continues when they leave.
type run struct {
	key   key
	began time.Time
	tries int // maximum

	// refresh says that the key had a valid token when the run began.
	refresh bool

	cancel context.CancelFunc
	done   chan struct{} // closed when token and err are set
	ended  chan struct{} // closed when its goroutine returns, after the log

	token exchange.Token
	err   *exchange.Error

	budget *budget
	class  class

	tried bool // a try was made; only its goroutine uses it

	// Service.mu guards the fields below.

	waiters map[waiter]struct{}
	asked   bool // a caller wants the token, not only the schedule
	dropped bool // canceled by drain: the outcome says nothing about Entra
}

// waiter is a caller that waits for a run. It is closed when another caller takes its place.
type waiter chan struct{}

// enter returns a waiter for r, or nil if no more callers may wait. At the limit, the run with
// the most waiters loses one, if it has more than r: so many callers that want one token
// cannot keep out the callers that want another.
func (m *memory) enter(r *run) waiter {
	if m.waiting >= m.maxWaiting && !m.displace(len(r.waiters)+1) {
		return nil
	}
	w := make(waiter)
	r.waiters[w] = struct{}{}
	m.waiting++
	return w
}

// displace removes a waiter of the run with the most waiters, if it has more than n.
func (m *memory) displace(n int) bool {
	var most *run
	for _, r := range m.running {
		if len(r.waiters) > n {
			most, n = r, len(r.waiters)
		}
	}
	if most == nil {
		return false
	}
	for w := range most.waiters {
		m.leave(most, w)
		close(w)
		break
	}
	return true
}

// leave removes a waiter. It does nothing if the waiter was displaced or the run has ended.
func (m *memory) leave(r *run, w waiter) {
	if _, waits := r.waiters[w]; waits {
		delete(r.waiters, w)
		m.waiting--
	}
}

// displaced reports whether another caller has taken the place of a waiter.
func displaced(w waiter) bool {
	select {
	case <-w:
		return true
	default:
		return false
	}
}

func overloaded() *exchange.Error {
	return limited(ErrOverloaded, "too many callers are waiting for tokens")
}

// start starts the goroutine of a run. Its context is not that of a caller, so the run
// continues when a caller leaves. Service.mu is held.
func (s *Service) start(r *run) {
	ctx, cancel := context.WithTimeout(context.Background(), exchangeTimeout)
	r.cancel, r.done, r.ended = cancel, make(chan struct{}), make(chan struct{})
	s.unfinished[r] = struct{}{}
	go func() {
		defer cancel()
		g, err := s.attempt(ctx, r)
		s.record(r, g, err)
		s.finish(r)
	}()
}

func (s *Service) finish(r *run) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.unfinished, r)
	close(r.ended)
}

// attempt makes tries until it has a grant or an error that a retry cannot fix, or until
// ctx ends or no more tries are allowed. No try begins while Entra throttles the client ID: the
// run waits, or ends with an error.
func (s *Service) attempt(ctx context.Context, r *run) (g exchange.Grant, err *exchange.Error) {
	reread := false
	for n := 1; ; n++ {
		if throttle := s.waitForThrottle(ctx, r); throttle != nil {
			return exchange.Grant{}, cmp.Or(err, throttle)
		}
		if n > 1 && !s.spend(r) {
			return g, err
		}
		r.tried = true
		if g, err = s.try(ctx, r.key); err == nil {
			return g, nil
		}
		pause, ok := s.pauseAfter(r, err, n, reread)
		if !ok || !sleep(ctx, pause) {
			return g, err
		}
		reread = reread || err.Retry == exchange.RetryReread
	}
}

// try makes one try, within tryTimeout. whole is the context of the exchange with all its
// tries.
func (s *Service) try(whole context.Context, k key) (exchange.Grant, *exchange.Error) {
	ctx, cancel := context.WithTimeout(whole, tryTimeout)
	defer cancel()
	began := time.Now()
	g, err := s.exchanger.Exchange(ctx, k.clientID, k.resource)
	var failed *exchange.Error
	if err != nil {
		g, failed = exchange.Grant{}, asError(err)
	}
	if failed == nil || !errors.Is(whole.Err(), context.Canceled) { // else drain canceled it, which says nothing about Entra
		s.observer.exchanged(time.Since(began), failed)
	}
	return g, failed
}

func asError(err error) *exchange.Error {
	if e, ok := errors.AsType[*exchange.Error](err); ok {
		return e
	}
	return &exchange.Error{Kind: exchange.Unavailable, Detail: "the exchange failed"}
}

// record stores the outcome of a run and answers its callers. It calls the observer and the
// log afterwards, so that a slow log delays no caller.
func (s *Service) record(r *run, g exchange.Grant, err *exchange.Error) {
	now := time.Now()
	names := s.namesOf(r.key.clientID, g.Token) // without the lock, because it parses the token
	s.mu.Lock()
	err, note := s.memory.learn(r, g, err, now, s.random())
	s.memory.noteNames(r.key.clientID, names, endOf(g.Token, now), now)
	r.token, r.err = g.Token, err
	s.mu.Unlock()
	close(r.done)
	s.wakeUp()
	if note == nil {
		return
	}
	if r.refresh {
		s.observer.refreshed(err)
	}
	note.log(s.log, r.key, now.Sub(r.began))
}

// drain waits for the exchanges that callers wait for, and cancels the others. It waits no
// longer than an exchange may take: an exchange that ignores its timeout, for example in a
// hung file system, must not keep the process from exiting.
func (s *Service) drain() {
	s.mu.Lock()
	for _, r := range s.memory.running {
		if len(r.waiters) == 0 {
			s.memory.drop(r)
			r.cancel()
		}
	}
	unfinished := slices.Collect(maps.Keys(s.unfinished))
	s.running = false
	s.mu.Unlock()
	limit := time.NewTimer(exchangeTimeout + recordTime)
	defer limit.Stop()
	for _, r := range unfinished {
		select {
		case <-r.ended:
		case <-limit.C:
			s.log.Warn("a token exchange has not ended within its timeout, exiting without it")
			return
		}
	}
}
