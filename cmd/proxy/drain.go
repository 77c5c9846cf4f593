package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"sync/atomic"
	"syscall"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

const (
	// settleTime is how long open connections may go on after the signal to end. A
	// client that asks again within it is told to open a new connection, instead of
	// finding this one closed under its request.
	settleTime = 200 * time.Millisecond

	// settleLook is between looks at whether connections still wait to be accepted.
	settleLook = 5 * time.Millisecond
)

// drain ends a server without losing a request whose connection was made.
//
// Closing a listener resets the connections that the kernel has made and the
// process has yet to accept: under load, dozens. So first the door is shut to new
// ones, and those in the queue are accepted; the listener is closed when it is empty.
// By then each connection has had its time to say something: those that did not are
// ended as idle ones are.
type drain struct {
	listener  net.Listener // the kernel's own
	silent    *silentConns // the same, and what it accepted
	listening *atomic.Bool // for readiness
	log       *zap.Logger
	closing   atomic.Bool // answers end their connections
}

// handler has answers end their connections once the drain has begun.
func (d *drain) handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if d.closing.Load() {
			w.Header()["Connection"] = []string{"close"}
		}
		next.ServeHTTP(w, r)
	})
}

// end stops the server. It returns when no request is in flight, or ctx ends.
func (d *drain) end(ctx context.Context, server *http.Server) error {
	d.listening.Store(false)
	d.closing.Store(true)
	if err := d.settle(ctx); err != nil { // as where a sandbox has no socket filters
		d.log.Warn("requests that were not accepted yet may be lost", zap.Error(err))
	} else {
		d.silent.end()
	}
	return server.Shutdown(ctx)
}

// listen opens a port of the loopback address. It is plain TCP: Go would have
// Multipath TCP, which takes no socket filter and is of no use on loopback.
func listen(ctx context.Context, port int) (net.Listener, error) {
	var config net.ListenConfig
	config.SetMultipathTCP(false)
	return config.Listen(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", port))
}

// settle lets no more connections in, and returns when those that were made are
// accepted and have had their time.
func (d *drain) settle(ctx context.Context) error {
	tcp, ok := d.listener.(*net.TCPListener)
	if !ok {
		return nil
	}
	conn, err := tcp.SyscallConn()
	if err != nil {
		return err
	}
	if err := control(conn, refuseSYN); err != nil {
		return err
	}
	ticker := time.NewTicker(settleLook)
	defer ticker.Stop()
	for began := time.Now(); ; {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		waiting := false
		if err := control(conn, func(fd int) (err error) { waiting, err = acceptable(fd); return err }); err != nil {
			return err
		}
		if !waiting && time.Since(began) >= settleTime {
			return nil
		}
	}
}

func control(conn syscall.RawConn, do func(fd int) error) error {
	var doErr error
	if err := conn.Control(func(fd uintptr) { doErr = do(int(fd)) }); err != nil {
		return err
	}
	return doErr
}

// refuseSYN has the kernel drop what would begin a connection, and nothing else:
// handshakes under way come to their end. Whoever tries is refused a second later,
// when it tries again and the listener is closed.
func refuseSYN(fd int) error {
	const (
		tcpFlags = 13 // the offset of the flags in a TCP header
		syn, ack = 0x02, 0x10
		all      = 0xffffffff
	)
	program := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: tcpFlags},
		{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: syn | ack},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: syn, Jt: 0, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
		{Code: unix.BPF_RET | unix.BPF_K, K: all},
	}
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
		&unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})
}

// acceptable reports whether a connection waits to be accepted.
func acceptable(fd int) (bool, error) {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	if err == unix.EINTR {
		return true, nil
	}
	return n > 0, err
}
