package main

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync"
	"time"
)

const (
	// maxConnections is the maximum number of connections of a port. API servers keep a few open,
	// but others may connect too.
	maxConnections = 256

	// grace is how long a client may make the server wait before its connection is closed in
	// favor of another. A client sends its request within milliseconds of connecting.
	grace = 500 * time.Millisecond

	// unread is the same for the reading of an answer. The kernel's buffers take all but the
	// largest answers at once.
	unread = 100 * time.Millisecond
)

// peers are the open connections of a port. They limit what clients can hold that send or read
// slowly: connections, and the memory of requests and answers on their way. At a limit, the
// connection for which the server has waited the longest is closed, after a grace period. Thus a
// slow client delays the others by the grace period, and not until its timeout.
type peers struct {
	metrics *metrics

	mu                 sync.Mutex
	open               map[*peer]struct{}
	changed            chan struct{} // closed and replaced when a connection or memory becomes free
	receiving, sending budget
}

// budget is the memory of the requests that are being received, or of the answers that are being
// sent, in bytes.
type budget struct{ limit, used int64 }

// peer is a connection, from when it is accepted until it is closed.
type peer struct {
	net.Conn
	peers *peers

	// The fields below are guarded by peers.mu.

	waiting time.Time // since when the server waits for the client; zero: it does not
	began   time.Time // when the request began
	holds   *budget   // nil: none
	bytes   int64     // of holds
	gone    bool
}

// errEvicted is the error of a connection that was closed in favor of another.
var errEvicted = errors.New("the client was too slow, and others wait")

func newPeers(m *metrics) *peers {
	return &peers{
		metrics: m, open: make(map[*peer]struct{}), changed: make(chan struct{}),
		receiving: budget{limit: receivingBudget}, sending: budget{limit: sendingBudget},
	}
}

// observe sets the hooks of a server whose listener is limited.
func (p *peers) observe(server *http.Server) {
	server.ConnContext = func(ctx context.Context, conn net.Conn) context.Context {
		return context.WithValue(ctx, peerKey{}, peerUnder(conn))
	}
	server.ConnState = func(conn net.Conn, state http.ConnState) {
		// New, Closed: admit and Close do the same earlier.
		if state == http.StateActive || state == http.StateIdle {
			peerUnder(conn).await()
		}
	}
}

type peerKey struct{}

// peerOf returns the connection of a request.
func peerOf(r *http.Request) *peer { return r.Context().Value(peerKey{}).(*peer) }

// peerUnder returns the connection below TLS.
func peerUnder(conn net.Conn) *peer {
	if over, ok := conn.(interface{ NetConn() net.Conn }); ok {
		conn = over.NetConn()
	}
	return conn.(*peer)
}

func (p *peers) admit(ctx context.Context, conn net.Conn) (*peer, error) {
	c := &peer{Conn: conn, peers: p}
	return c, p.until(ctx, func(*peer) bool { return true }, func() bool {
		if len(p.open) >= maxConnections {
			return false
		}
		c.waiting, c.began = time.Now(), time.Now()
		p.open[c] = struct{}{}
		return true
	})
}

// await records that the server waits for the client from now on, for example for its next request.
func (c *peer) await() {
	c.peers.mu.Lock()
	defer c.peers.mu.Unlock()
	c.waiting, c.began = time.Now(), time.Now()
}

// work records that the client waits for the server from now on.
func (c *peer) work() {
	c.peers.mu.Lock()
	defer c.peers.mu.Unlock()
	c.waiting = time.Time{}
}

// reserve adds to the memory that the connection holds, when there is enough. Then the server waits
// for the client, which sends a part of the request or reads the answer. If none of the connections
// that hold memory could continue, all would wait for each other, so the one whose request is the
// oldest may exceed the limit.
func (c *peer) reserve(ctx context.Context, from *budget, bytes int64) error {
	c.work()
	evicted := false
	err := c.peers.until(ctx, func(other *peer) bool { return other.holds == from }, func() bool {
		switch evicted = c.gone; {
		case evicted:
			return true
		case from.used+bytes > from.limit && !c.isOldest(from):
			return false
		}
		c.holds, c.waiting = from, time.Now()
		c.bytes += bytes
		from.used += bytes
		return true
	})
	if evicted {
		return errEvicted
	}
	return err
}

// isOldest reports whether no request that holds memory of the budget began earlier. The caller
// holds the lock.
func (c *peer) isOldest(b *budget) bool {
	for other := range c.peers.open {
		if other.holds == b && other.began.Before(c.began) {
			return false
		}
	}
	return true
}

// release gives up the memory that the connection holds.
func (c *peer) release() {
	c.peers.mu.Lock()
	defer c.peers.mu.Unlock()
	c.free()
}

// free implements release. The caller holds the lock.
func (c *peer) free() {
	if c.holds != nil {
		c.holds.used -= c.bytes
	}
	c.holds, c.bytes = nil, 0
	close(c.peers.changed)
	c.peers.changed = make(chan struct{})
}

// Close closes the connection and gives up what it holds.
func (c *peer) Close() error {
	c.peers.mu.Lock()
	defer c.peers.mu.Unlock()
	return c.end()
}

// end implements Close. The caller holds the lock.
func (c *peer) end() error {
	if c.gone {
		return net.ErrClosed
	}
	c.gone = true
	delete(c.peers.open, c)
	c.free()
	return c.Conn.Close()
}

// until waits until take returns true. Meanwhile it closes connections whose time is over, one at a
// time. Both functions are called with the lock held.
func (p *peers) until(ctx context.Context, mayClose func(*peer) bool, take func() bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for !take() {
		left := p.evict(mayClose)
		if left <= 0 {
			continue
		}
		changed := p.changed
		p.mu.Unlock()
		err := waitFor(ctx, changed, left)
		p.mu.Lock()
		if err != nil {
			return err
		}
	}
	return nil
}

// waitFor waits for a channel or for some time.
func waitFor(ctx context.Context, changed <-chan struct{}, most time.Duration) error {
	timer := time.NewTimer(most)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-changed:
	case <-timer.C:
	}
	return nil
}

// evict closes the connection whose grace period ends first, if it is over. It returns how long it
// still lasts, or when to look again if the server waits for no client. The caller holds the lock.
func (p *peers) evict(may func(*peer) bool) (left time.Duration) {
	var slowest *peer
	left = grace
	for c := range p.open {
		if !c.waiting.IsZero() && may(c) && (slowest == nil || c.left() < left) {
			slowest, left = c, c.left()
		}
	}
	if slowest != nil && left <= 0 {
		if tcp, ok := slowest.Conn.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0) // drops what the client does not read
		}
		_ = slowest.end()
		p.metrics.evicted.Inc()
	}
	return left
}

// left returns how long the client may still make the server wait, if others wait for it.
func (c *peer) left() time.Duration {
	if c.holds == &c.peers.sending {
		return unread - time.Since(c.waiting)
	}
	return grace - time.Since(c.waiting)
}
