package tokens_test

import (
	"testing"
	"testing/synctest"
	"time"

	"imds-oidc-proxy/internal/exchange"
	"imds-oidc-proxy/internal/tokens"
)

// A clock on the wall that is set back keeps no token alive, and nobody from
// forcing an exchange.
func TestClockThatIsSetBack(t *testing.T) {
	for _, scheduled := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			f := &fakeEntra{}
			s := fakeService(t, f)
			if scheduled {
				defer run(t, s)()
			}
			wantAnswer(t, s, tokens.Request{}, tokens.SourceEntra, 1, 0)
			s.SetClockBack(3 * time.Hour)
			time.Sleep(tokens.FreshInterval)
			wantAnswer(t, s, tokens.Request{Fresh: true}, tokens.SourceEntra, 2, 0)
			s.SetClockBack(3 * time.Hour)
			if scheduled {
				time.Sleep(30 * time.Minute)
				synctest.Wait()
				wantAnswer(t, s, tokens.Request{}, tokens.SourceCache, 3, 0)
				return
			}
			time.Sleep(time.Hour)
			wantAnswer(t, s, tokens.Request{}, tokens.SourceEntra, 3, 0)
		})
	}
}

// What remains of a token is what Entra said, also by a clock that was set back.
func TestClockThatIsSetBackOverstatesNoLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeEntra{}
		s := fakeService(t, f)
		got, err := ask(t, s, tokens.Request{})
		if err != nil {
			t.Fatal(err)
		}
		honest := got.Token.ExpiresOn
		time.Sleep(10 * time.Minute)
		if got, _ := ask(t, s, tokens.Request{}); !got.Token.ExpiresOn.Equal(honest) {
			t.Errorf("clocks in step: ExpiresOn moved by %s", got.Token.ExpiresOn.Sub(honest))
		}
		s.SetClockBack(3 * time.Hour)
		for _, r := range []tokens.Request{{}, {Fresh: true}} { // from the cache, and where Entra fails
			f.failWith(&exchange.Error{Kind: exchange.Unavailable, Detail: "down"})
			got, err := ask(t, s, r)
			if err != nil || got.Token.ExpiresOn.After(honest) {
				t.Errorf("%+v: %s remain, want at most %s (error %v)", r, time.Until(got.Token.ExpiresOn), time.Until(honest), err)
			}
		}
	})
}
