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
	"imds-oidc-proxy/internal/tokens"
)

const (
	// adminConnections is enough for a kubelet's probes and a few scrapers, and
	// bounds what the cluster's network can make the sidecar hold: some 2 MiB.
	adminConnections = 64

	// adminDrainTimeout is for a scrape in flight when the proxy ends.
	adminDrainTimeout = time.Second
)

// newRouter returns what the proxy answers for itself, by exact path. It is the same at the
// proxy's own port, for curl in the pod, and at --admin-address, for the kubelet and
// Prometheus: none of the answers tells a secret, or changes anything, and no spelling of a
// path leads to tokens or to forwarding.
//
// That goes for /debug/clients too: beside what /metrics has of callers, it tells how
// often and when they asked, and what to upgrade to.
func newRouter(observed *observer, listening *atomic.Bool, log *zap.Logger) http.Handler {
	return routerFor(map[string]http.Handler{
		"/readyz":        health.Handler("readyz", readyChecks(observed.exchanger, listening)),
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

// readyChecks is what the proxy needs to be of use, as far as the pod can tell.
// That Entra answers is not among it: an outage there must not take every pod out
// of its service, since those with a token in hand go on.
func readyChecks(exchanger *exchange.Exchanger, listening *atomic.Bool) []health.Check {
	return []health.Check{
		{Name: "listening", Run: func() error {
			if !listening.Load() {
				return errors.New("the proxy's port is not open")
			}
			return nil
		}},
		// Resolved when the proxy started, which it would not have otherwise.
		{Name: "configuration"},
		{Name: "federated-token", Run: exchanger.Ready},
	}
}

// liveChecks is what only a restart mends. A cache whose lock is never released
// does not answer, and the kubelet takes silence for a failure.
func liveChecks(service *tokens.Service) []health.Check {
	return []health.Check{
		{Name: "ping"},
		{Name: "token-cache", Run: func() error { service.Stats(); return nil }},
	}
}

// newAdmin returns a server for the proxy's own endpoints on an address that the whole
// cluster may reach: all that a stranger can hold of it is one place for one answer, and not
// for long. A kubelet whose probes find no place restarts the sidecar.
func newAdmin(ctx context.Context, address string, own http.Handler, log *zap.Logger) (*server.Server, error) {
	listener, err := server.Listen(ctx, address)
	if err != nil {
		return nil, fmt.Errorf("--admin-address (PROXY_ADMIN_ADDRESS) %s: %w", address, err)
	}
	log.Info("serving health and metrics", zap.String("admin_address", listener.Addr().String()))
	return adminOn(listener, own, log), nil
}

func adminOn(listener net.Listener, own http.Handler, log *zap.Logger) *server.Server {
	return server.New(listener, server.Config{
		Handler: withoutProxying(own),
		Log:     log,
		// Requests one behind the other would have the time of each.
		OneRequest:     true,
		MaxConnections: adminConnections,
	})
}

// withoutProxying refuses what asks for another server's page, as one asks a proxy.
func withoutProxying(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.IsAbs() {
			imds.NotFound(w, r)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// runAdmin serves until ctx ends: to the last, so that a proxy that drains can be watched.
func runAdmin(ctx context.Context, admin *server.Server) error {
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		timeout, cancel := context.WithTimeout(context.WithoutCancel(ctx), adminDrainTimeout)
		defer cancel()
		_ = admin.Shutdown(timeout) // a scrape that takes longer is lost
	})
	defer stop()
	if err := admin.Serve(); err != nil {
		return fmt.Errorf("serving --admin-address: %w", err)
	}
	<-stopped // Serve ends as soon as the shutdown begins
	return nil
}
