package server

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"imds-oidc-proxy/test/kit/local"
)

// What this package relies on net/http for, one test each.

// recorder is a connection that records what net/http does with it. A read of "fail" fails.
type recorder struct {
	net.Conn
	mu     sync.Mutex
	events []string
}

func (r *recorder) note(event string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, event)
}

func (r *recorder) Read(p []byte) (int, error) {
	n, err := r.Conn.Read(p)
	if bytes.Contains(p[:n], []byte("fail")) {
		return 0, errRefused
	}
	if err == nil {
		r.note("read")
	}
	return n, err
}

func (r *recorder) Write(p []byte) (int, error) {
	r.note("write")
	return r.Conn.Write(p)
}

func (r *recorder) SetWriteDeadline(t time.Time) error {
	r.note("write deadline")
	if !t.IsZero() {
		r.note("which is not zero")
	}
	return nil
}

func (r *recorder) CloseWrite() error {
	r.note("close for writing")
	return nil
}

func (r *recorder) Close() error {
	r.note("close")
	return r.Conn.Close()
}

func (r *recorder) seen() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.events)
}

// recording is a listener of recorders.
type recording struct {
	*local.Pipes
	conns chan *recorder
}

func (l recording) Accept() (net.Conn, error) {
	c, err := l.Pipes.Accept()
	if err != nil {
		return nil, err
	}
	r := &recorder{Conn: c}
	l.conns <- r
	return r, nil
}

// bare serves h as [Server] does, but with net/http alone, and returns a client and what
// net/http does with its connection.
func bare(t *testing.T, h http.HandlerFunc) (*client, *recorder) {
	listener := recording{local.NewPipes(), make(chan *recorder, 1)}
	s := newServer(listener, Config{MaxConnections: plenty}, standardTimes).http
	s.Handler, s.ConnContext = h, nil
	s.ConnState = func(c net.Conn, state http.ConnState) { c.(*recorder).note(state.String()) }
	go s.Serve(listener)
	t.Cleanup(func() { s.Close() })
	c := newClient(t, listener.Dial(t))
	return c, <-listener.conns
}

// wantEvents waits for the last event and compares them all, without read: how often
// net/http reads depends on the client.
func wantEvents(t *testing.T, r *recorder, want ...string) {
	t.Helper()
	got := []string{}
	waitFor(t, "net/http to do all of it", func() bool {
		got = slices.DeleteFunc(r.seen(), func(e string) bool { return e == "read" })
		return len(got) >= len(want)
	})
	if !slices.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
}

// TestNetHTTPStates: a connection becomes active when the header of a request has come to
// its end, and idle when the answer is written.
func TestNetHTTPStates(t *testing.T) {
	c, r := bare(t, ok)
	c.send("GET / HTTP/1.1\r\n")
	c.send("Host: a\r\n")
	wantEvents(t, r, "new")
	c.send("\r\n")
	c.wantAnswer(200)
	wantEvents(t, r, "new", "active", "write", "write deadline", "idle")
	c.send("GET / HTTP/1.0\r\n\r\n")
	c.wantAnswer(200)
	wantEvents(t, r, "new", "active", "write", "write deadline", "idle", "active", "write", "write deadline", "close", "closed")
}

// TestNetHTTPStateOfABadRequest: a connection becomes active before the answer to a request
// that is no request, and is closed.
func TestNetHTTPStateOfABadRequest(t *testing.T) {
	c, r := bare(t, ok)
	go c.send("GET\r\n\r\n")
	c.wantAnswer(400)
	wantEvents(t, r, "new", "active", "write", "close", "closed")
}

// TestNetHTTPReadsOneByteAhead: while a request is served, net/http reads one byte of the
// next one, and no more.
func TestNetHTTPReadsOneByteAhead(t *testing.T) {
	sizes := make(chan int, 100)
	h := newHanging()
	s := start(t, h.serve, plenty)
	s.http.ConnContext, s.http.ConnState = nil, nil
	listener := local.NewPipes()
	s.http.Handler = http.HandlerFunc(h.serve)
	go s.http.Serve(sizing{listener, sizes})
	c := newClient(t, listener.Dial(t))
	c.send(request)
	h.wait(t)
	for len(sizes) > 0 {
		<-sizes
	}
	one := make(chan error, 1)
	go func() { _, err := io.WriteString(c, "GE"); one <- err }()
	if got := <-sizes; got != 1 {
		t.Errorf("net/http reads %d bytes ahead, want 1", got)
	}
	close(h.release)
	c.wantAnswer(200)
	if err := <-one; err != nil {
		t.Error(err)
	}
}

// sizing is a listener whose connections tell how much is asked of each read that returns
// something.
type sizing struct {
	*local.Pipes
	sizes chan int
}

func (l sizing) Accept() (net.Conn, error) {
	c, err := l.Pipes.Accept()
	return sized{c, l.sizes}, err
}

type sized struct {
	net.Conn
	sizes chan int
}

func (c sized) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.sizes <- len(p)
	}
	return n, err
}

// TestNetHTTPClosesAfterAReadError: where a read fails amid a header, net/http does not read
// again and closes the connection. It may write something before, as here, where a line is
// unfinished.
func TestNetHTTPClosesAfterAReadError(t *testing.T) {
	c, r := bare(t, ok)
	c.send("GET / HTTP/1.1\r\nHost")
	c.send("fail")
	c.wantAnswer(400)
	wantEvents(t, r, "new", "active", "write", "close", "closed")
}

// TestNetHTTPReadsBodiesAfterTheAnswer: of a request whose answer ends the connection,
// net/http reads the body when the answer is written.
func TestNetHTTPReadsBodiesAfterTheAnswer(t *testing.T) {
	c, r := bare(t, endingOk)
	c.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n")
	c.wantAnswer(200)
	c.send("x")
	c.wantClosed()
	if want := []string{"new", "read", "active", "write", "read", "write deadline", "close", "closed"}; !slices.Equal(r.seen(), want) {
		t.Errorf("got %q\nwant %q", r.seen(), want)
	}
}

// TestNetHTTPGivesLargeBodiesUp: net/http closes the writing side before it waits for the
// sender of a body that it does not read to the end.
func TestNetHTTPGivesLargeBodiesUp(t *testing.T) {
	c, r := bare(t, endingOk)
	c.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10000000\r\n\r\n")
	c.wantAnswer(200)
	wantEvents(t, r, "new", "active", "write", "write deadline", "close for writing", "close", "closed")
}

func endingOk(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Connection", "close")
	ok(w, r)
}
