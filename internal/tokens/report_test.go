package tokens_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/exchange"
	"imds-oidc-proxy/internal/tokens"
)

// logged returns a logger of all levels, and its lines.
func logged() (*zap.Logger, *observer.ObservedLogs) {
	core, lines := observer.New(zap.DebugLevel)
	return zap.New(core), lines
}

func TestRepeatedFailuresAreLoggedRarely(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeEntra{}
		log, lines := logged()
		s := newService(t, tokens.Config{Exchanger: f, Log: log})
		count := func(message string) int {
			synctest.Wait()
			return lines.FilterMessage(message).Len()
		}
		f.failWith(&exchange.Error{Kind: exchange.Unavailable, Detail: "status 503", Retry: exchange.RetrySoon})
		began := time.Now()
		for time.Since(began) < time.Hour {
			_, err := ask(t, s, tokens.Request{})
			wantKind(t, err, exchange.Unavailable)
			time.Sleep(5 * time.Second)
		}
		warnings, debugs := count("token exchange failed"), count("token exchange failed again")
		if warnings < 5 || warnings > 7 {
			t.Errorf("%d warnings in an hour, want about one each %s", warnings, tokens.RepeatInterval)
		}
		if debugs < 50 {
			t.Errorf("%d debug lines, want one for each further exchange", debugs)
		}
		f.failWith(&exchange.Error{Kind: exchange.UnknownIdentity, Code: 700016, Detail: "unknown"})
		time.Sleep(time.Minute)
		_, err := ask(t, s, tokens.Request{})
		wantKind(t, err, exchange.UnknownIdentity)
		if got := count("token exchange failed"); got != warnings+1 {
			t.Errorf("a different failure: %d warnings, want %d", got, warnings+1)
		}
		f.failWith(nil)
		time.Sleep(4 * time.Minute)
		if _, err := ask(t, s, tokens.Request{}); err != nil {
			t.Fatal(err)
		}
		if got := count("token exchange works again"); got != 1 {
			t.Errorf("%d lines about the recovery, want 1", got)
		}
	})
}

func TestWarningsOfManyKeysAreRateLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeEntra{}
		f.failWith(&exchange.Error{Kind: exchange.InvalidResource, Detail: "unknown"})
		log, lines := logged()
		s := newService(t, tokens.Config{Exchanger: f, Log: log})
		for i := range 10_000 {
			_, err := ask(t, s, tokens.Request{Resource: azure.Resource(fmt.Sprintf("https://%d.example.test/%s", i, strings.Repeat("x", 1000)))})
			if e, ok := errors.AsType[*exchange.Error](err); !ok || e.Kind != exchange.InvalidResource && e.Kind != exchange.Throttled {
				t.Fatalf("got %v", err) // Throttled: most are over the budget
			}
			time.Sleep(time.Millisecond)
		}
		synctest.Wait()
		failed := lines.FilterMessage("token exchange failed").All()
		if got := len(failed); got < 30 || got > 50 {
			t.Errorf("%d warnings in ten seconds, want about 40", got)
		}
		if got := len(fmt.Sprint(failed[0].ContextMap()["resource"])); got > 300 {
			t.Errorf("a resource of %d bytes in the log", got)
		}
	})
}
