package main

import (
	"context"
	"errors"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// socketBuffer bounds the memory of the kernel for each direction of a connection. The kernel doubles
// it.
const socketBuffer = 32 << 10

// listen opens a TCP port whose connections are limited.
func (p *peers) listen(ctx context.Context, address string) (net.Listener, error) {
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		controlErr := raw.Control(func(fd uintptr) {
			err = errors.Join( // accepted sockets inherit the sizes
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, socketBuffer),
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, socketBuffer))
		})
		return errors.Join(err, controlErr)
	}}
	config.SetMultipathTCP(false) // the kernel's buffers of Multipath TCP are not bounded by these sizes
	listener, err := config.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	return p.limit(listener), nil
}

// limit returns a listener whose connections are limited.
func (p *peers) limit(listener net.Listener) net.Listener {
	l := &limitedListener{Listener: listener, peers: p}
	l.open, l.close = context.WithCancel(context.Background())
	return l
}

type limitedListener struct {
	net.Listener
	peers *peers
	open  context.Context // until Close
	close context.CancelFunc
}

// Accept waits for a connection, and then until there is a place for it.
func (l *limitedListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c, err := l.peers.admit(l.open, conn)
	if err != nil {
		conn.Close()
		return nil, net.ErrClosed
	}
	return c, nil
}

// Close closes the port, not the connections.
func (l *limitedListener) Close() error {
	l.close()
	return l.Listener.Close()
}
