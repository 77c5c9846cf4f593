package exchange

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"go.uber.org/zap"
	"golang.org/x/time/rate"
)

const (
	// patience is how long a caller waits for a better token when there is a
	// valid one to fall back on.
	patience = 2 * time.Second

	// landingTime is for an exchange to be recorded and logged once its time is
	// over. A caller's own wait ends after it even if that does not.
	landingTime = time.Second

	// Failures are logged at this rate over all keys: an application that makes
	// up resources must not fill the node's disk.
	reportsPerSecond = 1
	reportBurst      = 30
)

// Service answers requests for access tokens, from memory or from Entra.
type Service struct {
	log       *zap.Logger
	observer  Observer
	tokenFile *sharedFile[FederatedToken]
	exchanger exchanger
	warm      func(context.Context) *Error
	close     func()
	random    func() float64 // in [0, 1); safe for concurrent use

	wake  chan struct{} // buffered: the schedule has something new to look at
	lines *rate.Limiter // of failures logged

	// mu guards what follows. It is never held over a file, a network or a log.
	mu        sync.Mutex
	prefetch  map[key]time.Time // keys to have ready, and when each may be asked for anew
	held      *simplelru.LRU[key, *holding]
	failures  *simplelru.LRU[key, *failure]
	throttles *simplelru.LRU[string, *failure] // by client ID
	flights   map[key]*flight

	// aloft holds each flight whose goroutine is not over. One that has landed, and
	// still writes its log, or that was dropped, is not in flights any more.
	aloft   map[*flight]struct{}
	running bool
}

// New returns a Service for cfg, or an error that names the flag or variable to
// change. It reads the files of certificates; it opens no connection and starts
// no goroutine.
func New(cfg Config) (*Service, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	s := &Service{
		log:       cfg.Log.With(zap.String("tenant_id", string(cfg.TenantID))),
		observer:  cfg.Observer,
		tokenFile: newTokenFile(cfg.FederatedTokenFile),
		random:    rand.Float64,
		wake:      make(chan struct{}, 1),
		lines:     rate.NewLimiter(reportsPerSecond, reportBurst),
		flights:   make(map[key]*flight),
		aloft:     make(map[*flight]struct{}),
	}
	if s.prefetch, err = cfg.prefetchKeys(); err != nil {
		return nil, err
	}
	if s.held, err = simplelru.NewLRU[key, *holding](cfg.CacheEntries, nil); err != nil {
		return nil, err
	}
	// As many as tokens: a pod that asks for more failing keys than that in turn has
	// no memory of them.
	if s.failures, err = simplelru.NewLRU[key, *failure](cfg.CacheEntries, nil); err != nil {
		return nil, err
	}
	if s.throttles, err = simplelru.NewLRU[string, *failure](maxThrottles, nil); err != nil {
		return nil, err
	}
	if err := s.connect(cfg); err != nil {
		return nil, err
	}
	return s, nil
}

// connect chooses who makes the exchanges.
func (s *Service) connect(cfg Config) error {
	if cfg.exchanger != nil {
		s.exchanger = cfg.exchanger
		s.warm = func(context.Context) *Error { return nil }
		s.close = func() {}
		return nil
	}
	e, err := newMSALExchanger(cfg, s.tokenFile)
	if err != nil {
		return err
	}
	s.exchanger, s.warm, s.close = e, e.warm, e.close
	return nil
}

// Run warms up the way to Entra, has the prefetched tokens ready, and replaces
// tokens in use ahead of time. It returns when ctx ends: exchanges that a caller
// waits for end first, within [exchangeTimeout], the others are dropped.
func (s *Service) Run(ctx context.Context) error {
	s.mu.Lock()
	if s.running {
		s.mu.Unlock()
		return errors.New("the exchange is already running")
	}
	s.running = true
	s.mu.Unlock()

	var warming sync.WaitGroup
	warming.Go(func() { s.warmUp(ctx) })
	s.schedule(ctx)
	warming.Wait()
	s.drain()
	s.close()
	return nil
}

// wakeUp has the schedule look again. It never waits.
func (s *Service) wakeUp() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Token returns an access token for exactly the client ID and resource of the
// request. A cached one is returned at once; else the caller waits for the
// exchange of its own key, until that ends (within [exchangeTimeout]) or ctx
// does. Its error is an [*Error].
func (s *Service) Token(ctx context.Context, r Request) (Result, error) {
	k := keyOf(r)
	now := time.Now()
	s.mu.Lock()
	if h, _ := s.held.Get(k); h != nil && !r.Fresh && !h.due.come(now) {
		h.used = true
		token := h.tokenAt(now)
		s.mu.Unlock()
		return Result{Token: token, Source: SourceCache}, nil
	}
	next := s.decide(k, r, now)
	s.mu.Unlock()
	if next.wait == nil {
		return next.result, next.err
	}
	return s.wait(ctx, next)
}

// step is what a request has to do: wait for a flight, or return.
type step struct {
	wait *flight // nil: return result and err

	// backup says that result holds a valid token, in case the flight fails or
	// takes longer than patience.
	backup bool
	result Result
	err    error
}

// decide chooses the step of a request that the cache alone does not answer: k
// has no token, one that is due, or one that may not be fresh enough. Service.mu
// is held.
func (s *Service) decide(k key, r Request, now time.Time) step {
	if err := r.check(); err != nil {
		return step{err: err}
	}
	if h := s.valid(k, now); h != nil {
		return s.decideHeld(k, h, r, now)
	}
	f, err := s.flightFor(k, now)
	if err != nil {
		return step{err: err}
	}
	return step{}.waitFor(f)
}

// decideHeld is decide for a key whose token is still valid. Service.mu is held.
func (s *Service) decideHeld(k key, h *holding, r Request, now time.Time) step {
	h.used = true
	cached := step{result: Result{Token: h.tokenAt(now), Source: SourceCache}}
	if r.Fresh && !h.forcible.come(now) {
		return cached
	}
	worthWaiting := (r.Fresh || h.stale.come(now)) && !s.troubled(k, now)
	f, err := s.flightFor(k, now)
	if err != nil {
		return cached
	}
	if !worthWaiting {
		f.asked = true // replaced behind the caller's back, for callers' sake
		return cached
	}
	cached.backup = !h.end.come(f.began.Add(patience))
	return cached.waitFor(f)
}

// flightFor returns the flight for k: the one under way, or one that it begins where
// Entra may be asked now. Service.mu is held.
func (s *Service) flightFor(k key, now time.Time) (*flight, *Error) {
	if f := s.flights[k]; f != nil {
		return f, nil
	}
	if resting := s.resting(k, now); resting != nil {
		return nil, resting.at(now)
	}
	if len(s.flights) >= maxFlights {
		return nil, &Error{Kind: Throttled, RetryAfter: noRoomPause, Detail: "too many exchanges are under way"}
	}
	return s.depart(k, now), nil
}

func (s step) waitFor(f *flight) step {
	f.asked = true
	f.waiting++
	s.wait = f
	return s
}

// valid returns the token held for k unless it has ended. Service.mu is held.
func (s *Service) valid(k key, now time.Time) *holding {
	h, _ := s.held.Get(k)
	if h == nil || h.end.come(now) {
		return nil
	}
	return h
}

// wait waits for the step's flight, for the caller to leave, or, with a backup,
// until patience ends.
func (s *Service) wait(ctx context.Context, next step) (Result, error) {
	f := next.wait
	defer s.leave(f)
	limit := exchangeTimeout + landingTime
	if next.backup {
		limit = patience
	}
	enough, cancel := context.WithDeadline(ctx, f.began.Add(limit))
	defer cancel()
	var err *Error
	select {
	case <-f.done:
		if f.err == nil {
			return Result{Token: f.token, Source: SourceEntra}, nil
		}
		err = f.err
	case <-enough.Done():
		err = outOfTime(ctx)
	}
	if next.backup {
		return next.result, nil
	}
	return Result{}, err
}

func (s *Service) leave(f *flight) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f.waiting--
}

// Discover does what an exchange does before its token request: it connects to
// Entra, verifies its certificate and reads the tenant's OpenID configuration. It
// is for diagnosis; its error is an [*Error].
func (s *Service) Discover(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	if err := s.warm(ctx); err != nil {
		err.Hint = err.hint.advise("", "", err.federated)
		return err
	}
	return nil
}

// Ready reports why exchanges cannot work as far as this pod can tell: the
// federated token is unreadable or has expired. It asks Entra nothing.
func (s *Service) Ready() error {
	ctx, cancel := context.WithTimeout(context.Background(), readyTimeout)
	defer cancel()
	token, err := s.tokenFile.read(ctx)
	if err == nil {
		err = token.usable(time.Now())
	}
	if err != nil {
		return fmt.Errorf("AZURE_FEDERATED_TOKEN_FILE: %w", err)
	}
	return nil
}
