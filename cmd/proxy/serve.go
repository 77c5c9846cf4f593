package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
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
	"imds-oidc-proxy/internal/tokens"
)

// drainTimeout is how long requests in flight may take after SIGTERM: less than
// the 30 s that Kubernetes gives a pod by default, more than any exchange takes.
const drainTimeout = 25 * time.Second

// serve builds the proxy from its configuration and runs it until ctx ends.
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
	own := newRouter(observed, &listening, requestLog)
	handler, err := newHandler(cfg, connections, observed, own, requestLog)
	if err != nil {
		return err
	}
	if err := checkFederatedToken(cfg.federatedTokenFile); err != nil {
		return err
	}
	listener, err := server.Listen(ctx, fmt.Sprintf("127.0.0.1:%d", cfg.port))
	if err != nil {
		return portError(cfg.port, err)
	}
	log.Info("starting the proxy server",
		zap.Uint16("port", cfg.port),
		zap.String("version", version),
		zap.String("tenant_id", string(cfg.tenantID)),
		zap.String("client_id", string(cfg.defaultClientID)),
		zap.String("imds_passthrough", cfg.imdsPassthrough))
	tokenServer := server.New(listener, server.Config{Handler: handler, Log: requestLog, MaxConnections: connections})
	parts, err := backgroundParts(ctx, cfg, observed, own, requestLog, log)
	if err != nil {
		listener.Close()
		return err
	}
	listening.Store(true)
	return proxy{server: tokenServer, listening: &listening, parts: parts, log: log}.run(ctx)
}

// mostConnections is how many clients may be connected. A thousand clients of one pod can
// ask at the same time, and wait for exchanges; 32 wait for IMDS; the others are for clients
// that are answered at once.
const mostConnections = tokens.DefaultMaxWaiting + 32 + 56

// otherFiles is how many files the proxy may have open beside its clients' connections:
// 256 to Entra, those of the admin port, 16 to IMDS, and some of its own.
const otherFiles = 256 + adminConnections + 16 + 16

// connectionMemory is what one connection may take, and otherMemory what the proxy takes
// beside its connections, both with the garbage that Go lets accumulate: measured by
// test/attack.
const (
	connectionMemory = 24 << 10
	otherMemory      = 16 << 20
)

// leastConnections is how many clients may be connected where GOMEMLIMIT has no room for
// them: with less, a probe and two clients would wait for each other.
const leastConnections = 64

// maxConnections is how many clients may be connected, of a process that may have so many
// files open and takes so much memory (GOMEMLIMIT). Beyond the files the kernel would let
// nobody else in, and not know whom to send away: where there is no room for all, half is
// the clients'.
func maxConnections(files uint64, memory int64) int {
	room := files / 2
	if files > 2*otherFiles {
		room = files - otherFiles
	}
	room = min(room, max(uint64(max(memory-otherMemory, 0)/connectionMemory), leastConnections))
	return int(min(max(room, 1), mostConnections))
}

// cachedConnections is how many connections are left for other clients while callers wait
// for exchanges.
const cachedConnections = mostConnections - tokens.DefaultMaxWaiting

// maxWaiting is how many callers may wait for an exchange, of so many connections.
func maxWaiting(connections int) int {
	return max(connections-cachedConnections, connections/2, 1)
}

// maxFiles is how many files this process may have open.
func maxFiles() uint64 {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return math.MaxUint64 // it cannot fail; if it did, nobody would be worse off
	}
	return limit.Cur
}

// checkFederatedToken refuses a token that cannot be read now: that is a manifest to
// mend. One that cannot be read later is a passing fault, which readiness and the
// requests report.
func checkFederatedToken(file string) error {
	if _, err := exchange.ReadFederatedToken(file); err != nil {
		return configErrorf("%s: %w", azure.EnvFederatedTokenFile, err)
	}
	return nil
}

// portError says what to change where the kernel keeps a port for root.
func portError(port uint16, err error) error {
	if errors.Is(err, syscall.EACCES) {
		return configErrorf("--proxy-port (PROXY_PORT) %d: %w: ports below 1024 take NET_BIND_SERVICE; choose one of 1024 or more, the same for proxy-init", port, err)
	}
	return fmt.Errorf("--proxy-port (PROXY_PORT) %d: %w", port, err)
}

// backgroundParts is what runs beside the server, from its start to its end.
func backgroundParts(ctx context.Context, cfg config, observed *observer, own http.Handler, requestLog, log *zap.Logger) ([]func(context.Context) error, error) {
	parts := []func(context.Context) error{
		func(ctx context.Context) error {
			defer observed.exchanger.Close()
			return observed.tokens.Run(ctx)
		},
		func(ctx context.Context) error { return observed.limit.Run(ctx, log) },
	}
	if cfg.adminAddress != "" {
		admin, err := newAdmin(ctx, cfg.adminAddress, own, requestLog)
		if err != nil {
			return nil, err
		}
		parts = append(parts, func(ctx context.Context) error { return runAdmin(ctx, admin) })
	}
	if cfg.imdsPassthrough == passthroughOn {
		parts = append(parts, func(ctx context.Context) error { return checkExemption(ctx, string(cfg.imdsAddress)) })
	}
	return parts, nil
}

// newTokens makes what obtains tokens, and what keeps them.
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

// proxy is what runs, once all of it is made.
type proxy struct {
	server    *server.Server
	listening *atomic.Bool                  // for readiness
	parts     []func(context.Context) error // run beside the server, which needs them
	log       *zap.Logger
}

// run serves until ctx ends or a part fails. Then it stops accepting, lets the requests in
// progress finish, and only after them ends the parts, which those requests need.
func (p proxy) run(ctx context.Context) error {
	background, stopBackground := context.WithCancel(context.WithoutCancel(ctx))
	defer stopBackground()
	group, ctx := errgroup.WithContext(ctx)
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
		<-ctx.Done()
		p.log.Info("stopping the proxy server")
		p.listening.Store(false)
		drainCtx, cancel := context.WithTimeout(background, drainTimeout)
		defer cancel()
		if err := p.server.Drain(drainCtx); err != nil {
			return fmt.Errorf("requests were still in flight %s after the signal to end: %w", drainTimeout, err)
		}
		return nil
	})
	return group.Wait()
}
