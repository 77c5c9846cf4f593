package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	stdlog "log"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

const (
	// mutatePath is the path of requests, the same as in azure-workload-identity's webhook.
	mutatePath = "/mutate-v1-pod"

	// requestTimeout is the timeout for reading a request, and for writing its response. The
	// API server's timeout is timeoutSeconds: 10 s in the chart, at most 30 s.
	requestTimeout = 15 * time.Second
	headerTimeout  = 5 * time.Second
	idleTimeout    = 2 * time.Minute
	maxHeaderBytes = 16 << 10

	// stopTimeout is how long a graceful shutdown waits for requests in flight.
	stopTimeout = 8 * time.Second
)

// server serves the API server's requests.
type server struct {
	address    string
	minVersion uint16
	cert       *certificate
	peers      *peers
	handler    http.Handler
	draining   *atomic.Bool
	listening  atomic.Bool
	log        *zap.Logger
}

// Start serves until ctx is done, and then until requests in flight are answered.
func (s *server) Start(ctx context.Context) error {
	listener, err := s.peers.listen(ctx, s.address)
	if err != nil {
		return flagError("address", s.address, err)
	}
	return s.serve(ctx, listener)
}

func (s *server) serve(ctx context.Context, listener net.Listener) error {
	server := s.newHTTPServer()
	ended := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		err := server.Shutdown(drain)
		if errors.Is(err, context.DeadlineExceeded) { // a client sends or reads slowly
			s.log.Warn("closing connections that have not ended in time", zap.Duration("timeout", stopTimeout))
			err = server.Close()
		}
		ended <- err
	})
	defer stop()
	s.listening.Store(true)
	s.log.Info("webhook listens", zap.Stringer("address", listener.Addr()))
	if err := server.ServeTLS(listener, "", ""); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving: %w", err)
	}
	s.listening.Store(false)
	return <-ended
}

// newHTTPServer returns the HTTP server, for a listener of peers. API servers speak HTTP/1.1 with
// webhooks. HTTP/2 would let one connection send many requests at the same time.
func (s *server) newHTTPServer() *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	server := &http.Server{
		Handler:           s.routes(),
		Protocols:         protocols,
		TLSConfig:         &tls.Config{MinVersion: s.minVersion, GetCertificate: s.cert.get, NextProtos: []string{"http/1.1"}},
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       requestTimeout,
		WriteTimeout:      requestTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          debugLog(s.log),
	}
	s.peers.observe(server)
	return server
}

// routes returns the handler of the one path. It limits the size of requests, the memory of
// concurrent requests, and the time of each.
func (s *server) routes() http.Handler {
	places := newPlaces()
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+mutatePath, func(w http.ResponseWriter, r *http.Request) {
		if s.draining.Load() {
			w.Header().Set("Connection", "close") // sends the next request to another replica
		}
		ctx, cancel := context.WithTimeout(r.Context(), admitTime(r))
		defer cancel()
		if err := s.admit(ctx, places, w, r); err != nil {
			writeError(w, err)
		}
	})
	return mux
}

// admit answers a request. It works only on requests that are received completely, and sends only
// answers that are complete: a client that sends or reads slowly does not hold a place.
func (s *server) admit(ctx context.Context, places *places, w http.ResponseWriter, r *http.Request) error {
	c := peerOf(r)
	defer c.release()
	body, err := readBody(ctx, c, w, r)
	if err != nil {
		return err
	}
	c.work()
	place, err := places.enter(ctx, body.memory())
	if err != nil {
		return err
	}
	defer place.leave()
	c.release()
	r = r.WithContext(place.with(ctx))
	r.Body = body.reader()
	complete := &answerBuffer{ResponseWriter: w}
	s.handler.ServeHTTP(complete, r)
	return complete.send(ctx, c, place.leave)
}

// answerBuffer is a ResponseWriter that keeps status and body. The header is that of the other
// ResponseWriter.
type answerBuffer struct {
	http.ResponseWriter
	status int
	body   bytes.Buffer
}

func (a *answerBuffer) WriteHeader(status int)      { a.status = cmp.Or(a.status, status) }
func (a *answerBuffer) Write(b []byte) (int, error) { return a.body.Write(b) }

// send writes the answer to the other ResponseWriter, when there is enough memory to wait for the
// client to read it. It calls leave before it writes.
func (a *answerBuffer) send(ctx context.Context, c *peer, leave func()) error {
	defer c.release()
	if err := c.reserve(ctx, &c.peers.sending, int64(a.body.Len())); err != nil {
		return err
	}
	leave()
	a.ResponseWriter.WriteHeader(cmp.Or(a.status, http.StatusOK))
	_, _ = a.ResponseWriter.Write(a.body.Bytes()) // an error means that the client is gone
	return nil
}

// admitTime returns the timeout of a request. The API server sends its own timeout, the webhook's
// timeoutSeconds, as a parameter. A fifth of it is for the way.
func admitTime(r *http.Request) time.Duration {
	theirs, err := time.ParseDuration(r.URL.Query().Get("timeout"))
	if err != nil || theirs <= 0 {
		return admitTimeout
	}
	return min(admitTimeout, theirs-theirs/5)
}

// debugLog returns a logger for net/http's messages about failed handshakes and requests, which
// port scans cause, for example.
func debugLog(log *zap.Logger) *stdlog.Logger {
	std, err := zap.NewStdLogAt(log, zap.DebugLevel)
	if err != nil { // only for an invalid level
		return zap.NewStdLog(log)
	}
	return std
}
