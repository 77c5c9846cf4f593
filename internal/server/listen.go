package server

import (
	"context"
	"errors"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// receiveBuffer and sendBuffer bound how many bytes the kernel holds for a connection.
	// Accepted sockets inherit them from the listener.
	receiveBuffer = 4 << 10
	sendBuffer    = 4 << 10
)

// Listen opens a TCP port for a [Server]. It does not use Multipath TCP, which is Go's
// default: [Server.Drain] cannot control the kernel's internal listener of Multipath TCP.
func Listen(ctx context.Context, address string) (net.Listener, error) {
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		controlErr := raw.Control(func(fd uintptr) {
			err = errors.Join(
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer),
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, sendBuffer))
		})
		return errors.Join(err, controlErr)
	}}
	config.SetMultipathTCP(false)
	return config.Listen(ctx, "tcp", address)
}

// control calls do with the file descriptor of a connection or listener. It returns
// ErrUnsupported if there is none, as in tests.
func control(socket any, do func(fd int) error) error {
	conn, ok := socket.(syscall.Conn)
	if !ok {
		return errors.ErrUnsupported
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var doErr error
	if err := raw.Control(func(fd uintptr) { doErr = do(int(fd)) }); err != nil {
		return err
	}
	return doErr
}

// acceptor is the listener that net/http uses. It keeps the number of connections below the
// limit.
type acceptor struct{ *Server }

// evictInterval is how often Accept tries to evict a connection at the limit.
const evictInterval = 10 * time.Millisecond

// Accept waits for a connection, and then until it is admitted. Only one goroutine may call
// it.
func (a acceptor) Accept() (net.Conn, error) {
	inner, err := a.listener.Accept()
	if errors.Is(err, os.ErrDeadlineExceeded) { // stopAccepting has set the deadline
		a.acceptedAll()
		<-a.closed // net/http would call Accept again
		return nil, net.ErrClosed
	}
	if err != nil {
		return nil, err
	}
	c := &conn{Conn: inner, server: a.Server}
	for !a.admit(c) {
		select {
		case <-a.freed:
		case <-time.After(evictInterval):
		case <-a.closed:
			inner.Close()
			return nil, net.ErrClosed
		}
	}
	return c, nil
}

// Close closes the listener.
func (a acceptor) Close() error {
	a.closing.Do(func() { close(a.closed) })
	a.acceptedAll()
	return a.listener.Close()
}

// Addr is the listener's.
func (a acceptor) Addr() net.Addr { return a.listener.Addr() }

// queued returns the length of the kernel's accept queue.
func (s *Server) queued() int {
	waiting := 0
	_ = control(s.listener, func(fd int) error { // it fails on a closed listener, which has none
		info, err := unix.GetsockoptTCPInfo(fd, unix.SOL_TCP, unix.TCP_INFO)
		if err == nil {
			waiting = int(info.Unacked) // for a listening socket, this is the length of the queue
		}
		return err
	})
	return waiting
}

func (s *Server) acceptedAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.accepted = true
}
