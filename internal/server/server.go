// Package server is an HTTP server that stays up when its clients are hostile, and that
// drains. It knows no protocol but HTTP/1.
//
// It runs net/http's server, and bounds what clients can hold of it: the number of
// connections, the size and the lines of a request's header, the time for each step, and
// the kernel's buffers (see [Listen]). What a handler takes for an answer is the handler's
// to bound.
//
//	listener, err := server.Listen(ctx, "127.0.0.1:8000")
//	…
//	s := server.New(listener, server.Config{Handler: handler, MaxConnections: 1024})
//	go s.Serve()
//	…
//	err = s.Drain(ctx)
//
// # Security considerations
//
// No client can keep the others from being answered. When all connections are taken, the
// next one takes the place of the connection that has made the server wait for the longest:
// for a request, or for the reading of an answer. An answer then ends its connection, so
// that whoever asks again has to queue like everybody else.
package server

import (
	"bytes"
	"context"
	"errors"
	"log"
	"net"
	"net/http"
	"sync"
	"time"

	"go.uber.org/zap"
)

// Config says what to serve.
type Config struct {
	// Handler answers requests. It must not read a request's body: a connection ends with
	// the answer to a request that has one. Required.
	Handler http.Handler

	// MaxConnections is how many connections may be open at the same time. Required.
	MaxConnections int

	// OneRequest makes each answer end its connection. False: connections are kept alive.
	OneRequest bool

	// Log gets a line for each panic of the handler and, at debug level, what net/http
	// says about connections. Nil: no logging.
	Log *zap.Logger
}

// times are the time limits of a connection. Only tests have others than standardTimes.
type times struct {
	header, body, idle, write, grace, unread, refusal time.Duration
}

var standardTimes = times{
	// A request comes over loopback in one packet, and so would a body, which nobody reads.
	header: 5 * time.Second,
	body:   5 * time.Second,

	// Longer than clients keep idle connections (90 seconds in Go), so that it is the
	// client that closes, and no request is lost to the race.
	idle: 2 * time.Minute,

	// The kernel's buffers take an answer at once, unless the client does not read. Each
	// write has this time for itself: a request may wait for as long as its handler does.
	write: 5 * time.Second,

	// How long the server waits for a request before another connection may have the place.
	// Clients send one within a millisecond of connecting, and within a few hundred on a
	// machine that is overloaded by their number.
	grace: 500 * time.Millisecond,

	// The same for the reading of an answer that the kernel's buffers do not take. They take
	// all but the largest.
	unread: 100 * time.Millisecond,

	// How long a client that was refused while it was sending may take to read why. A
	// connection that is closed with unread bytes is reset, and the answer may be lost.
	refusal: 500 * time.Millisecond,
}

// Server serves one listener. Its methods may be called from any goroutine.
type Server struct {
	cfg      Config
	times    times
	http     *http.Server
	listener net.Listener
	closing  sync.Once
	closed   chan struct{} // closed when the listener is
	freed    chan struct{} // holds one element after a connection has ended

	mu       sync.Mutex // guards what follows, and the state of each conn
	conns    map[*conn]struct{}
	large    []*conn // those with a large request, the oldest first
	draining bool
	accepted bool // no connection will be accepted any more: all are in conns
}

// New returns a server for the connections of listener. [Listen] makes one whose sockets
// have bounded buffers, and that [Server.Drain] can stop without losing a connection.
func New(listener net.Listener, cfg Config) *Server { return newServer(listener, cfg, standardTimes) }

func newServer(listener net.Listener, cfg Config, t times) *Server {
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	s := &Server{
		cfg:      cfg,
		times:    t,
		listener: listener,
		closed:   make(chan struct{}),
		freed:    make(chan struct{}, 1),
		conns:    make(map[*conn]struct{}),
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	s.http = &http.Server{
		Handler:           http.HandlerFunc(s.serveHTTP),
		ReadHeaderTimeout: t.header,
		IdleTimeout:       t.idle,
		// No ReadTimeout: it would cancel requests whose handler waits for long. No
		// WriteTimeout: see conn.Write.
		MaxHeaderBytes: maxHeaderBytes, // conn.Read refuses such a header first
		Protocols:      protocols,
		// OPTIONS * is answered like any other request, by the handler.
		DisableGeneralOptionsHandler: true,
		ConnContext:                  func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) },
		ConnState:                    func(c net.Conn, state http.ConnState) { c.(*conn).setState(state) },
		ErrorLog:                     log.New(errorLog{cfg.Log}, "", 0),
	}
	return s
}

// Serve accepts connections and serves them. It returns nil after [Server.Drain],
// [Server.Shutdown] or [Server.Close], as soon as one of them has closed the listener.
func (s *Server) Serve() error {
	if err := s.http.Serve(acceptor{s}); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// Shutdown closes the listener, and then waits until no request is in progress or ctx
// ends. Connections that wait to be accepted are reset: see [Server.Drain].
func (s *Server) Shutdown(ctx context.Context) error { return s.http.Shutdown(ctx) }

// Close closes the listener and all connections at once.
func (s *Server) Close() error { return s.http.Close() }

// connKey is the key of a connection in the context of its requests.
type connKey struct{}

// serveHTTP runs the handler for one request.
func (s *Server) serveHTTP(w http.ResponseWriter, r *http.Request) {
	c := r.Context().Value(connKey{}).(*conn)
	// Not ContentLength: it is -1 for HTTP/2's preface, which has no body. Where there is none,
	// net/http reads ahead while the handler runs.
	if r.Body != http.NoBody {
		// Nobody waits for a body that does not come, and what follows it is never taken
		// for another request (smuggling). net/http reads a part of the body before it
		// closes, within the deadline, lest the client miss the answer.
		w.Header().Set("Connection", "close")
		c.hasBody = true
		_ = c.SetReadDeadline(time.Now().Add(s.times.body)) // fails where the connection has ended
	}
	s.cfg.Handler.ServeHTTP(&answer{ResponseWriter: w, conn: c}, r)
}

// answer is the ResponseWriter of a handler.
type answer struct {
	http.ResponseWriter
	conn  *conn
	begun bool
}

// WriteHeader decides as late as it can whether the connection ends with this answer: a
// request that waits may have come long before the drain.
func (a *answer) WriteHeader(status int) {
	a.begun = status >= http.StatusOK
	if a.begun && a.conn.server.endsConnections() {
		a.Header()["Connection"] = []string{"close"}
	}
	a.ResponseWriter.WriteHeader(status)
}

// Write begins the answer where the handler has not.
func (a *answer) Write(p []byte) (int, error) {
	if !a.begun {
		a.WriteHeader(http.StatusOK)
	}
	return a.ResponseWriter.Write(p)
}

// Unwrap is for [http.ResponseController].
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// endsConnections reports whether an answer that begins now ends its connection.
func (s *Server) endsConnections() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cfg.OneRequest || s.draining || s.full()
}

// errorLog takes the lines of net/http. Most are about connections that end early (Java
// and .NET probe by connecting and closing), and are for debugging. Panics and failures to
// accept are not.
type errorLog struct{ log *zap.Logger }

// Write logs one line.
func (l errorLog) Write(line []byte) (int, error) {
	level, message := zap.DebugLevel, "http server"
	switch {
	case bytes.HasPrefix(line, []byte("http: panic serving")):
		level, message = zap.ErrorLevel, "panic while serving a request"
	case bytes.HasPrefix(line, []byte("http: Accept error")):
		level, message = zap.WarnLevel, "cannot accept connections"
	}
	l.log.Log(level, message, zap.ByteString("error", bytes.TrimSpace(line)))
	return len(line), nil
}
