package imds

import (
	"context"
	"net"
	"time"
)

// WithForwardLimits returns cfg with other bounds of forwarded requests. A zero bound is the
// default.
func (cfg Config) WithForwardLimits(timeout time.Duration, maxBytes int64, slots int) Config {
	cfg.forwardLimits = forwardLimits{timeout: timeout, maxBytes: maxBytes, slots: slots}
	return cfg
}

// WithForwardDial returns cfg with another way to connect to the real IMDS.
func (cfg Config) WithForwardDial(dial func(ctx context.Context, network, address string) (net.Conn, error)) Config {
	cfg.forwardLimits.dial = dial
	return cfg
}

// Constants for the tests of package imds_test.
const (
	ForwardDialTimeout = forwardDialTimeout
	ForwardMaxSlots    = forwardMaxSlots
	SilenceRetry       = silenceRetry
	SilenceMaxRetry    = silenceMaxRetry
)
