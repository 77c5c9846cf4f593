// Package server is an HTTP/1 server with connection limits, so that hostile clients cannot
// make it unavailable, and with graceful shutdown.
//
// It runs net/http's server, and bounds the resources that clients can use: the number of
// connections, the size and the number of lines of a request's header, the time for each
// step, and the kernel's buffers (see [Listen]). The handler must bound the time and memory
// that it uses itself.
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
// No client can keep other clients from being answered (slowloris and similar attacks). At
// the connection limit, a new connection evicts the connection that has made the server wait
// the longest, for a request or for the client to read an answer. Also, each answer then
// closes its connection, so that a client has to queue for its next request like all others.
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
	// Handler answers requests. It must not read a request's body: the answer to a request
	// with a body closes the connection. Required.
	Handler http.Handler

	// MaxConnections is how many connections may be open at the same time. Required.
	MaxConnections int

	// OneRequest makes each answer close its connection. By default, connections are kept
	// alive.
	OneRequest bool

	// Log gets a line for each panic of the handler, for each failure to accept a connection
	// and, at debug level, for net/http's other messages about connections. If it is nil,
	// nothing is logged.
	Log *zap.Logger
}

// times are the time limits of a connection. Only tests use other values than standardTimes.
type times struct {
	header, body, idle, write, grace, unread, refusal time.Duration
}

var standardTimes = times{
	// header and body bound how long a request's header and its body may take to arrive. Over
	// loopback, they arrive in one packet.
	header: 5 * time.Second,
	body:   5 * time.Second,

	// idle is longer than clients keep idle connections (90 seconds in Go), so that the
	// client closes the connection, and no request is lost in a race.
	idle: 2 * time.Minute,

	// write is the time limit of each write, not of the whole answer, because a handler may
	// take long. The kernel's buffers take a small answer at once, even if the client does
	// not read.
	write: 5 * time.Second,

	// grace is how long a connection may make the server wait for a request before a new
	// connection may evict it. Clients send a request within a millisecond of connecting, and
	// within a few hundred on an overloaded machine.
	grace: 500 * time.Millisecond,

	// unread is how long a connection may make the server wait for the client to read a part
	// of an answer before a new connection may evict it. The kernel's buffers take all but
	// the largest answers at once.
	unread: 100 * time.Millisecond,

	// refusal is how long the server discards the rest of a request that it has refused, so
	// that the client can read the answer. A connection that is closed with unread bytes is
	// reset, and the answer may be lost.
	refusal: 500 * time.Millisecond,
}

// Server serves one listener. It is safe for concurrent use.
type Server struct {
	cfg      Config
	times    times
	http     *http.Server
	listener net.Listener
	closing  sync.Once
	closed   chan struct{} // closed when the listener is closed
	freed    chan struct{} // has an element after a connection was removed from conns

	mu       sync.Mutex // guards the fields below, and the field place of each conn
	conns    map[*conn]struct{}
	large    []*conn // connections with a large request, the oldest first
	draining bool
	accepted bool // no more connections will be accepted, and all accepted ones are in conns
}

// New returns a server for the connections of a listener. Use a listener of [Listen]: its
// sockets have bounded buffers, and [Server.Drain] can stop it without losing a connection.
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
		// There is no ReadTimeout, because header and body have time limits of their own, and
		// no WriteTimeout: see conn.Write.
		MaxHeaderBytes: maxHeaderBytes, // conn.Read refuses larger headers before net/http does
		Protocols:      protocols,
		// The handler answers OPTIONS * too.
		DisableGeneralOptionsHandler: true,
		ConnContext:                  func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) },
		ConnState:                    func(c net.Conn, state http.ConnState) { c.(*conn).setState(state) },
		ErrorLog:                     log.New(errorLog{cfg.Log}, "", 0),
	}
	return s
}

// Serve accepts connections and serves them. It returns nil as soon as [Server.Drain],
// [Server.Shutdown] or [Server.Close] has closed the listener.
func (s *Server) Serve() error {
	if err := s.http.Serve(acceptor{s}); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// Shutdown closes the listener, and then waits until no request is in progress or ctx
// ends. Connections in the kernel's accept queue are reset: see [Server.Drain].
func (s *Server) Shutdown(ctx context.Context) error { return s.http.Shutdown(ctx) }

// Close closes the listener and all connections at once.
func (s *Server) Close() error { return s.http.Close() }

// connKey is the context key of a request's connection.
type connKey struct{}

// serveHTTP runs the handler for one request.
func (s *Server) serveHTTP(w http.ResponseWriter, r *http.Request) {
	c := r.Context().Value(connKey{}).(*conn)
	// The condition is about Body and not ContentLength, which is -1 for HTTP/2's preface
	// although that has no body. hasBody must not be set for a request without a body: net/http
	// reads ahead on its connection while the handler runs.
	if r.Body != http.NoBody {
		// The server does not wait for the body. The connection closes after the answer, so
		// that bytes after the body are never parsed as another request (request smuggling).
		// Before net/http closes the connection, it reads a part of the body, until the
		// deadline, so that the client gets the answer.
		w.Header().Set("Connection", "close")
		c.hasBody = true
		_ = c.SetReadDeadline(time.Now().Add(s.times.body)) // fails if the connection is closed
	}
	s.cfg.Handler.ServeHTTP(&answer{ResponseWriter: w, conn: c}, r)
}

// answer is the ResponseWriter of the handler.
type answer struct {
	http.ResponseWriter
	conn  *conn
	begun bool
}

// WriteHeader writes the header, and decides whether this answer closes its connection. It
// decides so late because a drain may begin while the handler works on the request.
func (a *answer) WriteHeader(status int) {
	a.begun = status >= http.StatusOK
	if a.begun && a.conn.server.endsConnections() {
		a.Header()["Connection"] = []string{"close"}
	}
	a.ResponseWriter.WriteHeader(status)
}

// Write writes the header first, if the handler has not.
func (a *answer) Write(p []byte) (int, error) {
	if !a.begun {
		a.WriteHeader(http.StatusOK)
	}
	return a.ResponseWriter.Write(p)
}

// Unwrap is for [http.ResponseController].
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// endsConnections reports whether an answer that begins now must close its connection.
func (s *Server) endsConnections() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cfg.OneRequest || s.draining || s.full()
}

// errorLog logs net/http's messages. Most of them are about connections that clients close
// early (Java and .NET probe by connecting and closing), and have the level debug. Panics have
// the level error, and failures to accept connections the level warn.
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
