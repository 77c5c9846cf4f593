package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"imds-oidc-proxy/test/kit/entra"
	"imds-oidc-proxy/test/kit/pod"
)

// Made-up identities, beside pod.ClientID, which is the default one.
const (
	otherClientID   = "8e2f5d0a-3c41-4b7e-9f65-0d1c2b3a4f50"
	otherObjectID   = "b7a1c9de-52f0-4e83-8d6b-9a0f1e2d3c4b"
	otherResourceID = "/subscriptions/7d1b0c9a-4f3e-4a2d-8b6c-5e0f9a8b7c6d/resourceGroups/shop/providers/Microsoft.ManagedIdentity/userAssignedIdentities/cart"
	unknownClientID = "deadbeef-0000-4000-8000-00000000dead"
)

const (
	// fixedToken is what the credential behind the managed one returns, in a chain.
	fixedToken = "fell-through"

	// atOnce is how many requests an answer takes that the client believes: one,
	// and a probe before it. A client that takes it for a fault asks again.
	atOnce = 2

	// shortLife is the life of the tokens that a client sees expire. Entra's
	// shortest is far longer; the wait would be, too.
	shortLife = 5 * time.Second

	// afterExpiry is when the client asks again, some time after its token ended.
	afterExpiry = shortLife + time.Second

	// outageLife is the life of the token that outlasts Entra. The proxy tries to
	// replace it after two thirds of it at most; the rest is for a second client to
	// start in.
	outageLife = 45 * time.Second

	// throttle is Entra's Retry-After, which the next exchange has to respect.
	throttle = 2 * time.Second

	// quietTime is how long after a throttle no other scenario begins.
	quietTime = 2 * throttle
)

// place is where the application is.
type place string

const (
	// redirected: the pod as proxy-init makes it.
	redirected place = "redirected"
	// direct: no redirect; an environment variable names the proxy.
	direct place = "direct"
)

// scenario is a column of the matrix.
type scenario struct {
	name, title, about string

	where     place
	arguments []string

	// environment is added to the application's.
	environment []string

	// fault is what Entra does to the nth exchange of the scenario, from 0 on. Nil,
	// as a function or a result: nothing.
	fault func(n int) *entra.Fault

	// again, if set, runs the driver a second time, once the exchanges so far are
	// as it waits for.
	again func([]entra.Exchange) bool

	// want is the ordinary outcome, and check what has to hold for it besides.
	want  outcome
	check func(observed) error
}

// scenarios are in the order of the matrix's columns.
func scenarios() []scenario {
	managed := func(more ...string) []string { return append([]string{"credential=managed"}, more...) }
	return []scenario{{
		name: "default", title: "default", about: "the pod's own identity, named by nothing",
		where: redirected, arguments: managed(), want: gotToken, check: all(tokens(1, pod.ClientID), exchanges(1)),
	}, {
		name: "client-id", title: "client ID", about: "a user-assigned identity by its client ID",
		where: redirected, arguments: managed("client_id=" + otherClientID), want: gotToken, check: all(tokens(1, otherClientID), exchanges(1)),
	}, {
		name: "object-id", title: "object ID", about: "by its object ID, which `--identity` maps",
		where: redirected, arguments: managed("object_id=" + otherObjectID), want: gotToken, check: tokens(1, otherClientID),
	}, {
		name: "resource-id", title: "resource ID", about: "by its ARM resource ID, which `--identity` maps",
		where: redirected, arguments: managed("resource_id=" + otherResourceID), want: gotToken, check: all(tokens(1, otherClientID), exchanges(1)),
	}, {
		name: "chain", title: "default chain", about: "the SDK's default chain, its probe included, settles on the managed identity",
		where: redirected, arguments: []string{"credential=default"}, want: gotToken, check: all(tokens(1, pod.ClientID), exchanges(1)),
	}, {
		name: "second", title: "second call", about: "a second call on the same object: at most one more request, no exchange",
		where: redirected, arguments: managed("calls=2"), want: gotToken, check: all(tokens(2, pod.ClientID), sameToken, exchanges(1)),
	}, {
		name: "unknown", title: "unknown identity", about: "an identity that the tenant does not have: the SDK's own error, at once",
		where: redirected, arguments: managed("client_id=" + unknownClientID), want: refused, check: all(atMostOneExchange, asksOnce),
	}, {
		name: "fall-through", title: "falls through", about: "the tenant does not have the pod's own identity: a chain goes on to its next credential, as soon",
		where: redirected, arguments: []string{"credential=fallthrough"}, want: gotToken, check: all(fellThrough, exchanges(1), asksOnce),
		fault: func(int) *entra.Fault { f := entra.FaultAADSTS(700016); return &f },
	}, {
		name: "named-fall-through", title: "named, falls through", about: "the same for an identity that the application names",
		where: redirected, arguments: []string{"credential=fallthrough", "client_id=" + unknownClientID}, want: gotToken, check: all(fellThrough, exchanges(1), asksOnce),
	}, {
		name: "errors", title: "500 twice", about: "Entra answers 500 twice, then well",
		where: redirected, arguments: managed(), want: gotToken, check: all(tokens(1, pod.ClientID), exchanges(3)),
		fault: first(2, entra.FaultStatus(500, "")),
	}, {
		name: "long-errors", title: "500 thrice", about: "Entra answers 500 as often as the proxy tries, so that the client gets one and has to ask again",
		where: redirected, arguments: managed(), want: gotToken, check: all(tokens(1, pod.ClientID), exchanges(4)),
		fault: first(3, entra.FaultStatus(500, "")),
	}, {
		name: "throttled", title: "429", about: "Entra throttles for 2 s: the proxy waits, and the client gets its token",
		where: redirected, arguments: managed(), want: gotToken, check: all(tokens(1, pod.ClientID), exchanges(2), backedOff),
		fault: first(1, entra.FaultThrottle(throttle)),
	}, {
		name: "refresh", title: "refresh", about: "a token that the proxy has replaced is seen once the client's own has expired",
		where: redirected, arguments: managed("calls=2", fmt.Sprintf("pause=%g", afterExpiry.Seconds())), want: gotToken, check: all(tokens(2, pod.ClientID), otherToken),
		fault: func(int) *entra.Fault { return lasting(shortLife) },
	}, {
		name: "outage", title: "Entra down", about: "Entra has gone, the proxy has tried to refresh and could not: a new client is served from its cache",
		where: redirected, arguments: managed(), want: gotToken, check: all(tokens(2, pod.ClientID), sameToken),
		fault: func(n int) *entra.Fault {
			if n == 0 {
				return lasting(outageLife)
			}
			reset := entra.FaultReset()
			return &reset
		},
		again: func(exchanges []entra.Exchange) bool {
			return slices.ContainsFunc(exchanges, func(x entra.Exchange) bool { return x.Outcome == entra.OutcomeAborted })
		},
	}, {
		name: "direct", title: "no redirect", about: "no rules; `AZURE_POD_IDENTITY_AUTHORITY_HOST=http://127.0.0.1:8000` names the proxy",
		where: direct, arguments: managed(), want: gotToken, check: all(tokens(1, pod.ClientID), exchanges(1)),
		environment: []string{"AZURE_POD_IDENTITY_AUTHORITY_HOST=http://127.0.0.1:8000"},
	}}
}

func scenarioNamed(name string) (scenario, bool) {
	all := scenarios()
	i := slices.IndexFunc(all, func(s scenario) bool { return s.name == name })
	if i < 0 {
		return scenario{}, false
	}
	return all[i], true
}

// first is the fault of the first most exchanges.
func first(most int, f entra.Fault) func(int) *entra.Fault {
	return func(n int) *entra.Fault {
		if n < most {
			return &f
		}
		return nil
	}
}

// lasting tokens live for so long, however long Entra's own do.
func lasting(life time.Duration) *entra.Fault {
	f := entra.FaultEdit("short life", func(answer map[string]any) {
		answer["expires_in"] = int64(life / time.Second)
		answer["ext_expires_in"] = answer["expires_in"]
	})
	return &f
}

// all holds when each check does.
func all(checks ...func(observed) error) func(observed) error {
	return func(o observed) error {
		var failed []error
		for _, check := range checks {
			failed = append(failed, check(o))
		}
		return errors.Join(failed...)
	}
}

// tokens checks that the client got n tokens, each for this identity and for the
// resource that it asked for, signed by Entra.
func tokens(n int, clientID string) func(observed) error {
	return func(o observed) error {
		if len(o.answers) != n {
			return fmt.Errorf("%d answers, want %d", len(o.answers), n)
		}
		for _, a := range o.answers {
			if a.Error != "" {
				return fmt.Errorf("%s: %s", a.Error, a.Message)
			}
			if a.claims.ClientID != clientID || a.claims.Resource != o.resource {
				return fmt.Errorf("a token for client %q and resource %q, want %q and %q: %s", a.claims.ClientID, a.claims.Resource, clientID, o.resource, a.problem)
			}
		}
		return nil
	}
}

func exchanges(n int) func(observed) error {
	return func(o observed) error {
		if got := len(o.exchanges); got != n {
			return fmt.Errorf("%d exchanges, want %d", got, n)
		}
		return nil
	}
}

// atMostOneExchange: a refusal is remembered. az finds out before it asks for the
// resource.
func atMostOneExchange(o observed) error {
	if got := len(o.exchanges); got > 1 {
		return fmt.Errorf("%d exchanges, want one at most", got)
	}
	return nil
}

func sameToken(o observed) error {
	if len(o.answers) == 2 && o.answers[0].claims.ID != o.answers[1].claims.ID {
		return errors.New("two different tokens, want the same one twice")
	}
	return nil
}

func otherToken(o observed) error {
	if len(o.answers) == 2 && o.answers[0].claims.ID == o.answers[1].claims.ID {
		return errors.New("the same token again, after its end")
	}
	return nil
}

func fellThrough(o observed) error {
	if len(o.answers) != 1 || o.answers[0].Token != fixedToken {
		return fmt.Errorf("not the next credential's token: %s", o.problem())
	}
	return nil
}

func asksOnce(o observed) error {
	if o.requests > atOnce {
		return fmt.Errorf("%d requests, want %d at most", o.requests, atOnce)
	}
	return nil
}

// backedOff checks that Entra was left alone for as long as it asked.
func backedOff(o observed) error {
	if len(o.exchanges) != 2 {
		return nil // said elsewhere
	}
	if pause := o.exchanges[1].Time.Sub(o.exchanges[0].Time); pause < throttle {
		return fmt.Errorf("the next exchange came after %s, want %s", pause, throttle)
	}
	return nil
}

// refusedWith checks that the client raised the error that it is known for.
func refusedWith(text string) func(observed) error {
	return func(o observed) error {
		for _, a := range o.answers {
			if a.Error == "" {
				return errors.New("a token, want an error")
			}
			if said := a.Error + ": " + a.Message; !strings.Contains(said, text) {
				return fmt.Errorf("the error is %q, want %q in it", said, text)
			}
		}
		return nil
	}
}
