package exchange

import "net/http"

// Constants for the tests of package exchange_test.
const (
	MaxBody       = maxBody
	MaxRetryAfter = maxRetryAfter
)

// NewWithTransport is New with rt as the transport to Entra.
func NewWithTransport(cfg Config, rt http.RoundTripper) (*Exchanger, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	return newExchanger(cfg, rt), nil
}
