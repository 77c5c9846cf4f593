package server

import (
	"slices"
	"time"
)

const (
	// smallHeader is the size up to which the number of headers is not limited: net/http has
	// a buffer of this size for each connection.
	smallHeader = 4 << 10

	// maxLarge is how many connections may have a larger header at the same time. While
	// net/http reads it, a header uses several times its size.
	maxLarge = 32

	// minShare is the minimum time that a client has, however many connections wait. It is
	// ten times what a client needs to send a request after connecting.
	minShare = 10 * time.Millisecond
)

func (s *Server) full() bool { return len(s.conns) >= s.cfg.MaxConnections }

// admit adds a new connection, if the number of connections is below the limit or one can be
// evicted.
func (s *Server) admit(c *conn) bool {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.full() && !s.evict(now) {
		return false
	}
	c.since = now
	s.conns[c] = struct{}{}
	return true
}

// evict ends the connection that may be evicted first, if its time has come. The caller
// holds the lock.
func (s *Server) evict(now time.Time) bool {
	pressure := s.pressure()
	for {
		var victim *conn
		var first time.Time
		for c := range s.conns {
			if at, ok := s.evictable(c, pressure); ok && (victim == nil || at.Before(first)) {
				victim, first = c, at
			}
		}
		if victim == nil || now.Before(first) {
			return false
		}
		if victim.state == reading || !victim.hasArrived() {
			s.drop(victim)
			return true
		}
		// The client has sent its request, and net/http has not read it yet: the machine
		// is busy. Since the state changes, the connection gets more time only once.
		victim.state, victim.since = reading, now
	}
}

// evictable returns from when on a connection may be evicted, if the server waits for its
// client: for a request, or for the reading of an answer. The caller holds the lock.
func (s *Server) evictable(c *conn, pressure int) (at time.Time, ok bool) {
	switch {
	case c.state == finished:
		return time.Time{}, true
	case !c.writing.IsZero():
		return c.writing.Add(share(s.times.unread, pressure)), true
	case c.state == serving:
		return time.Time{}, false
	default:
		return c.since.Add(share(s.times.grace, pressure)), true
	}
}

// pressure is how often all places have to change hands before the last connection in the
// kernel's queue gets one, at least 1.
func (s *Server) pressure() int {
	return 1 + s.queued()/s.cfg.MaxConnections
}

// share returns the part of a time limit that a connection gets while others wait. It falls
// with the square of the pressure, so that the shares of all rounds add up to less than
// twice the limit while the queue gets shorter.
func share(limit time.Duration, pressure int) time.Duration {
	return max(limit/time.Duration(pressure)/time.Duration(pressure), minShare)
}

// drop resets a connection and removes it. The caller holds the lock.
func (s *Server) drop(c *conn) {
	s.remove(c)
	_ = c.reset() // it fails if the client has closed the connection
}

// remove removes a connection, which no longer counts against the limit. The caller holds
// the lock.
func (s *Server) remove(c *conn) {
	s.shrink(c)
	delete(s.conns, c)
	select {
	case s.freed <- struct{}{}:
	default: // Accept has yet to receive the previous element
	}
}

// grow adds a connection to those with a large request. If there are maxLarge already, it
// drops the oldest unfinished request, or returns false if all are being served. The caller
// holds the lock.
func (s *Server) grow(c *conn) bool {
	if len(s.large) >= maxLarge {
		i := slices.IndexFunc(s.large, func(other *conn) bool { return other.state == reading })
		if i < 0 {
			return false
		}
		s.drop(s.large[i])
	}
	c.large = true
	s.large = append(s.large, c)
	return true
}

// shrink removes a connection from those with a large request. The caller holds the lock.
func (s *Server) shrink(c *conn) {
	if c.large {
		c.large = false
		s.large = slices.DeleteFunc(s.large, func(other *conn) bool { return other == c })
	}
}
