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
	// receiveBuffer and sendBuffer bound what the kernel holds for one connection. They
	// are inherited by what a listener accepts.
	receiveBuffer = 4 << 10
	sendBuffer    = 4 << 10
)

// Listen opens a TCP port for a [Server]. It is plain TCP: the kernel's own listener of
// Multipath TCP, Go's default, is hidden from [Server.Drain].
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

// control runs do with the socket of a connection or a listener of the kernel's.
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

// acceptor is the listener as net/http sees it: it returns connections that have a place.
type acceptor struct{ *Server }

// lookAgain is how often a connection looks for a place while there is none.
const lookAgain = 10 * time.Millisecond

// Accept waits for a connection, and then for a place. It is for one goroutine.
func (a acceptor) Accept() (net.Conn, error) {
	inner, err := a.listener.Accept()
	if errors.Is(err, os.ErrDeadlineExceeded) { // by stopAccepting
		a.acceptedAll()
		<-a.closed // so that net/http does not ask again
		return nil, net.ErrClosed
	}
	if err != nil {
		return nil, err
	}
	c := &conn{Conn: inner, server: a.Server}
	for !a.admit(c) {
		select {
		case <-a.freed:
		case <-time.After(lookAgain):
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

// queued returns how many connections wait in the kernel's queue to be accepted.
func (s *Server) queued() int {
	waiting := 0
	_ = control(s.listener, func(fd int) error { // none wait at a closed listener
		info, err := unix.GetsockoptTCPInfo(fd, unix.SOL_TCP, unix.TCP_INFO)
		if err == nil {
			waiting = int(info.Unacked) // of a listening socket, this is the queue's length
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
