package server

import (
	"slices"
	"time"
)

const (
	// smallHeader is how large a request's header may be that is not counted: net/http has
	// a buffer of this size for every connection.
	smallHeader = 4 << 10

	// maxLarge is how many connections may have a larger one at a time. While it is read,
	// a header takes several times its size.
	maxLarge = 32
)

// state is what a connection is in the middle of.
type state int

const (
	silent   state = iota // nothing has ever come
	reading               // a part of a request has come, or a whole one behind another
	serving               // net/http works on a request
	idle                  // the last request is answered, and nothing has come since
	ended                 // it was silent or idle when it was drained, and no more is read
	finished              // the last answer is written, and nobody waits for anything more
)

// place is what the server knows of one of its connections. Server.mu guards it.
type place struct {
	state   state
	since   time.Time // when the connection was accepted, or was idle first
	writing time.Time // when the present write began; zero: there is none
	failed  bool      // a write failed
	large   bool      // the connection is in Server.large
	closing bool      // net/http has closed the connection
}

func (s *Server) full() bool { return len(s.conns) >= s.cfg.MaxConnections }

// admit gives a new connection a place, if there is one or one can be freed.
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

// evict ends the connection whose time to give way came first, if it has come. The caller
// holds the lock.
func (s *Server) evict(now time.Time) bool {
	var victim *conn
	var first time.Time
	for c := range s.conns {
		if at, ok := s.givesWay(c); ok && (victim == nil || at.Before(first)) {
			victim, first = c, at
		}
	}
	if victim == nil || now.Before(first) {
		return false
	}
	s.drop(victim)
	return true
}

// givesWay returns from when on another connection may have the place of c, if the server
// waits for its client: for a request, or for the reading of an answer. The caller holds
// the lock.
func (s *Server) givesWay(c *conn) (at time.Time, ok bool) {
	switch {
	case c.state == finished:
		return time.Time{}, true
	case !c.writing.IsZero():
		return c.writing.Add(s.times.unread), true
	case c.state == serving:
		return time.Time{}, false
	default:
		return c.since.Add(s.times.grace), true
	}
}

// drop ends a connection and frees its place. The caller holds the lock.
func (s *Server) drop(c *conn) {
	s.remove(c)
	_ = c.reset() // it fails where the client has closed the connection
}

// remove frees the place of a connection. The caller holds the lock.
func (s *Server) remove(c *conn) {
	s.shrink(c)
	delete(s.conns, c)
	select {
	case s.freed <- struct{}{}:
	default: // somebody is told already
	}
}

// received notes that a part of a request was read, or the last part. It returns false if
// the request is large and there is no room for that.
func (s *Server) received(c *conn, last bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if last {
		c.state = serving
	} else if c.state != serving {
		c.state = reading
	}
	return c.large || c.header.bytes <= smallHeader || s.grow(c)
}

// grow counts a connection among those with a large request. Where there are too many, the
// oldest unfinished request is dropped. The caller holds the lock.
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

// shrink takes a connection out of those with a large request. The caller holds the lock.
func (s *Server) shrink(c *conn) {
	if c.large {
		c.large = false
		s.large = slices.DeleteFunc(s.large, func(other *conn) bool { return other == c })
	}
}

// answered notes that a request has its answer, and what the connection does next.
func (s *Server) answered(c *conn, next state) {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	c.state, c.since = next, now
	s.shrink(c)
}
