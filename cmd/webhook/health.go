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

// healthTimeout is for a probe, of which a kubelet's takes a millisecond.
const healthTimeout = 5 * time.Second

// listenHealth opens the port that kubelets ask at. It is open from before the
// service accounts are known until after the last request is answered.
func (w *webhook) listenHealth(ctx context.Context, address string) error {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", address)
	if err != nil {
		return flagError("health-address", address, err)
	}
	w.healthListener = listener
	return nil
}

// serveHealth answers until the program ends, which failed brings about.
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
			w.log.Error("health is not served any more", zap.Error(err))
			failed()
		}
	}()
	return probes
}

// readyChecks: ready is who can answer so that the API server believes it. The server
// starts when the cache is filled, so that listening says both.
func (w *webhook) readyChecks() []health.Check {
	return []health.Check{
		{Name: "certificate", Run: func() error { return w.cert.ready(time.Now()) }},
		{Name: "authority-known", Run: w.authorityKnown},
		{Name: "listening", Run: func() error {
			switch {
			case w.draining.Load():
				return errors.New("the webhook is about to end")
			case !w.server.listening.Load():
				return errors.New("the port is not open: service accounts are not read yet, or may not be")
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
		return errors.New("the certificate's authority is not in the webhook's configuration yet")
	}
}
