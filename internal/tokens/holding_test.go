package tokens

import (
	"testing"
	"time"

	"imds-oidc-proxy/internal/exchange"
)

// The refresh is between 2/3 and 4/3 of what was asked, and before the token is
// stale, whatever Entra says.
func TestRefreshDelay(t *testing.T) {
	now := time.Now()
	for _, life := range []time.Duration{2 * exchange.MinLife, time.Minute, 19 * time.Minute, 20 * time.Minute, time.Hour, 24 * time.Hour, 31 * 24 * time.Hour} {
		for _, asked := range []time.Duration{-time.Hour, 0, 1, life / 10, life / 2, life * 9 / 10, life - 1, life, 2 * life} {
			g := exchange.Grant{Token: exchange.Token{ExpiresOn: now.Add(life)}, RefreshOn: now.Add(asked)}
			earliest, latest := newHolding(g, now, true, 0), newHolding(g, now, true, 1)
			if earliest.due.wall.Before(now) || latest.due.wall.Before(earliest.due.wall) ||
				latest.stale.wall.Before(latest.due.wall) || !latest.stale.wall.Before(g.Token.ExpiresOn) {
				t.Errorf("life %s, asked %s: due from %s to %s, stale at %s", life, asked,
					earliest.due.wall.Sub(now), latest.due.wall.Sub(now), latest.stale.wall.Sub(now))
			}
			if asked <= 0 || asked >= life {
				asked = life / 2
			}
			if asked <= life/2 && life >= 20*time.Minute && latest.due.wall.Sub(now) < asked*4/3-2 {
				t.Errorf("life %s, asked %s: due at the latest after %s", life, asked, latest.due.wall.Sub(now))
			}
		}
	}
}
