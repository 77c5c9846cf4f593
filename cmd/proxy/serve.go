package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"runtime/debug"
	"sync/atomic"
	"syscall"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/exchange"
	"imds-oidc-proxy/internal/imds"
	"imds-oidc-proxy/internal/logging"
	"imds-oidc-proxy/internal/loglimit"
	"imds-oidc-proxy/internal/server"
	"imds-oidc-proxy/internal/sockets"
	"imds-oidc-proxy/internal/tokens"
)

// drainTimeout is how long requests in progress may take after SIGTERM. It is shorter than a
// pod's default termination grace period of 30 s, and longer than an exchange can take.
const drainTimeout = 25 * time.Second

// serve creates the proxy and runs it until ctx ends.
func serve(ctx context.Context, cfg config, stderr io.Writer) error {
	lines := logging.NewQueue(stderr)
	defer lines.Close()
	log := logging.New(lines, cfg.log)
	limit := loglimit.New(nil)
	requestLog := log
	if !cfg.logAll {
		requestLog = limit.Apply(log)
	}
	observed := newObserver(limit, lines, log)
	connections := maxConnections(maxFiles(), debug.SetMemoryLimit(-1))
	var err error
	if observed.exchanger, observed.tokens, err = newTokens(cfg, connections, observed.exchanges(), log); err != nil {
		return err
	}
	var listening atomic.Bool
	blocked := newBlockedCheck(cfg, log)
	own := newRouter(observed, &listening, blocked, requestLog)
	handler, err := newHandler(cfg, connections, observed, own, requestLog)
	if err != nil {
		return err
	}
	if err := checkFederatedToken(cfg.federatedTokenFile); err != nil {
		return err
	}
	listener, err := server.Listen(ctx, fmt.Sprintf("127.0.0.1:%d", cfg.port))
	if err != nil {
		return listenError(cfg.port, err)
	}
	if cfg.requireRedirect {
		if err := proveRedirect(ctx, azure.RedirectProof, cfg.port); err != nil {
			listener.Close()
			return err
		}
	}
	log.Info("starting the proxy server",
		zap.Uint16("port", cfg.port),
		zap.String("version", version),
		zap.String("tenant_id", string(cfg.tenantID)),
		zap.String("client_id", string(cfg.defaultClientID)),
		zap.String("imds_passthrough", cfg.imdsPassthrough),
		zap.String("instance_metadata", cfg.instanceFile))
	tokenServer := server.New(listener, server.Config{Handler: handler, Log: requestLog, MaxConnections: connections})
	parts, err := backgroundParts(ctx, cfg, observed, handler, own, requestLog, log)
	if err != nil {
		listener.Close()
		return err
	}
	if blocked != nil {
		parts = append(parts, blocked.run)
	}
	listening.Store(true)
	return proxy{server: tokenServer, listening: &listening, parts: parts, shutdownDelay: cfg.shutdownDelay, log: log}.run(ctx)
}

// mostConnections is the maximum number of connections to the token port: 1,000 for clients
// that wait for an exchange, 32 for clients that wait for IMDS, and the others for clients
// that are answered at once, from the cache.
const mostConnections = tokens.DefaultMaxWaiting + 32 + 56

// otherFiles is how many files the proxy may have open in addition to the connections of the
// token port: 256 connections to Entra, those of the admin port, 16 connections to IMDS, and
// 16 others.
const otherFiles = 256 + adminConnections + 16 + 16

// connectionMemory is how much memory a connection may use, and otherMemory how much the
// proxy uses without connections, both including uncollected garbage. test/attack measures
// them.
const (
	connectionMemory = 24 << 10
	otherMemory      = 16 << 20
)

// leastConnections is the number of connections that are allowed however low GOMEMLIMIT is.
// With fewer, a probe and two clients could block each other.
const leastConnections = 64

// maxConnections returns the connection limit for a process that may have this many files
// open (RLIMIT_NOFILE) and use this much memory (GOMEMLIMIT). At the limit of open files
// accept fails, and the server could not choose a connection to evict. If the limit on files
// is too low for everything, the token port gets half of it.
func maxConnections(files uint64, memory int64) int {
	limit := files / 2
	if files > 2*otherFiles {
		limit = files - otherFiles
	}
	limit = min(limit, max(uint64(max(memory-otherMemory, 0)/connectionMemory), leastConnections))
	return int(min(max(limit, 1), mostConnections))
}

// cachedConnections is how many connections are left for other clients while the maximum
// number of clients wait for exchanges.
const cachedConnections = mostConnections - tokens.DefaultMaxWaiting

// maxWaiting returns how many clients may wait for an exchange at the same time, given the
// connection limit.
func maxWaiting(connections int) int {
	return max(connections-cachedConnections, connections/2, 1)
}

// maxFiles returns how many files this process may have open (RLIMIT_NOFILE).
func maxFiles() uint64 {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return math.MaxUint64 // Linux never returns an error here
	}
	return limit.Cur
}

// checkFederatedToken returns a configuration error if the federated token cannot be read
// when the proxy starts: the manifest is wrong. A token that cannot be read later is a
// temporary fault, which /readyz and the answers to requests report.
func checkFederatedToken(file string) error {
	if _, err := exchange.ReadFederatedToken(file); err != nil {
		return configErrorf("%s: %w", azure.EnvFederatedTokenFile, err)
	}
	return nil
}

// listenError says what to change where the proxy cannot listen at its port.
func listenError(port uint16, err error) error {
	err = fmt.Errorf("--proxy-port (PROXY_PORT) %d: %w", port, sockets.Explain(err))
	switch {
	case errors.Is(err, syscall.EACCES):
		return configErrorf("%w: ports below 1024 require NET_BIND_SERVICE; choose a port of 1024 or more, and the same port for proxy-init", err)
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("%w (the proxy's UID is %d); find the container that listens at port %d, or choose another port, the same for proxy-init", err, os.Getuid(), port)
	default:
		return err
	}
}

// backgroundParts returns the functions that run as long as the server does.
func backgroundParts(ctx context.Context, cfg config, observed *observer, tokenHandler *imds.Handler, own http.Handler, requestLog, log *zap.Logger) ([]func(context.Context) error, error) {
	parts := []func(context.Context) error{
		func(ctx context.Context) error {
			defer observed.exchanger.Close()
			return observed.tokens.Run(ctx)
		},
		func(ctx context.Context) error { return observed.limit.Run(ctx, log) },
		tokenHandler.Run,
	}
	if cfg.adminAddress != "" {
		admin, err := newAdmin(ctx, cfg.adminAddress, own, requestLog)
		if err != nil {
			return nil, err
		}
		parts = append(parts, func(ctx context.Context) error { return runAdmin(ctx, admin) })
	}
	if cfg.imdsPassthrough != passthroughOff {
		parts = append(parts, func(ctx context.Context) error { return checkExemption(ctx, string(cfg.imdsAddress)) })
	}
	return parts, nil
}

// newTokens returns the exchanger, which gets tokens from Entra, and the service that caches
// them.
func newTokens(cfg config, connections int, observer tokens.Observer, log *zap.Logger) (*exchange.Exchanger, *tokens.Service, error) {
	log = log.With(zap.String("tenant_id", string(cfg.tenantID)))
	exchanges := cfg.exchangeConfig()
	exchanges.Log = log
	exchanger, err := exchange.New(exchanges)
	if err != nil {
		return nil, nil, configError{err}
	}
	service, err := tokens.New(tokens.Config{
		Exchanger:  exchanger,
		Prefetch:   cfg.prefetched(),
		Identities: cfg.configuredClientIDs(),
		MaxWaiting: maxWaiting(connections),
		Log:        log,
		Observer:   observer,
	})
	if err != nil {
		return nil, nil, configError{err}
	}
	return exchanger, service, nil
}

func newHandler(cfg config, connections int, observed *observer, own http.Handler, log *zap.Logger) (*imds.Handler, error) {
	answers := cfg.handlerConfig()
	answers.MaxConnections = connections
	answers.Tokens, answers.Fallback, answers.Observe, answers.Log = observed.tokens, own, observed.request, log
	handler, err := imds.New(answers)
	if err != nil {
		return nil, configError{err}
	}
	return handler, nil
}

// proxy is the running proxy.
type proxy struct {
	server    *server.Server
	listening *atomic.Bool                  // read by the readiness check
	parts     []func(context.Context) error // run as long as the server, which needs them
	// shutdownDelay is how long the proxy serves after ctx has ended, before it drains.
	shutdownDelay time.Duration
	log           *zap.Logger
}

// run serves until shutdownDelay after ctx ends, or until a part fails. Then it drains the
// server: it stops accepting connections and waits for the requests in progress. It stops the
// parts last, because those requests need them.
func (p proxy) run(ctx context.Context) error {
	background, stopBackground := context.WithCancel(context.WithoutCancel(ctx))
	defer stopBackground()
	group, failed := errgroup.WithContext(background)
	for _, part := range p.parts {
		group.Go(func() error { return part(background) })
	}
	group.Go(func() error {
		if err := p.server.Serve(); err != nil {
			return fmt.Errorf("serving: %w", err)
		}
		return nil
	})
	group.Go(func() error {
		defer stopBackground()
		p.waitForShutdown(ctx, failed)
		p.log.Info("stopping the proxy server")
		p.listening.Store(false)
		drainCtx, cancel := context.WithTimeout(background, drainTimeout)
		defer cancel()
		if err := p.server.Drain(drainCtx); err != nil {
			return fmt.Errorf("requests were still in progress %s after the signal to stop: %w", drainTimeout, err)
		}
		return nil
	})
	return group.Wait()
}

// waitForShutdown returns shutdownDelay after ctx ends, or when a part has failed. Until then the
// proxy stays ready: containers that end at the same time as the proxy still request tokens.
func (p proxy) waitForShutdown(ctx, failed context.Context) {
	select {
	case <-failed.Done():
		return
	case <-ctx.Done():
	}
	if p.shutdownDelay == 0 {
		return
	}
	p.log.Info("delaying the shutdown", zap.Duration("delay", p.shutdownDelay))
	select {
	case <-failed.Done():
	case <-time.After(p.shutdownDelay):
	}
}
