package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// TestAbandonedConnections: ten thousand connections that are opened and abandoned never
// exceed the limit, and an honest client is served at once.
func TestAbandonedConnections(t *testing.T) {
	const most = 1024
	const wanted, spare = 10_000, most + 500
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		t.Fatal(err)
	}
	// Both ends are in this process, so the limit of open files counts.
	count := min(wanted, int(files.Cur)-spare)
	if count < 2*most {
		t.Fatalf("the limit of open files, %d, is too low for this test", files.Cur)
	}
	s := start(t, ok, most)
	left := make([]*client, count)
	for i := range left {
		left[i] = s.dial(t)
		if i%3 == 0 {
			left[i].send("GET /") // an incomplete request
		}
	}
	c := s.dial(t)
	c.send(request)
	c.wantAnswer(200)

	open := 0
	for _, c := range left {
		if !closedByPeer(t, c.Conn.(*net.TCPConn)) {
			open++
		}
	}
	if open >= most {
		t.Errorf("%d of %d connections are still open, want less than %d", open, count, most)
	}
	t.Logf("%d connections opened, %d still open", count, open)
}

// closedByPeer reports, without waiting, whether the peer has closed the connection.
func closedByPeer(t *testing.T, conn *net.TCPConn) (closed bool) {
	t.Helper()
	err := control(conn, func(fd int) error {
		_, _, err := unix.Recvfrom(fd, make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
		closed = err != unix.EAGAIN
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return closed
}

// TestRequestsInProgressAreNotEvicted: at the limit, only connections without a request in
// progress are evicted.
func TestRequestsInProgressAreNotEvicted(t *testing.T) {
	const most = 4
	h := newHanging()
	s := start(t, h.serve, most)
	var working []*client
	for range most - 1 {
		c := s.dial(t)
		c.send(request)
		h.wait(t)
		working = append(working, c)
	}
	var idle []*client
	for range most {
		idle = append(idle, s.dial(t))
	}
	for _, c := range idle[:len(idle)-1] {
		c.wantClosed()
	}
	close(h.release)
	last := idle[len(idle)-1]
	last.send(request)
	for _, c := range append(working, last) {
		c.wantAnswer(200)
	}
}

// TestNewConnectionsWait: if every connection has a request in progress, a new connection
// waits.
func TestNewConnectionsWait(t *testing.T) {
	const most, clients = 2, 6
	h := newHanging()
	s := start(t, h.serve, most)
	var wg sync.WaitGroup
	for range clients {
		c := s.dial(t)
		c.send(request)
		wg.Go(func() { c.wantAnswer(200) })
	}
	for range most {
		h.wait(t)
	}
	close(h.release)
	wg.Wait()
}

// TestShutdownAtTheLimit: a shutdown closes a connection that waits to be admitted, and the
// request in progress is answered.
func TestShutdownAtTheLimit(t *testing.T) {
	h := newHanging()
	s := start(t, h.serve, 1)
	working := s.dial(t)
	working.send(request)
	h.wait(t)
	waiting := s.dial(t) // Accept has it and cannot admit it
	done := make(chan error, 1)
	go func() { done <- s.Shutdown(context.Background()) }()
	waiting.wantClosed()
	close(h.release)
	working.wantAnswer(200)
	if err := <-done; err != nil {
		t.Errorf("Shutdown: %v", err)
	}
}

// TestNoPlaceIsLost: after a hundred clients, half of them with an abandoned request, as many
// connections are admitted as before. No connection is counted twice or forever.
func TestNoPlaceIsLost(t *testing.T) {
	const most = 3
	h := newHanging()
	s := start(t, h.serve, most)
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			conn, err := net.Dial("tcp", s.listener.Addr().String())
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			if i%2 == 0 {
				fmt.Fprint(conn, request[:i%len(request)])
			}
		})
	}
	wg.Wait()
	// Open as many connections as the limit allows, each with a request in progress.
	for range most {
		c := s.dial(t)
		c.send(request)
		h.wait(t)
		defer c.wantAnswer(200)
	}
	close(h.release)
}

// TestAnswersEndConnectionsAtTheLimit: at the limit, an answer closes its connection, so that
// the client has to queue for its next request.
func TestAnswersEndConnectionsAtTheLimit(t *testing.T) {
	s := start(t, ok, 2)
	first := s.dial(t)
	first.send(request)
	if ends := first.wantAnswer(200); ends {
		t.Error("below the limit the answer ends the connection")
	}
	second := s.dial(t)
	second.send(request)
	if ends := second.wantAnswer(200); !ends {
		t.Error("at the limit the answer does not end the connection")
	}
	second.wantClosed()
}

// large writes an answer that exceeds the kernel's buffers.
func large(w http.ResponseWriter, _ *http.Request) {
	b := make([]byte, 1<<20)
	for range 64 {
		if _, err := w.Write(b); err != nil {
			return
		}
	}
}

// TestUnreadAnswersAreEvicted: a new connection evicts that of a client that does not read a
// large answer, and that of a client that pipelines requests and reads no answer.
func TestUnreadAnswersAreEvicted(t *testing.T) {
	for name, sent := range map[string]string{"one": "GET /large HTTP/1.1\r\nHost: a\r\n\r\n", "many": strings.Repeat(request, 10_000)} {
		t.Run(name, func(t *testing.T) {
			const most = 3
			s := start(t, func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/large" {
					large(w, r)
				}
				ok(w, r)
			}, most)
			for range 2 * most {
				c := s.dial(t)
				go io.WriteString(c, sent)
			}
			polite := s.dial(t)
			began := time.Now()
			polite.send(request)
			polite.wantAnswer(200)
			if took := time.Since(began); took >= standardTimes.write {
				t.Errorf("the polite client waited %s, as long as a write may take", took)
			}
		})
	}
}

// TestUnreadAnswerCounts: a connection that net/http has closed counts against the limit as
// long as the kernel holds bytes that the client has not read.
func TestUnreadAnswerCounts(t *testing.T) {
	const most = 2
	const size = 4 << 10 // more than the client's receive buffer takes, less than our send buffer
	s := startWith(t, Config{OneRequest: true, MaxConnections: most, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Write(make([]byte, size))
	})}, standardTimes)
	dialer := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error {
		return raw.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 1024) })
	}}
	conn, err := dialer.Dial("tcp", s.listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c := newClient(t, conn)
	c.send(request)
	waitFor(t, "net/http to close the connection", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		for c := range s.conns {
			return c.closing
		}
		return false
	})
	c.wantAnswer(200)
	c.wantClosed()
	waitFor(t, "the place to be free", func() bool { return s.open() == 0 })
}

func (s *Server) open() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

// TestMissingBodiesAreEvicted: a new connection evicts one whose request's body does not
// arrive.
func TestMissingBodiesAreEvicted(t *testing.T) {
	const most = 2
	s := start(t, ok, most)
	for range most {
		c := s.dial(t)
		c.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n")
		c.wantAnswer(200)
	}
	began := time.Now()
	polite := s.dial(t)
	polite.send(request)
	polite.wantAnswer(200)
	if took := time.Since(began); took >= standardTimes.body {
		t.Errorf("the polite client waited %s, as long as for a body", took)
	}
}

// TestLargeHeaders: the number of large requests is limited. The oldest incomplete one is
// dropped for a new one; if all are being served, the new one is refused.
func TestLargeHeaders(t *testing.T) {
	h := newHanging()
	s := start(t, h.serve, plenty)
	long := "GET / HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("a", 2*smallHeader)
	var unfinished []*client
	for i := range maxLarge {
		c := s.dial(t)
		c.send(long)
		unfinished = append(unfinished, c)
		waitFor(t, "a large request", func() bool { return s.largeCount() == i+1 })
	}
	var served []*client
	for i := range maxLarge {
		c := s.dial(t)
		c.send(long + "\r\n\r\n")
		h.wait(t)
		unfinished[i].wantClosed()
		served = append(served, c)
	}
	late := s.dial(t)
	late.send(long)
	late.wantAnswer(http.StatusServiceUnavailable)
	late.wantClosed()
	small := s.dial(t)
	small.send(request)
	h.wait(t)
	close(h.release)
	for _, c := range append(served, small) {
		c.wantAnswer(200)
	}
	waitFor(t, "the large requests to be removed", func() bool { return s.largeCount() == 0 })
	again := s.dial(t)
	again.send(long + "\r\n\r\n")
	again.wantAnswer(200)
}

func (s *Server) largeCount() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.large)
}

// TestAcceptError: Serve returns the error of a listener that fails.
func TestAcceptError(t *testing.T) {
	fault := errors.New("no more")
	s := New(failing{fault}, Config{Handler: http.HandlerFunc(ok), MaxConnections: 1})
	if err := s.Serve(); !errors.Is(err, fault) {
		t.Errorf("got %v, want %v", err, fault)
	}
}

type failing struct{ err error }

func (f failing) Accept() (net.Conn, error) { return nil, f.err }
func (f failing) Close() error              { return nil }
func (f failing) Addr() net.Addr            { return &net.TCPAddr{} }

// TestSlowReaderAtTheLimit: while others wait, a client keeps its connection as long as it
// reads some of a large answer in time.
func TestSlowReaderAtTheLimit(t *testing.T) {
	const parts = 8
	for _, test := range []struct {
		name  string
		pause time.Duration
		whole bool
	}{
		{"reads in time", standardTimes.unread - minShare, true},
		{"reads too slowly", standardTimes.unread + 2*evictInterval, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dial := startInMemory(t, Config{MaxConnections: 1, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
					w.Write(make([]byte, parts*writeSize))
				})})
				slow := dial()
				slow.send(request)
				waiting := dial()
				go waiting.Write([]byte(request))
				var err error
				for range parts {
					time.Sleep(test.pause)
					if _, err = io.ReadFull(slow, make([]byte, writeSize)); err != nil {
						break
					}
				}
				if whole := err == nil; whole != test.whole {
					t.Errorf("the client got the whole answer: %t (%v), want %t", whole, err, test.whole)
				}
				slow.Close()
				waiting.wantAnswer(200)
			})
		})
	}
}

// TestSilentConnectionsShareTheWait: the more connections wait for a place, the less time
// each has, so that hundreds that send nothing do not delay a client for long.
func TestSilentConnectionsShareTheWait(t *testing.T) {
	const most, silent = 4, 200
	// With the whole time for each connection, the client would wait for 25 s. The shares
	// add up to 1.3 s.
	const maxWait = 5 * time.Second
	s := start(t, ok, most)
	for range silent {
		s.dial(t)
	}
	began := time.Now()
	c := s.dial(t)
	c.send(request)
	c.wantAnswer(200)
	if took := time.Since(began); took > maxWait {
		t.Errorf("the client waited %s, want %s at the most", took, maxWait)
	}
}

func TestShare(t *testing.T) {
	for _, test := range []struct {
		pressure int
		want     time.Duration
	}{
		{1, 500 * time.Millisecond},
		{2, 125 * time.Millisecond},
		{7, 500 * time.Millisecond / 49},
		{8, minShare},
		{5000, minShare},
	} {
		if got := share(500*time.Millisecond, test.pressure); got != test.want {
			t.Errorf("share(500ms, %d) = %s, want %s", test.pressure, got, test.want)
		}
	}
}

// TestArrivedRequestIsNotEvicted: a client whose request has arrived in the kernel is not
// the reason that the server waits. This protects the connection once for each request.
func TestArrivedRequestIsNotEvicted(t *testing.T) {
	listener, err := Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := New(listener, Config{Handler: http.HandlerFunc(ok), MaxConnections: 1}) // nothing reads
	t.Cleanup(func() { s.Close(); listener.Close() })
	client := s.dial(t)
	inner, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c := &conn{Conn: inner, server: s}
	if !s.admit(c) {
		t.Fatal("the first connection got no place")
	}
	client.send("G")
	waitFor(t, "the byte to arrive", c.hasArrived)
	s.mu.Lock()
	defer s.mu.Unlock()
	late := c.since.Add(s.times.grace)
	if s.evict(late) {
		t.Error("a connection whose request has arrived was evicted")
	}
	if s.evict(late.Add(s.times.grace - 1)) {
		t.Error("the connection was evicted before its time")
	}
	if !s.evict(late.Add(s.times.grace)) {
		t.Error("the connection was protected twice")
	}
}
