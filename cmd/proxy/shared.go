package main

import (
	"bytes"
	"maps"
	"net/http"
	"sync"
)

// maxCopies bounds how many answers of one endpoint are in memory at a time, some 10 KiB
// each.
const maxCopies = 4

// shared answers as another handler does. While maxCopies of its answers are being written,
// to clients that do not read, say, all further requests get the newest one of them.
type shared struct {
	inner http.Handler

	mu     sync.Mutex // guards what follows, and lets inner make one answer at a time
	copies int        // that are being written to somebody
	newest *copied
}

// copied is an answer in memory. It is a ResponseWriter while it is made.
type copied struct {
	header  http.Header
	status  int
	body    bytes.Buffer
	readers int // guarded by shared.mu
}

func (s *shared) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	answer := s.take(r)
	defer s.release(answer)
	maps.Copy(w.Header(), answer.header)
	w.WriteHeader(answer.status)
	_, _ = w.Write(answer.body.Bytes()) // a client that has left wants no answer
}

func (s *shared) take(r *http.Request) *copied {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.copies < maxCopies {
		s.newest = &copied{header: http.Header{}, status: http.StatusOK}
		s.inner.ServeHTTP(s.newest, r)
		s.copies++
	}
	s.newest.readers++
	return s.newest
}

func (s *shared) release(answer *copied) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if answer.readers--; answer.readers == 0 {
		s.copies--
	}
}

// Header implements [http.ResponseWriter].
func (c *copied) Header() http.Header { return c.header }

// WriteHeader implements [http.ResponseWriter].
func (c *copied) WriteHeader(status int) { c.status = status }

// Write implements [http.ResponseWriter].
func (c *copied) Write(p []byte) (int, error) { return c.body.Write(p) }
