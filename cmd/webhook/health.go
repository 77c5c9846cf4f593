package main

import (
	"context"
	"errors"
	"net"
	"net/http"
	"time"

	"go.uber.org/zap"

	"imds-oidc-proxy/internal/health"
)

// plainTimeout is the timeout of a probe and of a request for metrics, which take milliseconds.
const plainTimeout = 5 * time.Second

// plainServer serves probes or metrics, by HTTP without TLS.
type plainServer struct {
	listener net.Listener
	peers    *peers
	log      *zap.Logger
}

func newPlainServer(ctx context.Context, flag, address string, m *metrics, log *zap.Logger) (*plainServer, error) {
	s := &plainServer{peers: newPeers(m), log: log}
	var err error
	if s.listener, err = s.peers.listen(ctx, address); err != nil {
		return nil, flagError(flag, address, err)
	}
	return s, nil
}

// serve serves until the returned server is closed. It calls failed if serving fails.
func (s *plainServer) serve(handler http.Handler, failed func()) *http.Server {
	server := &http.Server{
		Handler: handler, ReadTimeout: plainTimeout, WriteTimeout: plainTimeout, IdleTimeout: idleTimeout,
		MaxHeaderBytes: maxHeaderBytes, ErrorLog: debugLog(s.log),
	}
	s.peers.observe(server)
	go func() {
		if err := server.Serve(s.listener); !errors.Is(err, http.ErrServerClosed) {
			s.log.Error("serving health probes or metrics failed", zap.Stringer("address", s.listener.Addr()), zap.Error(err))
			failed()
		}
	}()
	return server
}

// healthHandler answers the kubelet's probes.
func (w *webhook) healthHandler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /healthz", health.Handler("healthz", []health.Check{{Name: "ping"}}))
	mux.Handle("GET /readyz", health.Handler("readyz", w.readyChecks()))
	return mux
}

// readyChecks returns the checks of /readyz. The webhook is ready if it can answer from current
// service accounts and the API server trusts its certificate. The server starts after the cache is
// filled, so the check listening covers the cache too.
func (w *webhook) readyChecks() []health.Check {
	return []health.Check{
		{Name: "certificate", Run: func() error { return w.cert.ready(time.Now()) }},
		{Name: "certificate-renewal", Run: w.cert.renewable, Warning: true},
		{Name: "authority-known", Run: w.authorityKnown},
		{Name: "service-accounts", Run: w.accounts.current},
		{Name: "listening", Run: func() error {
			switch {
			case w.draining.Load():
				return errors.New("the webhook is shutting down")
			case !w.server.listening.Load():
				return errors.New("the port is not open yet: the service accounts have not been read, or the webhook is not allowed to read them")
			}
			return nil
		}},
	}
}

func (w *webhook) authorityKnown() error {
	if w.rotated == nil {
		return nil
	}
	select {
	case <-w.rotated:
		return nil
	default:
		return errors.New("the certificate authority is not in the MutatingWebhookConfiguration yet")
	}
}
