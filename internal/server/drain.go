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
	// settleTime is how long idle connections stay open after the drain has begun. A client
	// that sends a request within this time gets an answer with "Connection: close", instead
	// of a connection that is closed while it sends.
	settleTime = 200 * time.Millisecond

	// silentTime is how long the drain waits for the first byte of a connection. Clients send
	// a request within a millisecond of connecting, and within a few hundred on an overloaded
	// machine.
	silentTime = 2 * time.Second

	// drainPollInterval is how often the drain checks which connections are left.
	drainPollInterval = 5 * time.Millisecond
)

// Drain is the graceful shutdown: no request is lost whose connection was established. It
// returns when no request is in progress, or ctx ends.
//
// Closing a listener resets the connections in the kernel's accept queue, which are dozens
// under load. So Drain first makes the kernel refuse new connections, and accepts those in
// the queue. From then on each answer closes its connection. Next, Drain closes the idle
// connections and waits for the others. It shuts down net/http's server only when no
// connection is left, because that drops requests whose header is incomplete.
func (s *Server) Drain(ctx context.Context) error {
	s.mu.Lock()
	s.draining = true
	s.mu.Unlock()
	if err := s.refuseNew(); err != nil { // as on an old kernel
		s.cfg.Log.Warn("connections that are not accepted yet may be reset", zap.Error(err))
		sleep(ctx, settleTime) // for the open connections
	} else {
		s.waitForConns(ctx)
	}
	return s.Shutdown(ctx)
}

// waitForConns closes idle connections, and returns when no connection is left or ctx ends.
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

// refuseNew binds the listener to a network device that does not exist (SO_BINDTOIFINDEX).
// The kernel then refuses new connections as on a closed port, and completes handshakes in
// progress. Since Linux 5.7 this requires no capability.
func (s *Server) refuseNew() error {
	const noDevice = math.MaxInt32 // no device has this index
	return control(s.listener, func(fd int) error {
		return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX, noDevice)
	})
}

// hasWaiting reports whether the kernel's accept queue has a connection.
func (s *Server) hasWaiting() bool {
	waiting := false
	err := control(s.listener, func(fd int) error {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, 0)
		waiting = n > 0 || errors.Is(err, unix.EINTR)
		return nil
	})
	return err == nil && waiting // the queue of a closed listener is empty
}

// stopAccepting makes Accept return, and reports whether all accepted connections are in
// conns: a connection that Accept has taken from the kernel's queue may not be there yet.
func (s *Server) stopAccepting() bool {
	if l, ok := s.listener.(*net.TCPListener); ok {
		_ = l.SetDeadline(time.Unix(1, 0)) // it fails on a closed listener, which needs no deadline
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.accepted
}

// endIdle ends idle connections at once, silent ones after silentTime, and those with an
// incomplete header after the time limit of a header; elapsed is the time since the drain
// began. It returns how many connections are left.
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
// has yet to read. Bytes that arrive after this check are still read; closing the connection
// would reset it instead. The caller holds the server's lock.
func (c *conn) endReading() {
	if tcp, ok := c.Conn.(*net.TCPConn); ok && !c.hasArrived() {
		c.state = ended
		_ = tcp.CloseRead() // it fails if the client has closed the connection
	}
}

// hasArrived reports whether bytes wait in the kernel for net/http to read them.
func (c *conn) hasArrived() bool {
	waiting := 0
	_ = control(c.Conn, func(fd int) (err error) { // it fails on a closed connection, which has none
		waiting, err = unix.IoctlGetInt(fd, unix.SIOCINQ)
		return err
	})
	return waiting > 0
}

// sleep waits until the pause is over or ctx ends.
func sleep(ctx context.Context, pause time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(pause):
	}
}
