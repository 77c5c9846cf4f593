package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"imds-oidc-proxy/internal/exchange"
	"imds-oidc-proxy/internal/health"
	"imds-oidc-proxy/internal/imds"
	"imds-oidc-proxy/internal/tokens"
)

const (
	// adminConnections is enough for a kubelet's probes and a few scrapers, and
	// bounds what the cluster's network can make the sidecar hold: some 2 MiB.
	adminConnections = 64

	// adminWriteTime is for the reading of an answer, some 10 KiB. Nobody waits for Entra
	// here: whoever takes longer holds a place that a probe may need.
	adminWriteTime = 5 * time.Second

	// adminDrainTimeout is for a scrape in flight when the proxy ends.
	adminDrainTimeout = time.Second
)

// ownEndpoints are what the proxy answers for itself, by exact path. They are the
// same at the proxy's own port, for curl in the pod, and at --admin-address, for
// the kubelet and Prometheus: none of them tells a secret, or changes anything.
//
// That goes for /debug/clients too: beside what /metrics has of callers, it tells how
// often and when they asked, and what to upgrade to.
func ownEndpoints(observed *observer, listening *atomic.Bool) map[string]http.Handler {
	return map[string]http.Handler{
		"/readyz":        health.Handler("readyz", readyChecks(observed.exchanger, listening)),
		"/livez":         health.Handler("livez", liveChecks(observed.tokens)),
		"/metrics":       observed.metrics,
		"/debug/clients": observed.census,
	}
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

// admin serves the proxy's own endpoints on an address that others can reach.
type admin struct {
	listener net.Listener
	server   *http.Server
}

func newAdmin(address string, own map[string]http.Handler, log *zap.Logger) (*admin, error) {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("--admin-address (PROXY_ADMIN_ADDRESS) %s: %w", address, err)
	}
	log.Info("serving health and metrics", zap.String("admin_address", listener.Addr().String()))
	return adminOn(listener, own, log), nil
}

// adminOn serves on a listener that strangers can reach: all they can hold of it is
// one place for one answer, and not for long. A kubelet whose probes find no place
// restarts the sidecar.
func adminOn(listener net.Listener, own map[string]http.Handler, log *zap.Logger) *admin {
	server := imds.NewServer(adminHandler(own), log, imds.Limits{WriteTime: adminWriteTime})
	// Requests one behind the other would have the time of each.
	server.SetKeepAlivesEnabled(false)
	return &admin{listener: imds.LimitListener(listener, adminConnections), server: server}
}

// run serves until ctx ends: to the last, so that a proxy that drains is seen to.
func (a *admin) run(ctx context.Context) error {
	drained := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(drained)
		drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), adminDrainTimeout)
		defer cancel()
		_ = a.server.Shutdown(drain) // whoever scrapes more slowly has to do without
	})
	defer stop()
	if err := a.server.Serve(a.listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving --admin-address: %w", err)
	}
	<-drained // Serve ends as soon as the shutdown begins
	return nil
}

// adminHandler answers the exact paths of own and nothing else. The handler of
// tokens and of forwarding is not behind it, so that no spelling of a path leads
// there.
func adminHandler(own map[string]http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		endpoint := own[r.URL.EscapedPath()]
		switch {
		case endpoint == nil || r.URL.IsAbs():
			http.Error(w, "not served here", http.StatusNotFound)
		case r.Method != http.MethodGet && r.Method != http.MethodHead:
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "the method must be GET", http.StatusMethodNotAllowed)
		default:
			endpoint.ServeHTTP(w, r)
		}
	})
}
