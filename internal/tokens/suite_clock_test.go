package tokens_test

import (
	"testing"
	"testing/synctest"
	"time"

	"imds-oidc-proxy/internal/exchange"
	"imds-oidc-proxy/internal/tokens"
)

// After the wall clock is set back, tokens end no later, and callers can still force exchanges.
func TestWallClockIsSetBack(t *testing.T) {
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

// After the wall clock is set back, the remaining lifetime by that clock is no longer than Entra
// granted.
func TestWallClockSetBackExtendsNoLifetime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeEntra{}
		s := fakeService(t, f)
		got, err := ask(t, s, tokens.Request{})
		if err != nil {
			t.Fatal(err)
		}
		granted := got.Token.ExpiresOn
		time.Sleep(10 * time.Minute)
		if got, _ := ask(t, s, tokens.Request{}); !got.Token.ExpiresOn.Equal(granted) {
			t.Errorf("before the clock is set back: ExpiresOn moved by %s", got.Token.ExpiresOn.Sub(granted))
		}
		s.SetClockBack(3 * time.Hour)
		for _, r := range []tokens.Request{{}, {Fresh: true}} { // from the cache, and after a failed exchange
			f.failWith(&exchange.Error{Kind: exchange.Unavailable, Detail: "down"})
			got, err := ask(t, s, r)
			if err != nil || got.Token.ExpiresOn.After(granted) {
				t.Errorf("%+v: %s remain, want at most %s (error %v)", r, time.Until(got.Token.ExpiresOn), time.Until(granted), err)
			}
		}
	})
}
