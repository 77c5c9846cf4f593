package main

import (
	"context"
	"fmt"
	"math"
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

	// silentTime is how long a connection that never said a byte may have to say one.
	// Clients send their request within a millisecond of connecting, and within some
	// hundred of them on a machine that is overloaded by their number.
	silentTime = 2 * time.Second

	// settleLook is between looks at whether connections still wait to be accepted.
	settleLook = 5 * time.Millisecond
)

// drain ends a server without losing a request whose connection was made.
//
// Closing a listener resets the connections that the kernel has made and the
// process has yet to accept: under load, dozens. So first the door is shut to new
// ones, and those in the queue are accepted; the listener is closed when it is empty.
// Connections that say nothing by then have some time to do so, and are ended as idle
// ones are.
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
	if err := d.settle(ctx); err != nil { // as on an old kernel
		d.log.Warn("requests that were not accepted yet may be lost", zap.Error(err))
	} else {
		d.silent.end()
	}
	return server.Shutdown(ctx)
}

// listen opens a port of the loopback address. It is plain TCP: Go would have
// Multipath TCP, of whose listeners the kernel's own is hidden from [refuseNew].
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
	if err := control(conn, refuseNew); err != nil {
		rest(ctx, settleTime) // for the sake of the connections that are open
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
		if d.settled(waiting, time.Since(began)) {
			return nil
		}
	}
}

// settled reports whether nobody is left to wait for, after the door has been shut for
// a time.
func (d *drain) settled(waiting bool, shut time.Duration) bool {
	if waiting || shut < settleTime {
		return false
	}
	return shut >= silentTime || d.silent.count() == 0
}

// rest waits, or until ctx ends.
func rest(ctx context.Context, pause time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(pause):
	}
}

func control(conn syscall.RawConn, do func(fd int) error) error {
	var doErr error
	if err := conn.Control(func(fd uintptr) { doErr = do(int(fd)) }); err != nil {
		return err
	}
	return doErr
}

// refuseNew takes the listener off every device that there is: the kernel answers
// what would begin a connection as on a closed port, and handshakes under way come to
// their end. It takes no capability, since Linux 5.7.
func refuseNew(fd int) error {
	const noDevice = math.MaxInt32 // an index that no device has
	return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX, noDevice)
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
