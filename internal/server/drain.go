package server

import (
	"context"
	"errors"
	"math"
	"net"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

const (
	// settleTime is how long connections may go on after the drain has begun. A client that
	// asks again within it is told to open a new connection, instead of finding this one
	// closed under its request.
	settleTime = 200 * time.Millisecond

	// silentTime is how long a connection on which nothing has come may take to send
	// something. Clients send their request within a millisecond of connecting, and within
	// some hundred of them on a machine that is overloaded by their number.
	silentTime = 2 * time.Second

	// drainPollInterval is between looks at what is left.
	drainPollInterval = 5 * time.Millisecond
)

// Drain stops the server without losing a request whose connection was made. It returns
// when no request is in progress, or ctx ends.
//
// Closing a listener resets the connections that the kernel has made and the process has
// yet to accept: under load, dozens. So Drain first has the kernel refuse new connections,
// and accepts those that wait. Answers end their connections from now on. Then it ends the
// idle connections, and waits for the others. net/http's server is shut down when none is
// left, since from then on it drops requests whose header it has not read to the end.
func (s *Server) Drain(ctx context.Context) error {
	s.mu.Lock()
	s.draining = true
	s.mu.Unlock()
	if err := s.refuseNew(); err != nil { // as on an old kernel
		s.cfg.Log.Warn("requests that are not accepted yet may be lost", zap.Error(err))
		sleep(ctx, settleTime) // for the connections that are open
	} else {
		s.waitForConns(ctx)
	}
	return s.Shutdown(ctx)
}

// waitForConns returns when no connection is left, or ctx ends.
func (s *Server) waitForConns(ctx context.Context) {
	for began := time.Now(); ctx.Err() == nil; sleep(ctx, drainPollInterval) {
		elapsed := time.Since(began)
		if elapsed < settleTime || s.hasWaiting() || !s.stopAccepting() {
			continue
		}
		if s.endIdle(elapsed) == 0 {
			return
		}
	}
}

// refuseNew takes the listener off every network device: the kernel answers what would
// begin a connection as on a closed port, and handshakes under way come to their end. It
// takes no capability, since Linux 5.7.
func (s *Server) refuseNew() error {
	const noDevice = math.MaxInt32 // an index that no device has
	return control(s.listener, func(fd int) error {
		return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX, noDevice)
	})
}

// hasWaiting reports whether a connection waits to be accepted.
func (s *Server) hasWaiting() bool {
	waiting := false
	err := control(s.listener, func(fd int) error {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, 0)
		waiting = n > 0 || errors.Is(err, unix.EINTR)
		return nil
	})
	return err == nil && waiting // on a closed listener nothing waits
}

// stopAccepting ends the wait for another connection, and reports whether all that were
// accepted are in conns: one may have left the kernel's queue and be on its way there.
func (s *Server) stopAccepting() bool {
	if l, ok := s.listener.(*net.TCPListener); ok {
		_ = l.SetDeadline(time.Unix(1, 0)) // it fails on a closed listener, which accepts nothing
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.accepted
}

// endIdle ends the connections that have had their time since the drain began: idle ones at
// once, silent ones after silentTime, and those with an unfinished request after the time
// that a header may take. It returns how many connections are left.
func (s *Server) endIdle(elapsed time.Duration) (left int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		if c.state == idle || c.state == silent && elapsed >= silentTime || c.state == reading && elapsed >= s.times.header {
			c.endReading()
		}
	}
	return len(s.conns)
}

// endReading shuts the reading side of a connection, unless bytes have arrived that net/http
// has yet to read. Bytes that arrive after the check are still read, where closing would
// reset the connection. The caller holds the server's lock.
func (c *conn) endReading() {
	if tcp, ok := c.Conn.(*net.TCPConn); ok && !c.hasArrived() {
		c.state = ended
		_ = tcp.CloseRead() // it fails where the client has closed the connection
	}
}

// hasArrived reports whether bytes wait in the kernel for net/http to read them.
func (c *conn) hasArrived() bool {
	waiting := 0
	_ = control(c.Conn, func(fd int) (err error) { // none wait on a closed connection
		waiting, err = unix.IoctlGetInt(fd, unix.SIOCINQ)
		return err
	})
	return waiting > 0
}

// sleep waits, or until ctx ends.
func sleep(ctx context.Context, pause time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(pause):
	}
}
