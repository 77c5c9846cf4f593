package imds

import (
	"container/list"
	"net"
	"net/http"
	"sync"
	"time"
)

// quietGrace is how long a connection without a request keeps its place. Clients
// send their request within a millisecond of connecting, and within a few hundred
// on a machine that is overloaded by their number. It still clears ten thousand
// connections, opened and left, within seconds.
const quietGrace = 500 * time.Millisecond

// LimitListener bounds the connections that are open at the same time.
//
// A connection that is one too many takes the place of the one that has been
// without a request for the longest, so that connections opened and left do not
// keep honest clients out. Where every connection has a request in progress, or
// had one a moment ago, Accept waits.
//
// It learns what connections do from the ConnState hook of [NewServer].
func LimitListener(inner net.Listener, most int) net.Listener {
	l := &limitListener{Listener: inner, most: most}
	l.changed.L = &l.mu
	return l
}

type limitListener struct {
	net.Listener
	most int

	mu      sync.Mutex // guards the fields below and those of each limitedConn
	changed sync.Cond  // a connection closed or became quiet, or the listener closed
	conns   list.List  // of *limitedConn; those without a request are in the order in which they became so
	closed  bool
}

// limitedConn is a connection that counts.
type limitedConn struct {
	net.Conn
	listener *limitListener
	place    *list.Element // nil: it does not count any more
	busy     bool          // it has a request in progress
	since    time.Time     // from when its quiet time is counted; zero: from when that matters
}

func (l *limitListener) Accept() (net.Conn, error) {
	inner, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &limitedConn{Conn: newLazyConn(inner), listener: l}
	if !l.admit(c) {
		inner.Close()
		return nil, net.ErrClosed
	}
	return c, nil
}

// admit counts c in, once there is room. It reports false if the listener is
// closed meanwhile.
func (l *limitListener) admit(c *limitedConn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.conns.Len() >= l.most && !l.closed {
		l.makeRoom()
	}
	if l.closed {
		return false
	}
	c.since = time.Now()
	c.place = l.conns.PushBack(c)
	return true
}

// makeRoom closes the connection that has been quiet for the longest, if it has
// had its time. Otherwise it waits until that time is over or something has
// changed. The caller holds the mutex.
func (l *limitListener) makeRoom() {
	if victim := l.quietest(); victim != nil {
		left := quietGrace - time.Since(victim.since)
		if left <= 0 {
			l.forget(victim)
			victim.Conn.Close()
			return
		}
		// The lock makes sure that the wake-up does not come before the wait.
		timer := time.AfterFunc(left, func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.changed.Broadcast()
		})
		defer timer.Stop()
	}
	l.changed.Wait()
}

// quietest returns the connection that has been without a request for the
// longest, or nil. For those that had a request before, time begins to count here,
// at the limit, so that below it requests need not look at the clock. The caller
// holds the mutex.
func (l *limitListener) quietest() *limitedConn {
	var first *limitedConn
	for e := l.conns.Front(); e != nil; e = e.Next() {
		c := e.Value.(*limitedConn)
		if c.busy {
			continue
		}
		if c.since.IsZero() {
			c.since = time.Now()
		}
		if first == nil {
			first = c
		}
	}
	return first
}

// forget counts c out. The caller holds the mutex.
func (l *limitListener) forget(c *limitedConn) {
	if c.place == nil {
		return
	}
	l.conns.Remove(c.place)
	c.place = nil
	l.changed.Signal()
}

// setBusy notes whether c has a request in progress.
func (l *limitListener) setBusy(c *limitedConn, busy bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.busy = busy; busy || c.place == nil {
		return
	}
	c.since = time.Time{}
	l.conns.MoveToBack(c.place)
	l.changed.Signal()
}

func (l *limitListener) Close() error {
	l.mu.Lock()
	l.closed = true
	l.changed.Broadcast()
	l.mu.Unlock()
	return l.Listener.Close()
}

// NetConn returns the connection that is counted, as [crypto/tls.Conn] does.
func (c *limitedConn) NetConn() net.Conn { return c.Conn }

func (c *limitedConn) Close() error {
	c.listener.mu.Lock()
	c.listener.forget(c)
	c.listener.mu.Unlock()
	return c.Conn.Close()
}

// trackConnState tells the listener whether a connection has a request in
// progress. net/http calls a connection active once it has read a request's
// header, or given up on it, and idle when it has answered: a header sent slowly
// holds no place against others.
func trackConnState(conn net.Conn, state http.ConnState) {
	if c, ok := conn.(*limitedConn); ok && (state == http.StateActive || state == http.StateIdle) {
		c.listener.setBusy(c, state == http.StateActive)
	}
}
