package tokens

import (
	"testing"
	"time"

	"imds-oidc-proxy/internal/exchange"
)

func TestRestStaysWithinBounds(t *testing.T) {
	for _, kind := range []exchange.Kind{exchange.UnknownIdentity, exchange.FederationMismatch, exchange.Throttled, exchange.Unavailable, exchange.DeadlineExceeded} {
		for _, asked := range []time.Duration{0, time.Second, 10 * time.Minute} {
			for streak := 1; streak < 100; streak++ {
				for _, spread := range []float64{0, 0.999} {
					for _, have := range []bool{false, true} {
						got := rest(&exchange.Error{Kind: kind, RetryAfter: asked}, streak, have, spread)
						if got < asked || got <= 0 || got > 2*max(asked, refreshBackoff.most) {
							t.Fatalf("%s, asked %s, streak %d: %s", kind, asked, streak, got)
						}
					}
				}
			}
		}
	}
}
