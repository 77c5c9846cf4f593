package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"imds-oidc-proxy/internal/sockets"
)

const (
	// The interval between two attempts begins with firstProbeInterval and doubles up to
	// probeInterval. A hook starts the probe at the same moment as the proxy, which listens some
	// milliseconds later, and the pod waits for the probe.
	firstProbeInterval = 5 * time.Millisecond
	probeInterval      = 100 * time.Millisecond
	// probeAttemptTimeout bounds one attempt, for a server that accepts and does not answer.
	probeAttemptTimeout = 2 * time.Second
	// maxAnswerHeader bounds the header of an answer: the server may be another program.
	maxAnswerHeader = 64 << 10
	// probeReasonLimit bounds how much of the body, the reason, is read.
	probeReasonLimit = 1 << 10
)

// probe requests /readyz at port until the proxy is ready or the timeout expires. It retries
// after a refused connection, since the proxy may not listen yet. The error contains the last
// answer, or the user that listens at the port instead of the proxy.
func probe(ctx context.Context, port uint16, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()

	// Proxy: nil, because HTTP_PROXY must not apply to a request within the pod.
	client := &http.Client{Transport: &http.Transport{Proxy: nil, MaxResponseHeaderBytes: maxAnswerHeader}, Timeout: probeAttemptTimeout}
	defer client.CloseIdleConnections()
	url := fmt.Sprintf("http://127.0.0.1:%d/readyz", port)

	var last error
	for interval := firstProbeInterval; ; interval = min(2*interval, probeInterval) {
		err := askOwnProxy(ctx, client, url, port)
		if err == nil {
			return nil
		}
		if last == nil || ctx.Err() == nil { // the error of a cancelled attempt gives no reason
			last = err
		}
		select {
		case <-ctx.Done():
			last = explainRefusal(port, last)
			if errors.Is(ctx.Err(), context.Canceled) {
				return fmt.Errorf("interrupted; last answer of %s: %w", url, last)
			}
			return fmt.Errorf("not ready within %s (--probe-timeout); last answer of %s: %w", timeout, url, last)
		case <-time.After(interval):
		}
	}
}

// explainRefusal returns the reason why the proxy is not ready, if the owner of the port shows it,
// and otherwise the error of the last request.
func explainRefusal(port uint16, last error) error {
	err := requireOwnUser(port)
	switch {
	case err == nil && errors.Is(last, syscall.ECONNREFUSED):
		return fmt.Errorf("%w, although the proxy listens: the port guard of proxy-init expects another user or group; set its --proxy-uid (PROXY_UID) to %d and --proxy-gid (PROXY_GID) to %d", last, os.Getuid(), os.Getgid())
	case err == nil, errors.Is(err, errNoListener):
		return last
	}
	return err
}

// askOwnProxy accepts an answer only if this process's user owns the listening socket both
// before the request and after the answer: while the proxy is down, any container of the pod
// can bind its port. One race remains: a process that binds the port after the first check
// and releases it to a new proxy before the second.
//
// It makes one request before the first check, because the check can be expensive (without
// sock_diag, the kernel walks the connections of the whole node, which takes about 30 ms of CPU
// time) and is useless while the proxy is not ready.
func askOwnProxy(ctx context.Context, client *http.Client, url string, port uint16) error {
	if err := askReady(ctx, client, url); err != nil {
		return err
	}
	if err := requireOwnUser(port); err != nil {
		return err
	}
	client.CloseIdleConnections() // the present connection may be to another process
	if err := askReady(ctx, client, url); err != nil {
		return err
	}
	return requireOwnUser(port)
}

var errNoListener = errors.New("no process listens there")

// requireOwnUser returns an error unless the only user that listens at the port is this
// process's user.
func requireOwnUser(port uint16) error {
	owners, err := sockets.Owners(port)
	if err != nil {
		return fmt.Errorf("cannot read which user listens: %w", err)
	}
	if len(owners) == 0 {
		return errNoListener
	}
	own := uint32(os.Getuid())
	if i := slices.IndexFunc(owners, func(uid uint32) bool { return uid != own }); i >= 0 {
		return fmt.Errorf("a process of UID %d listens there, and the proxy's user is UID %d: find the container that listens at port %d, or run --probe as the proxy's user", owners[i], own, port)
	}
	return nil
}

func askReady(ctx context.Context, client *http.Client, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return errors.Unwrap(err) // without the method and URL, which the caller adds
	}
	defer resp.Body.Close()
	reason, _ := io.ReadAll(io.LimitReader(resp.Body, probeReasonLimit))
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", resp.Status, strings.TrimSpace(string(reason)))
	}
	return nil
}
