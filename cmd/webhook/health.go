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

// healthTimeout is the timeout of a probe. The kubelet's probes take a millisecond.
const healthTimeout = 5 * time.Second

// listenHealth opens the port for the kubelet's probes. It is open before the service accounts
// are read, and until the last request is answered.
func (w *webhook) listenHealth(ctx context.Context, address string) error {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", address)
	if err != nil {
		return flagError("health-address", address, err)
	}
	w.healthListener = listener
	return nil
}

// serveHealth serves probes until the returned server is closed. It calls failed if serving fails.
func (w *webhook) serveHealth(failed func()) *http.Server {
	mux := http.NewServeMux()
	mux.Handle("GET /healthz", health.Handler("healthz", []health.Check{{Name: "ping"}}))
	mux.Handle("GET /readyz", health.Handler("readyz", w.readyChecks()))
	probes := &http.Server{
		Handler: mux, ReadTimeout: healthTimeout, WriteTimeout: healthTimeout, IdleTimeout: idleTimeout,
		MaxHeaderBytes: maxHeaderBytes, ErrorLog: debugLog(w.log),
	}
	go func() {
		if err := probes.Serve(w.healthListener); !errors.Is(err, http.ErrServerClosed) {
			w.log.Error("serving health probes failed", zap.Error(err))
			failed()
		}
	}()
	return probes
}

// readyChecks returns the checks of /readyz. The webhook is ready if it can answer from current
// service accounts and the API server trusts its certificate. The server starts after the cache is filled, so the check
// listening covers the cache too.
func (w *webhook) readyChecks() []health.Check {
	return []health.Check{
		{Name: "certificate", Run: func() error { return w.cert.ready(time.Now()) }},
		{Name: "authority-known", Run: w.authorityKnown},
		{Name: "service-accounts", Run: w.watch.current},
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
