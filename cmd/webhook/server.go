package main

import (
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
	"golang.org/x/net/netutil"
)

const (
	// mutatePath is where the API server asks, as azure-workload-identity's webhook
	// has it.
	mutatePath = "/mutate-v1-pod"

	// maxBody is more than an API server takes from its own clients, which is 3 MiB, by
	// what it writes around the pod.
	maxBody = 4 << 20

	// maxInFlight bounds the memory of requests that are being read and answered. An
	// answer takes a millisecond, so that it bounds no cluster.
	maxInFlight = 16

	// maxConnections is for API servers, which keep a few, and for whoever else finds
	// the port.
	maxConnections = 256

	// requestTimeout is for reading a request and writing its answer, which the API
	// server gives up on after timeoutSeconds, 10 s in the chart and at most 30.
	requestTimeout = 15 * time.Second
	headerTimeout  = 5 * time.Second
	idleTimeout    = 2 * time.Minute
	maxHeaderBytes = 16 << 10

	// endTimeout is for requests in flight when the server ends.
	endTimeout = 8 * time.Second
)

// server is the port that the API server talks to.
type server struct {
	address    string
	minVersion uint16
	cert       *certificate
	handler    http.Handler
	draining   *atomic.Bool
	listening  atomic.Bool
	log        *zap.Logger
}

// Start serves until ctx ends, and then until requests in flight are answered.
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
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: maxInFlight},
		ErrorLog:          debugLog(s.log),
	}
	ended := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
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

// routes is one path, with bounds around it.
func (s *server) routes() http.Handler {
	places := make(chan struct{}, maxInFlight)
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+mutatePath, func(w http.ResponseWriter, r *http.Request) {
		select {
		case places <- struct{}{}:
			defer func() { <-places }()
		case <-r.Context().Done():
			return
		}
		if s.draining.Load() {
			w.Header().Set("Connection", "close") // the next one is for another replica
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		s.handler.ServeHTTP(w, r)
	})
	return mux
}

// debugLog takes what net/http says of handshakes and requests that break off, such
// as those of port scans.
func debugLog(log *zap.Logger) *stdlog.Logger {
	std, err := zap.NewStdLogAt(log, zap.DebugLevel)
	if err != nil { // of a level that is none
		return zap.NewStdLog(log)
	}
	return std
}
