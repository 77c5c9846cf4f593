package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/http"
	"sync/atomic"
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

	// settleLook is between looks at what is left.
	settleLook = 5 * time.Millisecond
)

// drain ends a server without losing a request whose connection was made.
//
// Closing a listener resets the connections that the kernel has made and the
// process has yet to accept: under load, dozens. So first the door is shut to new
// ones, and those in the queue are accepted. Then those that ask nothing are ended, and
// the others finish. The server is shut down when none is left, since from then on it
// drops what it has not read to the header's end.
type drain struct {
	listener  *net.TCPListener // the kernel's own
	conns     *conns           // what was accepted there
	listening *atomic.Bool     // for readiness
	log       *zap.Logger
	closing   atomic.Bool // answers end their connections
}

// handler has answers end their connections that begin once the drain has.
func (d *drain) handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		next.ServeHTTP(&answer{ResponseWriter: w, closing: &d.closing}, r)
	})
}

// answer decides as late as it can whether its connection ends with it: a request that
// waits for Entra may have come long before the drain.
type answer struct {
	http.ResponseWriter
	closing *atomic.Bool
	begun   bool
}

func (a *answer) WriteHeader(status int) {
	a.begun = status >= http.StatusOK
	if a.begun && a.closing.Load() {
		a.Header()["Connection"] = []string{"close"}
	}
	a.ResponseWriter.WriteHeader(status)
}

func (a *answer) Write(p []byte) (int, error) {
	if !a.begun {
		a.WriteHeader(http.StatusOK)
	}
	return a.ResponseWriter.Write(p)
}

// Unwrap is for [http.ResponseController].
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// end stops the server. It returns when no request is in flight, or ctx ends.
func (d *drain) end(ctx context.Context, server *http.Server) error {
	d.listening.Store(false)
	d.closing.Store(true)
	if err := d.refuseNew(); err != nil { // as on an old kernel
		d.log.Warn("requests that are not accepted yet may be lost", zap.Error(err))
		rest(ctx, settleTime) // for the sake of the connections that are open
	} else {
		d.finish(ctx)
	}
	return server.Shutdown(ctx)
}

// finish returns when no connection is left, or ctx ends.
func (d *drain) finish(ctx context.Context) {
	for began := time.Now(); ctx.Err() == nil; rest(ctx, settleLook) {
		shut := time.Since(began)
		if shut < settleTime || d.waiting() || !d.conns.stopAccepting(d.listener) {
			continue
		}
		if d.conns.endQuiet(shut >= silentTime) == 0 {
			return
		}
	}
}

// listen opens a port of the loopback address. It is plain TCP: Go would have
// Multipath TCP, of whose listeners the kernel's own is hidden from [refuseNew].
func listen(ctx context.Context, port int) (*net.TCPListener, error) {
	var config net.ListenConfig
	config.SetMultipathTCP(false)
	listener, err := config.Listen(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return nil, err
	}
	return listener.(*net.TCPListener), nil
}

// refuseNew takes the listener off every device that there is: the kernel answers
// what would begin a connection as on a closed port, and handshakes under way come to
// their end. It takes no capability, since Linux 5.7.
func (d *drain) refuseNew() error {
	const noDevice = math.MaxInt32 // an index that no device has
	return d.control(func(fd int) error {
		return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX, noDevice)
	})
}

// waiting reports whether a connection waits to be accepted.
func (d *drain) waiting() bool {
	waiting := false
	err := d.control(func(fd int) error {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, 0)
		waiting = n > 0 || errors.Is(err, unix.EINTR)
		return nil
	})
	return err == nil && waiting // on a closed one nothing waits
}

func (d *drain) control(do func(fd int) error) error {
	conn, err := d.listener.SyscallConn()
	if err != nil {
		return err
	}
	var doErr error
	if err := conn.Control(func(fd uintptr) { doErr = do(int(fd)) }); err != nil {
		return err
	}
	return doErr
}

// rest waits, or until ctx ends.
func rest(ctx context.Context, pause time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(pause):
	}
}
