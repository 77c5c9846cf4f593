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

// shared answers as another handler does. Requests that come while it makes an answer wait
// for that answer: one that takes a second, because a file system hangs, takes a second for
// all of them. While maxCopies of its answers are being written, to clients that do not
// read, say, all further requests get the newest one of them.
type shared struct {
	inner http.Handler

	mu     sync.Mutex // guards what follows; never held while inner runs
	copies int        // that are being made, or written to somebody
	newest *copied
}

// copied is an answer in memory. It is a ResponseWriter while it is made.
type copied struct {
	made    chan struct{} // closed when the answer is whole
	header  http.Header
	status  int
	body    bytes.Buffer
	readers int // guarded by shared.mu
}

func (s *shared) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	answer, isNew := s.take()
	defer s.release(answer)
	if isNew {
		s.make(answer, r)
	}
	<-answer.made
	maps.Copy(w.Header(), answer.header)
	w.WriteHeader(answer.status)
	_, _ = w.Write(answer.body.Bytes()) // a client that has left wants no answer
}

// take returns the answer for one more reader, and whether that reader has to make it.
func (s *shared) take() (answer *copied, isNew bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.newest == nil || s.copies < maxCopies && s.newest.whole() {
		s.newest, isNew = &copied{made: make(chan struct{}), header: http.Header{}, status: http.StatusOK}, true
		s.copies++
	}
	s.newest.readers++
	return s.newest, isNew
}

func (s *shared) make(answer *copied, r *http.Request) {
	defer close(answer.made) // also after a panic
	s.inner.ServeHTTP(answer, r)
}

func (c *copied) whole() bool {
	select {
	case <-c.made:
		return true
	default:
		return false
	}
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
