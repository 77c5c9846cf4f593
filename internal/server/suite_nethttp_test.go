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

// Each test shows a behavior of net/http that this package relies on.

// recorder is a connection that records net/http's calls. A read of the text "fail" fails.
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

// bare serves h with the [http.Server] of [Server], but with plain connections. It returns a
// client and the recorder of its connection.
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

// wantEvents waits for all events and compares them. It ignores reads, whose number depends
// on the client.
func wantEvents(t *testing.T, r *recorder, want ...string) {
	t.Helper()
	got := []string{}
	waitFor(t, "net/http's calls", func() bool {
		got = slices.DeleteFunc(r.seen(), func(e string) bool { return e == "read" })
		return len(got) >= len(want)
	})
	if !slices.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
}

// TestNetHTTPStates: a connection becomes active when the header of a request is complete,
// and idle when the answer is written.
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

// TestNetHTTPStateOfABadRequest: a connection becomes active before a malformed request is
// answered, and is closed afterwards.
func TestNetHTTPStateOfABadRequest(t *testing.T) {
	c, r := bare(t, ok)
	go c.send("GET\r\n\r\n")
	c.wantAnswer(400)
	wantEvents(t, r, "new", "active", "write", "close", "closed")
}

// TestNetHTTPReadsOneByteAhead: while the handler runs, net/http reads one byte of the next
// request, and no more.
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

// TestNetHTTPPrefaceHasNoBody: HTTP/2's preface reaches the handler as a request without a
// body, although its ContentLength is -1.
func TestNetHTTPPrefaceHasNoBody(t *testing.T) {
	got := make(chan *http.Request, 1)
	c, _ := bare(t, func(w http.ResponseWriter, r *http.Request) { got <- r; ok(w, r) })
	go c.send("PRI * HTTP/2.0\r\n\r\n")
	c.wantAnswer(200)
	if r := <-got; r.Body != http.NoBody || r.ContentLength != -1 {
		t.Errorf("got a body %v of length %d, want none and -1", r.Body, r.ContentLength)
	}
}

// sizing is a listener whose connections report the buffer size of each read that returns
// bytes.
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

// TestNetHTTPClosesAfterAReadError: after a read fails within a header, net/http does not
// read again, and closes the connection. Before that it may write an answer, as it does here.
func TestNetHTTPClosesAfterAReadError(t *testing.T) {
	c, r := bare(t, ok)
	c.send("GET / HTTP/1.1\r\nHost")
	c.send("fail")
	c.wantAnswer(400)
	wantEvents(t, r, "new", "active", "write", "close", "closed")
}

// TestNetHTTPReadsBodiesAfterTheAnswer: if the answer closes the connection, net/http reads
// the request's body after the answer is written.
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

// TestNetHTTPAfterALargeBody: net/http does not read a large body to its end. It shuts the
// writing side, and closes the connection later.
func TestNetHTTPAfterALargeBody(t *testing.T) {
	c, r := bare(t, endingOk)
	c.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10000000\r\n\r\n")
	c.wantAnswer(200)
	wantEvents(t, r, "new", "active", "write", "write deadline", "close for writing", "close", "closed")
}

func endingOk(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Connection", "close")
	ok(w, r)
}
