package tokens

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"imds-oidc-proxy/internal/exchange"
)

const (
	// tryTimeout bounds one try: discovery, TLS and the token request. The
	// resolver alone takes 5 s to get over one lost packet.
	tryTimeout = 8 * time.Second

	// exchangeTimeout bounds an exchange with all its tries, and so what a caller
	// waits. SDKs give a metadata request up to 30 s.
	exchangeTimeout = 20 * time.Second

	// recordTime is for an exchange to be recorded once its time is over. A caller's
	// own wait ends after it even if that does not happen.
	recordTime = time.Second

	// maxTries is how often a key that has not failed before is tried in one
	// exchange. Federation that flaps is over by the next try more often than not.
	maxTries = 3

	// firstPause is before the second try; each further one is three times that.
	firstPause = 500 * time.Millisecond
)

// run is a running exchange. All who want its key wait for it; none of them owns it.
type run struct {
	key   key
	began time.Time
	tries int // at most

	// refresh says that the key had a valid token when the run began.
	refresh bool

	cancel context.CancelFunc
	done   chan struct{} // closed when token and err are set
	ended  chan struct{} // closed when its goroutine returns, after the log

	token exchange.Token
	err   *exchange.Error

	budget *budget
	class  class

	// Service.mu guards what follows.

	waiters map[waiter]struct{}
	asked   bool // a caller wants the token; false: only the schedule does
	dropped bool // by drain: the outcome says nothing about Entra
}

// waiter is a caller that waits for a run. It is closed when another takes its place.
type waiter chan struct{}

// enter returns a waiter for r, or nil if no more callers may wait. When all places are
// taken, the run with the most waiters gives one up, if it has more than r: so a crowd that
// wants one token cannot keep out the callers that want another.
func (m *memory) enter(r *run) waiter {
	if m.waiting >= m.maxWaiting && !m.displace(len(r.waiters)+1) {
		return nil
	}
	w := make(waiter)
	r.waiters[w] = struct{}{}
	m.waiting++
	return w
}

// displace removes a waiter of the run with the most, if that has more than n.
func (m *memory) displace(n int) bool {
	var crowd *run
	for _, r := range m.running {
		if len(r.waiters) > n {
			crowd, n = r, len(r.waiters)
		}
	}
	if crowd == nil {
		return false
	}
	for w := range crowd.waiters {
		m.leave(crowd, w)
		close(w)
		break
	}
	return true
}

// leave removes a waiter that may have been displaced, or whose run may have ended.
func (m *memory) leave(r *run, w waiter) {
	if _, waits := r.waiters[w]; waits {
		delete(r.waiters, w)
		m.waiting--
	}
}

func overloaded() *exchange.Error {
	return limited(ErrOverloaded, "too many callers are waiting for tokens")
}

// start starts the goroutine of a run. Its context is not that of a caller: one that
// leaves does not end the run. Service.mu is held.
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

// attempt tries until it has a grant, an error that another try does not fix, or no
// time.
func (s *Service) attempt(ctx context.Context, r *run) (exchange.Grant, *exchange.Error) {
	pause, reread := firstPause, false
	for n := 1; ; n++ {
		g, err := s.try(ctx, r.key)
		if err == nil || !again(err, n, r.tries, reread) {
			return g, err
		}
		reread = reread || err.Retry == exchange.RetryReread
		// Half to one and a half: a fleet must not retry in step.
		if !sleep(ctx, pause/2+time.Duration(float64(pause)*s.random())) || !s.mayRetry(r) {
			return g, err
		}
		pause *= 3
	}
}

// again reports whether a further try may fix what the nth could not. reread says that
// one was made before because of the federated token.
func again(err *exchange.Error, n, tries int, reread bool) bool {
	switch err.Retry {
	case exchange.RetrySoon:
		// A Retry-After is longer than any pause between tries.
		return n < tries && err.RetryAfter == 0
	case exchange.RetryReread:
		return !reread
	}
	return false
}

func (s *Service) try(whole context.Context, k key) (exchange.Grant, *exchange.Error) {
	ctx, cancel := context.WithTimeout(whole, tryTimeout)
	defer cancel()
	began := time.Now()
	g, err := s.exchanger.Exchange(ctx, k.clientID, k.resource)
	var failed *exchange.Error
	if err != nil {
		g, failed = exchange.Grant{}, asError(err)
	}
	if failed == nil || !errors.Is(whole.Err(), context.Canceled) { // dropped: it says nothing about Entra
		s.observer.exchanged(time.Since(began), failed)
	}
	return g, failed
}

func (s *Service) mayRetry(r *run) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.memory.mayRetry(r, time.Now())
}

func asError(err error) *exchange.Error {
	if e, ok := errors.AsType[*exchange.Error](err); ok {
		return e
	}
	return &exchange.Error{Kind: exchange.Unavailable, Detail: "the exchange failed"}
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

// record has the outcome of a run remembered, and answers those who wait. Then it calls
// the observer and the log: one that is slow delays no caller.
func (s *Service) record(r *run, g exchange.Grant, err *exchange.Error) {
	now := time.Now()
	s.mu.Lock()
	err, note := s.memory.learn(r, g, err, now, s.random())
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

// drain waits for the exchanges that callers wait for, and drops the others. It waits no
// longer than any may take: one that hangs all the same, such as in a file system, must
// not keep the process.
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
			s.log.Warn("an exchange does not end, and is left behind")
			return
		}
	}
}
