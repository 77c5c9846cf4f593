package imds

import "time"

// WithForwardLimits returns cfg with other bounds of forwarded requests. A zero bound is the
// default.
func (cfg Config) WithForwardLimits(timeout time.Duration, maxBytes int64, slots int) Config {
	cfg.forwardLimits = forwardLimits{timeout, maxBytes, slots}
	return cfg
}
