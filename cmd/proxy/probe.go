package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

const (
	// probeInterval is short beside a pod's start, so that the probe adds little
	// to it.
	probeInterval = 100 * time.Millisecond
	// probeAttemptTimeout ends one attempt on a proxy that accepts and is silent.
	probeAttemptTimeout = 2 * time.Second
	// probeReasonLimit bounds what is read of an answer that says why not.
	probeReasonLimit = 1 << 10
)

// probe asks the proxy at port for /readyz until it is ready, or until timeout
// is over. A refused connection is a proxy that has yet to listen: a reason to
// ask again. The last answer goes into the error.
func probe(ctx context.Context, port int, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()

	// No proxy of the environment may stand between the probe and its own pod.
	client := &http.Client{Transport: &http.Transport{Proxy: nil}, Timeout: probeAttemptTimeout}
	defer client.CloseIdleConnections()
	url := fmt.Sprintf("http://127.0.0.1:%d/readyz", port)

	ticker := time.NewTicker(probeInterval)
	defer ticker.Stop()
	var last error
	for {
		err := askReady(ctx, client, url)
		if err == nil {
			return nil
		}
		if last == nil || ctx.Err() == nil { // an attempt cut short says nothing new
			last = err
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return fmt.Errorf("interrupted; last answer of %s: %w", url, last)
			}
			return fmt.Errorf("not ready within %s (--probe-timeout); last answer of %s: %w", timeout, url, last)
		case <-ticker.C:
		}
	}
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
