package main

import (
	"errors"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// What a connection is in the middle of.
const (
	silent    int32 = iota // it has never said a byte
	asking                 // a part of a request has come
	answering              // a whole request has come
	answered               // it had its answer, and may have said more
	quiet                  // it had its answer, and has said nothing since
	ended                  // it was silent or quiet, and nothing more is read of it
)

// conns is a listener that knows what each of its connections is in the middle of.
// net/http would tell a drain too little: it drops a request whose header it is still
// reading, and gives one that has said nothing five seconds.
type conns struct {
	net.Listener

	stopped chan struct{} // closed: all that was accepted is in open
	closing sync.Once
	closed  chan struct{}

	mu   sync.Mutex
	open map[*conn]struct{}
}

func newConns(inner net.Listener) *conns {
	return &conns{
		Listener: inner,
		stopped:  make(chan struct{}),
		closed:   make(chan struct{}),
		open:     make(map[*conn]struct{}),
	}
}

// Accept is for one goroutine, as net/http's server is.
func (l *conns) Accept() (net.Conn, error) {
	inner, err := l.Listener.Accept()
	if errors.Is(err, os.ErrDeadlineExceeded) { // by stopAccepting
		close(l.stopped)
		<-l.closed // so that nobody asks again
		return nil, net.ErrClosed
	}
	if err != nil {
		return nil, err
	}
	c := &conn{Conn: inner, listener: l}
	l.mu.Lock()
	l.open[c] = struct{}{}
	l.mu.Unlock()
	return c, nil
}

func (l *conns) Close() error {
	l.closing.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

// stopAccepting ends the wait for another connection, and reports whether all that
// were accepted are known: one may have left the kernel's queue and be on its way here.
func (l *conns) stopAccepting(kernels *net.TCPListener) bool {
	_ = kernels.SetDeadline(time.Unix(1, 0)) // it fails on a closed one, which accepts nothing
	select {
	case <-l.stopped:
		return true
	case <-l.closed:
		return true
	default:
		return false
	}
}

// watch has a server tell what its connections are doing, of which the hook that it
// has learns too.
func (l *conns) watch(server *http.Server) {
	next := server.ConnState
	server.ConnState = func(outer net.Conn, state http.ConnState) {
		c, ok := outer.(*conn)
		if !ok {
			return
		}
		switch state {
		case http.StateActive:
			c.state.Store(answering)
		case http.StateIdle:
			c.state.Store(answered)
		}
		next(c.Conn, state)
	}
}

// endQuiet ends what is not in the middle of a request, silent connections only if told
// so, and returns how many are left.
func (l *conns) endQuiet(silentToo bool) (left int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.open {
		if state := c.state.Load(); state == quiet || state == silent && silentToo {
			c.endUnlessWaiting(state)
		}
	}
	return len(l.open)
}

// conn is one of conns, until it is closed.
type conn struct {
	net.Conn
	listener *conns
	state    atomic.Int32
}

func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if state := c.state.Load(); n > 0 && state != answering {
		c.state.CompareAndSwap(state, asking)
	}
	return n, err
}

// SetReadDeadline learns of a request that came in one piece with the one before, of
// which nothing is left to read here: after an answer, net/http sets its limit on a quiet
// connection, and then, once it has four bytes of the next request, that on a header.
func (c *conn) SetReadDeadline(t time.Time) error {
	if !c.state.CompareAndSwap(answered, quiet) {
		c.state.CompareAndSwap(quiet, asking)
	}
	return c.Conn.SetReadDeadline(t)
}

func (c *conn) Close() error {
	c.listener.mu.Lock()
	delete(c.listener.open, c)
	c.listener.mu.Unlock()
	return c.Conn.Close()
}

// endUnlessWaiting shuts the reading side of a connection, unless bytes wait there
// that the server has yet to read. Shut, not closed: bytes that come in between are
// read all the same, where closing would reset the connection.
func (c *conn) endUnlessWaiting(state int32) {
	tcp, ok := tcpOf(c.Conn)
	if !ok {
		return
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return // it is closed
	}
	empty := false
	err = raw.Control(func(fd uintptr) {
		_, _, peekErr := unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
		empty = errors.Is(peekErr, unix.EAGAIN)
	})
	if err == nil && empty && c.state.CompareAndSwap(state, ended) {
		_ = tcp.CloseRead() // it may have ended meanwhile
	}
}

// tcpOf finds what listeners in between have wrapped.
func tcpOf(c net.Conn) (*net.TCPConn, bool) {
	for {
		wrapped, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		c = wrapped.NetConn()
	}
	tcp, ok := c.(*net.TCPConn)
	return tcp, ok
}
