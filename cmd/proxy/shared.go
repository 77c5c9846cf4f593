package main

import (
	"bytes"
	"maps"
	"net/http"
	"sync"
)

// maxCopies bounds how many answers of one endpoint are in memory at the same time. An
// answer has about 10 KiB.
const maxCopies = 4

// shared bounds what concurrent requests for an endpoint cost. A request that arrives while
// inner makes an answer waits and gets the same answer: if making it takes a second, because
// a file system hangs, each of them waits for at most that second. While maxCopies answers
// are being written, for example to clients that do not read, further requests get the
// newest of these.
type shared struct {
	inner http.Handler

	mu     sync.Mutex // guards what follows; never held while inner runs
	copies int        // answers that are being made or written
	newest *copied
}

// copied is an answer in memory. It is the ResponseWriter of inner.
type copied struct {
	made    chan struct{} // closed when the answer is complete
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
	_, _ = w.Write(answer.body.Bytes()) // it fails if the client has closed the connection
}

// take returns the answer for a request, and whether this request has to make it.
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
	defer close(answer.made) // even if inner panics
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
