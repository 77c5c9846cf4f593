package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"go.uber.org/zap"

	"imds-oidc-proxy/internal/azure"
)

const (
	// blockedDialTimeout is longer than the kernel's first retransmission, after a second, so
	// that one lost packet does not look like a blocked address.
	blockedDialTimeout = 2500 * time.Millisecond

	// blockedInterval is the time between two checks while the address is blocked. A check
	// holds one connection attempt open until it times out.
	blockedInterval = 30 * time.Second

	// reachableInterval is the time between two checks while the address can be reached: a
	// NetworkPolicy takes effect some seconds after the pod has started.
	reachableInterval = 5 * time.Second
)

// blockedCheck is the readiness check of --require-imds-blocked: the pod must not reach the node's
// IMDS, which would give an application the node's identity. It connects to the metadata address
// from time to time, in the background, and sends no bytes.
type blockedCheck struct {
	// probe returns nil if the address cannot be reached from this pod.
	probe func(context.Context) error
	log   *zap.Logger

	result atomic.Pointer[blockedResult] // nil: not checked yet
}

// blockedResult is the result of a check. A nil error means that the address is blocked.
type blockedResult struct{ err error }

var errNotChecked = errors.New("whether the node's IMDS is blocked is not known yet")

// newBlockedCheck returns the check of the metadata address, or nil if the flag is not set: then
// nothing connects to the address.
func newBlockedCheck(cfg config, log *zap.Logger) *blockedCheck {
	if !cfg.requireIMDSBlocked {
		return nil
	}
	return &blockedCheck{log: log, probe: func(ctx context.Context) error { return dialBlocked(ctx, cfg.imdsAddress) }}
}

// err returns the result of the last check.
func (b *blockedCheck) err() error {
	last := b.result.Load()
	if last == nil {
		return errNotChecked
	}
	return last.err
}

// run checks until ctx ends.
func (b *blockedCheck) run(ctx context.Context) error {
	for {
		err := b.probe(ctx)
		if ctx.Err() != nil {
			return nil
		}
		b.record(err)
		interval := blockedInterval
		if err != nil {
			interval = reachableInterval
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(interval):
		}
	}
}

// record stores a result, and logs it if it is another one than before.
func (b *blockedCheck) record(err error) {
	last := b.result.Swap(&blockedResult{err})
	switch {
	case err == nil && (last == nil || last.err != nil):
		b.log.Info("the node's IMDS is blocked in this pod")
	case err != nil && (last == nil || last.err == nil):
		b.log.Warn("not ready: the node's IMDS is not blocked in this pod", zap.Error(err))
	}
}

// dialBlocked returns an error if a connection to the address is accepted, unless the redirect
// leads it to this proxy. It fails closed: for an error that does not come from the network, the
// result is unknown, and that is an error too.
func dialBlocked(ctx context.Context, address azure.MetadataURL) error {
	if redirectedHere(ctx, string(address)) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, blockedDialTimeout)
	defer cancel()
	u, err := url.Parse(string(address))
	if err != nil {
		return err // package azure has parsed it
	}
	host := net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), strconv.Itoa(azure.MetadataPort)))
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", host)
	switch {
	case err == nil:
		conn.Close()
		return fmt.Errorf("this pod can reach the node's IMDS at %s; deny egress to it by a NetworkPolicy, or redirect it with proxy-init", host)
	case isBlocked(err):
		return nil
	}
	return fmt.Errorf("cannot find out whether the node's IMDS is blocked: %w", err)
}

// isBlocked reports whether an error means that packets are dropped, rejected or have no route.
func isBlocked(err error) bool {
	for _, blocked := range []error{
		context.DeadlineExceeded, syscall.ETIMEDOUT, syscall.ECONNREFUSED, syscall.ECONNRESET,
		syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.EPERM, syscall.EACCES, // eBPF programs return EPERM
	} {
		if errors.Is(err, blocked) {
			return true
		}
	}
	timeout, ok := errors.AsType[net.Error](err)
	return ok && timeout.Timeout()
}
