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
	"time"

	"imds-oidc-proxy/internal/sockets"
)

const (
	// probeInterval is short beside a pod's start, so that the probe adds little
	// to it.
	probeInterval = 100 * time.Millisecond
	// probeAttemptTimeout ends one attempt at a proxy that accepts and does not answer.
	probeAttemptTimeout = 2 * time.Second
	// maxAnswerHeader bounds an answer's header: what answers may not be a proxy.
	maxAnswerHeader = 64 << 10
	// probeReasonLimit bounds what is read of the reason in an answer.
	probeReasonLimit = 1 << 10
)

// probe asks the proxy at port for /readyz until it is ready, or until timeout
// is over. A refused connection is a proxy that does not listen yet: a reason to
// ask again. The last answer, or who listens instead of the proxy, goes into the error.
func probe(ctx context.Context, port uint16, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()

	// An HTTP proxy of the environment must not stand between the probe and its own pod.
	client := &http.Client{Transport: &http.Transport{Proxy: nil, MaxResponseHeaderBytes: maxAnswerHeader}, Timeout: probeAttemptTimeout}
	defer client.CloseIdleConnections()
	url := fmt.Sprintf("http://127.0.0.1:%d/readyz", port)

	ticker := time.NewTicker(probeInterval)
	defer ticker.Stop()
	var last error
	for {
		err := askOwnProxy(ctx, client, url, port)
		if err == nil {
			return nil
		}
		if last == nil || ctx.Err() == nil { // an attempt cut short adds nothing
			last = err
		}
		select {
		case <-ctx.Done():
			if err := requireOwnUser(port); err != nil && !errors.Is(err, errNoListener) {
				last = err // the reason, whatever was answered
			}
			if errors.Is(ctx.Err(), context.Canceled) {
				return fmt.Errorf("interrupted; last answer of %s: %w", url, last)
			}
			return fmt.Errorf("not ready within %s (--probe-timeout); last answer of %s: %w", timeout, url, last)
		case <-ticker.C:
		}
	}
}

// askOwnProxy believes an answer only where this user listens at the port both before the
// request and after the answer: while the proxy is away, any container of the pod can bind
// its port. What remains is a process that takes the port after the first look and returns
// it to a new proxy before the second.
//
// It asks once more, first and without a look: the kernel walks the connections of the
// whole node for its table, which takes some 30 ms of CPU time, and a proxy that is not
// ready yet is asked often.
func askOwnProxy(ctx context.Context, client *http.Client, url string, port uint16) error {
	if err := askReady(ctx, client, url); err != nil {
		return err
	}
	if err := requireOwnUser(port); err != nil {
		return err
	}
	client.CloseIdleConnections() // a connection from before the look may be another process's
	if err := askReady(ctx, client, url); err != nil {
		return err
	}
	return requireOwnUser(port)
}

var errNoListener = errors.New("no process listens there")

// requireOwnUser returns an error unless this process's user, and no other, listens at the
// port.
func requireOwnUser(port uint16) error {
	owners, err := sockets.Owners(port)
	if err != nil {
		return fmt.Errorf("cannot tell who listens: %w", err)
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
		return errors.Unwrap(err) // without the method and address, which the caller names
	}
	defer resp.Body.Close()
	reason, _ := io.ReadAll(io.LimitReader(resp.Body, probeReasonLimit))
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", resp.Status, strings.TrimSpace(string(reason)))
	}
	return nil
}
