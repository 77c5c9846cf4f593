package imds

import (
	"context"
	"errors"
	"net"
	"net/url"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"imds-oidc-proxy/internal/azure"
)

const (
	// silenceRetry is the pause before the first retry, and silenceMaxRetry the longest one:
	// each is twice as long as the one before. A retry is one connection attempt, of a second
	// at most. A network that is set up after the pod started is found with the first one.
	silenceRetry    = 15 * time.Second
	silenceMaxRetry = 10 * time.Minute
)

// silence knows whether packets to the real IMDS get no reply: outside Azure, or on a node that
// drops them. A nil silence never knows. It is safe for concurrent use.
type silence struct {
	address string
	dial    func(ctx context.Context, network, address string) (net.Conn, error)
	silent  atomic.Bool
	learned chan struct{} // has an element after silent was set; wakes run
}

func newSilence(imds azure.MetadataURL, dial func(ctx context.Context, network, address string) (net.Conn, error)) *silence {
	s := &silence{dial: dial, learned: make(chan struct{}, 1)}
	if u, err := url.Parse(string(imds)); err == nil { // it is valid
		s.address = u.Host
		if u.Port() == "" {
			s.address = net.JoinHostPort(u.Hostname(), "80")
		}
	}
	return s
}

func (s *silence) known() bool { return s != nil && s.silent.Load() }

// learn takes the error of a request. Only a connection that times out means silence: an IMDS
// that answers slowly is there.
func (s *silence) learn(err error) {
	failed, ok := errors.AsType[*net.OpError](err)
	if s == nil || !ok || failed.Op != "dial" || !failed.Timeout() || s.silent.Swap(true) {
		return
	}
	select {
	case s.learned <- struct{}{}:
	default:
	}
}

// run waits for silence and then retries, until ctx ends. It makes one attempt at a time.
func (s *silence) run(ctx context.Context, log *zap.Logger) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.learned:
		}
		log.Info("the instance metadata service does not reply: requests for instance metadata are answered with status 403 until it does")
		if !s.retry(ctx) {
			return
		}
		s.silent.Store(false)
		log.Info("the instance metadata service replies: requests for instance metadata are forwarded again")
	}
}

// retry returns true when a connection succeeds, or false when ctx ends.
func (s *silence) retry(ctx context.Context) bool {
	for pause := silenceRetry; ; pause = min(2*pause, silenceMaxRetry) {
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return false
		case <-timer.C:
		}
		conn, err := s.dial(ctx, "tcp", s.address)
		if err == nil {
			conn.Close()
			return true
		}
		if ctx.Err() != nil {
			return false
		}
	}
}

// Run finds out when the real IMDS replies again (see [Config.LearnSilence]), until ctx ends.
func (h *Handler) Run(ctx context.Context) error {
	if h.forwarder != nil && h.forwarder.silence != nil {
		h.forwarder.silence.run(ctx, h.log)
	}
	return nil
}
