package tokens

import (
	"testing"
	"time"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/exchange"
)

func TestBackoffIsBounded(t *testing.T) {
	for _, kind := range []exchange.Kind{exchange.UnknownIdentity, exchange.FederationMismatch, exchange.Throttled, exchange.Unavailable, exchange.DeadlineExceeded} {
		for _, asked := range []time.Duration{0, time.Second, 10 * time.Minute} {
			for streak := 1; streak < 100; streak++ {
				for _, jitter := range []float64{0, 0.999} {
					for _, have := range []bool{false, true} {
						got := backoffAfter(&exchange.Error{Kind: kind, RetryAfter: asked}, streak, have, jitter)
						if got < asked || got <= 0 || got > 2*max(asked, refreshBackoff.most) {
							t.Fatalf("%s, asked %s, streak %d: %s", kind, asked, streak, got)
						}
					}
				}
			}
		}
	}
}

// The counts of running exchanges are right, whether these succeed, fail or are dropped.
func TestRunsAreCounted(t *testing.T) {
	now := time.Now()
	m := newMemory(Config{Identities: []azure.ClientID{idA}})
	var runs []*run
	for i, id := range []azure.ClientID{idA, idA, idB} {
		runs = append(runs, m.decide(testKey(id, i), false, now).run)
		runs[i].tried = true
	}
	check := func(all, ofA, others int) {
		t.Helper()
		if len(m.running) != all || m.budgets[idA].running != ofA || m.others.running != others {
			t.Errorf("%d runs, %d of the identity and %d others; want %d, %d and %d",
				len(m.running), m.budgets[idA].running, m.others.running, all, ofA, others)
		}
	}
	check(3, 2, 1)
	m.drop(runs[0])
	check(2, 1, 1)
	again := m.decide(runs[0].key, false, now).run
	check(3, 2, 1)
	m.learn(runs[0], exchange.Grant{}, &exchange.Error{Kind: exchange.Unavailable}, now, 0) // dropped earlier
	check(3, 2, 1)
	m.learn(again, exchange.Grant{}, &exchange.Error{Kind: exchange.Unavailable}, now, 0)
	m.learn(runs[1], exchange.Grant{Token: exchange.Token{ExpiresOn: now.Add(time.Hour)}}, nil, now, 0)
	m.learn(runs[2], exchange.Grant{}, &exchange.Error{Kind: exchange.Throttled}, now, 0)
	check(0, 0, 0)
	if m.waiting != 0 {
		t.Errorf("%d callers wait", m.waiting)
	}

	heldBack := m.decide(testKey(idA, 9), false, now).run
	check(1, 1, 0)
	if _, note := m.learn(heldBack, exchange.Grant{}, &exchange.Error{Kind: exchange.Throttled}, now, 0); note != nil || m.failing(heldBack.key, now) != nil {
		t.Error("a run that made no try is remembered as a failure")
	}
	check(0, 0, 0)
}
