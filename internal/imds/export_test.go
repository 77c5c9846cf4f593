package imds

import "time"

// WithForwardLimits returns cfg with other bounds of forwarded requests. A zero bound is the
// default.
func (cfg Config) WithForwardLimits(timeout time.Duration, maxBytes int64, maxConcurrent int) Config {
	cfg.forwardLimits = forwardLimits{timeout, maxBytes, maxConcurrent}
	return cfg
}

// ForwardMaxWaiting is how many requests may wait to be forwarded.
const ForwardMaxWaiting = forwardMaxWaiting
