package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/go-chi/chi/v5"
	"go.uber.org/zap"

	"imds-oidc-proxy/internal/exchange"
	"imds-oidc-proxy/internal/health"
	"imds-oidc-proxy/internal/imds"
	"imds-oidc-proxy/internal/server"
	"imds-oidc-proxy/internal/sockets"
	"imds-oidc-proxy/internal/tokens"
)

const (
	// adminConnections is enough for a kubelet's probes and a few scrapers. It bounds the
	// memory that clients in the cluster's network can make the sidecar use to about 2 MiB.
	adminConnections = 64

	// adminDrainTimeout is how long a scrape may take to finish when the proxy stops.
	adminDrainTimeout = time.Second
)

// newRouter returns the handler of the proxy's own endpoints. The token port serves them, for
// curl in the pod, and so does --admin-address, for the kubelet and Prometheus. No answer
// contains a secret, no request changes anything, and no spelling of a path leads to a token
// or to forwarding.
//
// /debug/clients adds to the clients in /metrics how often and when they made requests, and
// which version to upgrade to.
func newRouter(observed *observer, listening *atomic.Bool, blocked *blockedCheck, log *zap.Logger) http.Handler {
	return routerFor(map[string]http.Handler{
		"/readyz":        health.Handler("readyz", readyChecks(observed.exchanger, listening, blocked)),
		"/livez":         health.Handler("livez", liveChecks(observed.tokens)),
		"/metrics":       &shared{inner: observed.metrics},
		"/debug/clients": &shared{inner: observed.census},
	}, log)
}

// routerFor routes by exact path: chi does not clean or redirect paths. Other methods than
// GET and HEAD are refused with 405 at a path that is served, and with 404 at any other.
func routerFor(endpoints map[string]http.Handler, log *zap.Logger) http.Handler {
	router := chi.NewRouter()
	router.NotFound(imds.NotFound)
	router.MethodNotAllowed(func(w http.ResponseWriter, r *http.Request) {
		if endpoints[r.URL.Path] == nil { // chi asks for no path if it does not know the method
			imds.NotFound(w, r)
			return
		}
		w.Header().Set("Allow", "GET, HEAD")
		imds.MethodNotAllowed(w, r)
	})
	for path, endpoint := range endpoints {
		message := "received " + path[1:] + " request"
		serve := func(w http.ResponseWriter, r *http.Request) {
			log.Debug(message, zap.String("path", path))
			endpoint.ServeHTTP(w, r)
		}
		router.Get(path, serve)
		router.Head(path, serve)
	}
	return router
}

// readyChecks returns the readiness checks: what the proxy needs, as far as the pod can
// tell. Whether Entra answers is not checked: an outage of Entra must not make every pod
// unready, since cached tokens are still served. Only with --require-imds-blocked there is a
// check of the node's IMDS.
func readyChecks(exchanger *exchange.Exchanger, listening *atomic.Bool, blocked *blockedCheck) []health.Check {
	checks := []health.Check{
		{Name: "listening", Run: func() error {
			if !listening.Load() {
				return errors.New("the proxy's port is not open")
			}
			return nil
		}},
		// The configuration was valid when the proxy started, or it would not have started.
		{Name: "configuration"},
		{Name: "federated-token", Run: exchanger.Ready},
	}
	if blocked != nil {
		checks = append(checks, health.Check{Name: "imds-blocked", Run: blocked.err})
	}
	return checks
}

// liveChecks returns the liveness checks, for faults that only a restart fixes. If the lock
// of the token cache is never released, the check hangs, and the kubelet's probe times out.
func liveChecks(service *tokens.Service) []health.Check {
	return []health.Check{
		{Name: "ping"},
		{Name: "token-cache", Run: func() error { service.Stats(); return nil }},
	}
}

// newAdmin returns a server for the proxy's own endpoints on an address that the whole
// cluster may reach. A connection serves one answer, so that no client can keep the kubelet's
// probes from being answered: the kubelet would restart the sidecar.
func newAdmin(ctx context.Context, address string, own http.Handler, log *zap.Logger) (*server.Server, error) {
	listener, err := server.Listen(ctx, address)
	if err != nil {
		return nil, fmt.Errorf("--admin-address (PROXY_ADMIN_ADDRESS) %s: %w", address, sockets.Explain(err))
	}
	log.Info("serving health and metrics", zap.String("admin_address", listener.Addr().String()))
	return adminOn(listener, own, log), nil
}

func adminOn(listener net.Listener, own http.Handler, log *zap.Logger) *server.Server {
	return server.New(listener, server.Config{
		Handler:        withoutProxying(own),
		Log:            log,
		OneRequest:     true, // a client that pipelines requests could keep its connection for long
		MaxConnections: adminConnections,
	})
}

// withoutProxying answers 404 to a request with an absolute target, which asks for another
// server's resource, as a client asks an HTTP proxy.
func withoutProxying(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.IsAbs() {
			imds.NotFound(w, r)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// runAdmin serves until ctx ends, which is after the token port is drained, so that the
// drain can be observed.
func runAdmin(ctx context.Context, admin *server.Server) error {
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		timeout, cancel := context.WithTimeout(context.WithoutCancel(ctx), adminDrainTimeout)
		defer cancel()
		_ = admin.Shutdown(timeout) // after the timeout a scrape is cut off
	})
	defer stop()
	if err := admin.Serve(); err != nil {
		return fmt.Errorf("serving --admin-address: %w", err)
	}
	<-stopped // Serve returns as soon as the shutdown begins
	return nil
}
