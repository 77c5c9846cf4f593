package exchange

import "net/http"

// What the tests outside of the package need to know of the inside.
const (
	MaxBody       = maxBody
	MaxRetryAfter = maxRetryAfter
)

// NewWithTransport is New with rt carrying the requests to Entra, with no connection.
func NewWithTransport(cfg Config, rt http.RoundTripper) (*Exchanger, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	return newExchanger(cfg, rt), nil
}
