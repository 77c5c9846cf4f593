package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	stdlog "log"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/net/netutil"
)

const (
	// mutatePath is the path of requests, the same as in azure-workload-identity's webhook.
	mutatePath = "/mutate-v1-pod"

	// maxStreams is the maximum number of concurrent requests of one connection. places limits
	// those of all connections.
	maxStreams = 100

	// maxConnections is the maximum number of connections. API servers keep a few open, but
	// others may connect too.
	maxConnections = 256

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
	handler    http.Handler
	draining   *atomic.Bool
	listening  atomic.Bool
	log        *zap.Logger
}

// Start serves until ctx is done, and then until requests in flight are answered.
func (s *server) Start(ctx context.Context) error {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", s.address)
	if err != nil {
		return flagError("address", s.address, err)
	}
	return s.serve(ctx, listener)
}

func (s *server) serve(ctx context.Context, listener net.Listener) error {
	server := &http.Server{
		Handler:           s.routes(),
		TLSConfig:         &tls.Config{MinVersion: s.minVersion, GetCertificate: s.cert.get, NextProtos: []string{"h2", "http/1.1"}},
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       requestTimeout,
		WriteTimeout:      requestTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: maxStreams},
		ErrorLog:          debugLog(s.log),
	}
	ended := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		ended <- server.Shutdown(drain)
	})
	defer stop()
	s.listening.Store(true)
	s.log.Info("webhook listens", zap.Stringer("address", listener.Addr()))
	if err := server.ServeTLS(netutil.LimitListener(listener, maxConnections), "", ""); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving: %w", err)
	}
	s.listening.Store(false)
	return <-ended
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
		place, body, err := places.read(ctx, w, r)
		if err != nil {
			writeBodyError(w, err)
			return
		}
		defer place.leave()
		r = r.WithContext(place.with(ctx))
		r.Body = io.NopCloser(bytes.NewReader(body))
		s.handler.ServeHTTP(w, r)
	})
	return mux
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
