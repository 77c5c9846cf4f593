package main

import (
	"errors"
	"net"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// silentConns is a listener that knows which of its connections have yet to say
// their first byte. net/http gives such a one five seconds before it may be closed
// at the end, and nobody waits for its answer.
type silentConns struct {
	net.Listener

	mu     sync.Mutex
	silent map[*silentConn]struct{}
}

func newSilentConns(inner net.Listener) *silentConns {
	return &silentConns{Listener: inner, silent: make(map[*silentConn]struct{})}
}

func (l *silentConns) Accept() (net.Conn, error) {
	inner, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &silentConn{Conn: inner, listener: l}
	l.mu.Lock()
	l.silent[c] = struct{}{}
	l.mu.Unlock()
	return c, nil
}

// count is how many connections are silent still.
func (l *silentConns) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.silent)
}

// end has the server read the end of each connection that is silent still.
func (l *silentConns) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.silent {
		c.endUnlessWaiting()
	}
}

// silentConn leaves the list with its first byte, or its end.
type silentConn struct {
	net.Conn
	listener *silentConns
	heard    atomic.Bool
}

func (c *silentConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 || err != nil {
		c.leave()
	}
	return n, err
}

func (c *silentConn) Close() error {
	c.leave()
	return c.Conn.Close()
}

func (c *silentConn) leave() {
	if c.heard.Swap(true) {
		return
	}
	c.listener.mu.Lock()
	delete(c.listener.silent, c)
	c.listener.mu.Unlock()
}

// endUnlessWaiting shuts the reading side of a connection, unless bytes wait there
// that the server has yet to read. Shut, not closed: bytes that come in between are
// read all the same, where closing would reset the connection.
func (c *silentConn) endUnlessWaiting() {
	tcp, ok := c.Conn.(*net.TCPConn)
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
	if err == nil && empty {
		_ = tcp.CloseRead() // it may have ended meanwhile
	}
}
