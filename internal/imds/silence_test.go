package imds_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"imds-oidc-proxy/internal/imds"
	"imds-oidc-proxy/test/kit/local"
)

// network is a stand-in for the network to the real IMDS, in memory.
type network struct {
	t    *testing.T
	imds *local.Pipes

	mu     sync.Mutex // guards the fields below
	fault  error      // of connections. Nil: they succeed
	slow   time.Duration
	dialed []time.Time
}

// dial connects to the stand-in. If the network drops packets, the attempt takes as long as the
// time limit.
func (n *network) dial(ctx context.Context, _, address string) (net.Conn, error) {
	n.mu.Lock()
	n.dialed = append(n.dialed, time.Now())
	fault, slow := n.fault, n.slow
	n.mu.Unlock()
	if address != "192.0.2.1:80" {
		return nil, errors.New("wrong address " + address)
	}
	if fault == nil {
		return n.imds.Dial(n.t), nil
	}
	select {
	case <-time.After(slow):
	case <-ctx.Done():
	}
	return nil, &net.OpError{Op: "dial", Net: "tcp", Err: fault}
}

func (n *network) becomes(fault error, slow time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.fault, n.slow = fault, slow
}

// attempts returns the times of the connection attempts since its last call.
func (n *network) attempts() []time.Time {
	n.mu.Lock()
	defer n.mu.Unlock()
	dialed := n.dialed
	n.dialed = nil
	return dialed
}

// drops makes the network drop all packets to IMDS.
func (n *network) drops() { n.becomes(os.ErrDeadlineExceeded, imds.ForwardDialTimeout) }

// learning returns a handler that learns whether IMDS replies, its network and its log. stop ends
// its background.
func learning(t *testing.T) (h *imds.Handler, n *network, log *observer.ObservedLogs, stop func()) {
	t.Helper()
	n = &network{t: t, imds: local.NewPipes()}
	node := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("{}")) })}
	go node.Serve(n.imds)
	core, log := observer.New(zapcore.InfoLevel)
	cfg := config(&tokenSource{})
	cfg.Passthrough, cfg.LearnSilence, cfg.Log = "http://192.0.2.1", true, zap.New(core)
	h = newHandler(t, cfg.WithForwardDial(n.dial))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- h.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		node.Close()
	})
	return h, n, log, stop
}

// ask returns the status of a request for instance metadata, and how long it took.
func ask(h *imds.Handler) (status int, took time.Duration) {
	began := time.Now()
	return get(h, instance).Code, time.Since(began)
}

// TestSilenceIsLearned: the first request waits until its connection times out. Later ones are
// answered at once, and do not connect. When IMDS replies again, requests are forwarded. Each
// change is logged once.
func TestSilenceIsLearned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, n, log, stop := learning(t)
		defer stop()
		n.drops()
		if status, took := ask(h); status != 403 || took != imds.ForwardDialTimeout {
			t.Errorf("first request: got %d after %s, want 403 after %s", status, took, imds.ForwardDialTimeout)
		}
		n.attempts()
		for range 100 {
			if status, took := ask(h); status != 403 || took != 0 {
				t.Errorf("got %d after %s, want 403 at once", status, took)
			}
		}
		if got := n.attempts(); len(got) != 0 {
			t.Errorf("%d connection attempts, want none", len(got))
		}
		n.becomes(nil, 0)
		time.Sleep(imds.SilenceRetry - 1)
		if status, _ := ask(h); status != 403 {
			t.Errorf("before the retry: got %d, want 403", status)
		}
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		if status, _ := ask(h); status != 200 {
			t.Errorf("after the retry: got %d, want 200", status)
		}
		want := []string{"the instance metadata service does not reply: requests for instance metadata are answered with status 403 until it does",
			"the instance metadata service replies: requests for instance metadata are forwarded again"}
		var got []string
		for _, line := range log.All() {
			if line.Level == zapcore.InfoLevel {
				got = append(got, line.Message)
			}
		}
		if len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
			t.Errorf("logged %q, want %q", got, want)
		}
	})
}

// TestSilenceRetries: there is one attempt at a time, after pauses that grow up to a limit, and
// requests cause none. The attempts end with Run.
func TestSilenceRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, n, _, stop := learning(t)
		defer stop()
		n.drops()
		ask(h)
		learned := time.Now()
		n.attempts()
		for range 24 * 60 { // a day
			time.Sleep(time.Minute)
			ask(h)
		}
		last, pause := learned, imds.SilenceRetry
		attempts := n.attempts()
		for _, at := range attempts {
			if got := at.Sub(last); got != pause {
				t.Fatalf("attempt after %s, want %s", got, pause)
			}
			last, pause = at.Add(imds.ForwardDialTimeout), min(2*pause, imds.SilenceMaxRetry)
		}
		if len(attempts) < 140 || pause != imds.SilenceMaxRetry {
			t.Errorf("%d attempts in a day, the last pause is %s", len(attempts), pause)
		}
		time.Sleep(time.Until(last.Add(imds.SilenceMaxRetry))) // during an attempt
		synctest.Wait()
		stop()
		n.attempts()
		time.Sleep(time.Hour)
		if got := n.attempts(); len(got) != 0 {
			t.Errorf("%d attempts after the end", len(got))
		}
	})
}

// TestFloodBeforeSilence: requests that come before the first timeout make as many attempts as
// there are slots, and all are answered soon after it.
func TestFloodBeforeSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, n, _, stop := learning(t)
		defer stop()
		n.drops()
		var all sync.WaitGroup
		for range 1_000 {
			all.Go(func() {
				if status, took := ask(h); status != 403 && status != 429 || took > imds.ForwardDialTimeout {
					t.Errorf("got %d after %s", status, took)
				}
			})
		}
		all.Wait()
		if got := len(n.attempts()); got > imds.ForwardMaxSlots {
			t.Errorf("%d attempts, want at most %d", got, imds.ForwardMaxSlots)
		}
	})
}

// TestNotSilence: an IMDS that refuses connections, or answers slowly, is not silent: each request
// is forwarded.
func TestNotSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, n, _, stop := learning(t)
		defer stop()
		n.becomes(errors.New("connection refused"), 0)
		for range 3 {
			if status, took := ask(h); status != 403 || took != 0 {
				t.Errorf("refused: got %d after %s", status, took)
			}
		}
		if got := len(n.attempts()); got != 3 {
			t.Errorf("%d attempts, want one for each request", got)
		}
		n.becomes(nil, 0)
		if status, _ := ask(h); status != 200 {
			t.Errorf("got %d, want 200", status)
		}
	})
}
