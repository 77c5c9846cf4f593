package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/test/kit/entra"
	"imds-oidc-proxy/test/kit/pod"
)

// Invented identities. The default identity is pod.ClientID.
const (
	otherClientID   = "8e2f5d0a-3c41-4b7e-9f65-0d1c2b3a4f50"
	otherObjectID   = "b7a1c9de-52f0-4e83-8d6b-9a0f1e2d3c4b"
	otherResourceID = "/subscriptions/7d1b0c9a-4f3e-4a2d-8b6c-5e0f9a8b7c6d/resourceGroups/shop/providers/Microsoft.ManagedIdentity/userAssignedIdentities/cart"
	unknownClientID = "deadbeef-0000-4000-8000-00000000dead"
)

// Invented secrets of the App Service protocol: the pod's, and one that is wrong.
const (
	podSecret   = "3b9f6a52-7c1e-4d08-a2b4-6e5d4c3b2a19"
	wrongSecret = "00000000-7c1e-4d08-a2b4-6e5d4c3b2a19"
)

const (
	// fixedToken is the token of the credential that follows the managed one in a chain.
	fixedToken = "fell-through"

	// withoutRetry is the number of requests of a client that does not retry: a probe and
	// the request itself.
	withoutRetry = 2

	// shortLife is the life of the tokens that expire during a scenario. Entra's tokens
	// live much longer, and the scenario would have to wait as long.
	shortLife = 5 * time.Second

	// afterExpiry is the pause after which the client asks again: its token has expired.
	afterExpiry = shortLife + time.Second

	// outageLife is the life of the token that is used while Entra is down. The proxy tries
	// to refresh it after two thirds of this time at most. In the remaining time a second
	// client starts.
	outageLife = 45 * time.Second

	// throttle is Entra's Retry-After, which the next exchange must respect.
	throttle = 2 * time.Second

	// quietTime is the time after a 429 in which no other scenario starts.
	quietTime = 2 * throttle
)

// place is how the application's requests reach the proxy.
type place string

const (
	// redirected: by the redirect of proxy-init.
	redirected place = "redirected"
	// direct: by an environment variable, without a redirect.
	direct place = "direct"
	// bound: by the redirect, in a pod with an identity binding. It has the scenarios of
	// redirected.
	bound place = "bound"
)

// table is a part of the page.
type table int

const (
	// mainTable has the scenarios with the redirect, and the first one without it.
	mainTable table = iota
	// variablesTable has the scenarios in which environment variables take the place of the
	// redirect.
	variablesTable
)

// scenario is a column of the matrix.
type scenario struct {
	name, title, about string

	table table
	// like are the names of scenarios that need the same feature of a client, or in which it
	// raises the same error. Their expectations hold here too, unless there is another one.
	like []string

	// aside is true if the scenario does not count in the summary of its way.
	aside bool

	where     place
	arguments []string

	// environment has additional environment variables for the application.
	environment []string

	// fault returns the fault of Entra in the nth exchange of the scenario, counted from
	// zero. If the function or its result is nil, there is no fault.
	fault func(n int) *entra.Fault

	// again reports whether the driver should run a second time, given the exchanges so
	// far. Nil: it runs only once.
	again func([]entra.Exchange) bool

	// want is the ordinary outcome. check checks further conditions of this outcome.
	want  outcome
	check func(observed) error
}

// scenarios returns all scenarios, in the order of the columns.
func scenarios() []scenario {
	managed := func(more ...string) []string { return append([]string{"credential=managed"}, more...) }
	return []scenario{{
		name: "default", title: "default", about: "the pod's own identity, without naming it",
		where: redirected, arguments: managed(), want: gotToken, check: all(tokens(1, pod.ClientID), exchanges(1)),
	}, {
		name: "client-id", title: "client ID", about: "a user-assigned identity by its client ID",
		where: redirected, arguments: managed("client_id=" + otherClientID), want: gotToken, check: all(tokens(1, otherClientID), exchanges(1)),
	}, {
		name: "object-id", title: "object ID", about: "by its object ID, which the proxy finds in the identity's token",
		where: redirected, arguments: managed("object_id=" + otherObjectID), want: gotToken, check: tokens(1, otherClientID),
	}, {
		name: "resource-id", title: "resource ID", about: "by its ARM resource ID, which `--identity` maps",
		where: redirected, arguments: managed("resource_id=" + otherResourceID), want: gotToken, check: all(tokens(1, otherClientID), exchanges(1)),
	}, {
		name: "chain", title: "default chain", about: "the SDK's default chain, including its probe, uses the managed identity",
		where: redirected, arguments: []string{"credential=default"}, want: gotToken, check: all(tokens(1, pod.ClientID), exchanges(1)),
	}, {
		name: "second", title: "second call", about: "a second call of the same object: at most one more request, no exchange",
		where: redirected, arguments: managed("calls=2"), want: gotToken, check: all(tokens(2, pod.ClientID), sameToken, exchanges(1)),
	}, {
		name: "unknown", title: "unknown identity", about: "an identity that the tenant does not have: the SDK's own error, without delay",
		where: redirected, arguments: managed("client_id=" + unknownClientID), want: refused, check: all(atMostOneExchange, asksOnce),
	}, {
		name: "fall-through", title: "falls through", about: "the tenant does not have the pod's own identity: a chain tries its next credential without delay",
		where: redirected, arguments: []string{"credential=fallthrough"}, want: gotToken, check: all(fellThrough, exchanges(1), asksOnce),
		fault: func(int) *entra.Fault { f := entra.FaultAADSTS(700016); return &f },
	}, {
		name: "named-fall-through", title: "named, falls through", about: "the same for an identity that the application names",
		where: redirected, arguments: []string{"credential=fallthrough", "client_id=" + unknownClientID}, want: gotToken, check: all(fellThrough, exchanges(1), asksOnce),
	}, {
		name: "errors", title: "500 twice", about: "Entra answers 500 twice, then with a token",
		where: redirected, arguments: managed(), want: gotToken, check: all(tokens(1, pod.ClientID), exchanges(3)),
		fault: first(2, entra.FaultStatus(500, "")),
	}, {
		name: "long-errors", title: "500 thrice", about: "Entra answers 500 in all retries of the proxy, so that the client gets a 500 and must retry",
		where: redirected, arguments: managed(), want: gotToken, check: all(tokens(1, pod.ClientID), exchanges(4)),
		fault: first(3, entra.FaultStatus(500, "")),
	}, {
		name: "throttled", title: "429", about: "Entra throttles for 2 s: the proxy waits, and the client gets its token",
		where: redirected, arguments: managed(), want: gotToken, check: all(tokens(1, pod.ClientID), exchanges(2), backedOff),
		fault: first(1, entra.FaultThrottle(throttle)),
	}, {
		name: "refresh", title: "refresh", about: "after its token has expired, the client gets the token that the proxy has refreshed",
		where: redirected, arguments: managed("calls=2", fmt.Sprintf("pause=%g", afterExpiry.Seconds())), want: gotToken, check: all(tokens(2, pod.ClientID), otherToken),
		fault: func(int) *entra.Fault { return lasting(shortLife) },
	}, {
		name: "outage", title: "Entra down", about: "Entra is down and the proxy cannot refresh the token: a new client gets it from the cache",
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
		name: "direct", title: "no redirect", about: "no redirect; the client uses `AZURE_POD_IDENTITY_AUTHORITY_HOST=http://127.0.0.1:8000`",
		where: direct, arguments: managed(), want: gotToken, check: all(tokens(1, pod.ClientID), exchanges(1)),
		environment: podHost(),
	}, {
		name: "direct-client-id", title: "POD_IDENTITY host, client ID", about: "`AZURE_POD_IDENTITY_AUTHORITY_HOST`; a user-assigned identity by its client ID",
		table: variablesTable, like: []string{"client-id", "direct"},
		where: direct, arguments: managed("client_id=" + otherClientID), want: gotToken, check: all(tokens(1, otherClientID), exchanges(1)),
		environment: podHost(),
	}, {
		name: "app-service", title: "App Service", about: "the four variables of App Service; the pod's own identity",
		where: direct, arguments: managed(), want: gotToken, check: all(expiries, tokens(1, pod.ClientID), exchanges(1)),
		table: variablesTable, environment: appService(podSecret),
	}, {
		name: "app-service-client-id", title: "client ID", about: "App Service; a user-assigned identity by its client ID",
		where: direct, arguments: managed("client_id=" + otherClientID), want: gotToken, check: all(expiries, tokens(1, otherClientID), exchanges(1)),
		table: variablesTable, like: []string{"client-id"}, environment: appService(podSecret),
	}, {
		name: "app-service-object-id", title: "object ID", about: "App Service; by its object ID, which the proxy finds in the identity's token",
		where: direct, arguments: managed("object_id=" + otherObjectID), want: gotToken, check: all(expiries, tokens(1, otherClientID)),
		table: variablesTable, like: []string{"object-id"}, environment: appService(podSecret),
	}, {
		name: "app-service-resource-id", title: "resource ID", about: "App Service; by its ARM resource ID, which `--identity` maps",
		where: direct, arguments: managed("resource_id=" + otherResourceID), want: gotToken, check: all(expiries, tokens(1, otherClientID), exchanges(1)),
		table: variablesTable, like: []string{"resource-id"}, environment: appService(podSecret),
	}, {
		name: "app-service-chain", title: "default chain", about: "App Service; the SDK's default chain",
		where: direct, arguments: []string{"credential=default"}, want: gotToken, check: all(expiries, tokens(1, pod.ClientID), exchanges(1)),
		table: variablesTable, like: []string{"chain"}, environment: appService(podSecret),
	}, {
		name: "app-service-falls", title: "falls through", about: "App Service; the tenant does not have the pod's own identity: a chain tries its next credential without delay",
		where: direct, arguments: []string{"credential=fallthrough"}, want: gotToken, check: all(fellThrough, exchanges(1), asksOnce),
		fault: func(int) *entra.Fault { f := entra.FaultAADSTS(700016); return &f },
		table: variablesTable, like: []string{"fall-through"}, aside: true, environment: appService(podSecret),
	}, {
		name: "app-service-second", title: "second call", about: "App Service; a second call of the same object: at most one more request, no exchange",
		where: direct, arguments: managed("calls=2"), want: gotToken, check: all(expiries, tokens(2, pod.ClientID), sameToken, exchanges(1)),
		table: variablesTable, like: []string{"second"}, environment: appService(podSecret),
	}, {
		name: "app-service-refresh", title: "refresh", about: "App Service; after its token has expired, the client gets another one",
		where: direct, arguments: managed("calls=2", fmt.Sprintf("pause=%g", afterExpiry.Seconds())), want: gotToken, check: all(expiries, tokens(2, pod.ClientID), otherToken),
		fault: func(int) *entra.Fault { return lasting(shortLife) },
		table: variablesTable, like: []string{"refresh"}, environment: appService(podSecret),
	}, {
		name: "app-service-unknown", title: "unknown identity", about: "App Service; an identity that the tenant does not have: the SDK's own error, without delay",
		where: direct, arguments: managed("client_id=" + unknownClientID), want: refused, check: all(atMostOneExchange, asksOnce),
		table: variablesTable, like: []string{"unknown"}, environment: appService(podSecret),
	}, {
		name: "app-service-forged", title: "wrong secret", about: "App Service, with another pod's secret: an error that names the cause, without delay",
		where: direct, arguments: managed(), want: refused, check: all(exchanges(0), asksOnce),
		table: variablesTable, environment: appService(wrongSecret),
	}, {
		name: "both", title: "both", about: "`AZURE_POD_IDENTITY_AUTHORITY_HOST` and the variables of App Service, as injected with `redirect: none`",
		where: direct, arguments: managed(), want: gotToken, check: all(expiries, tokens(1, pod.ClientID), exchanges(1)),
		table: variablesTable, environment: append(podHost(), appService(podSecret)...),
	}, {
		name: "both-client-id", title: "both, client ID", about: "the same; a user-assigned identity by its client ID",
		where: direct, arguments: managed("client_id=" + otherClientID), want: gotToken, check: all(expiries, tokens(1, otherClientID), exchanges(1)),
		table: variablesTable, like: []string{"client-id", "both"}, environment: append(podHost(), appService(podSecret)...),
	}}
}

// scenarios returns the scenarios of a place.
func (p place) scenarios() []scenario {
	return slices.DeleteFunc(scenarios(), func(s scenario) bool {
		if p != bound {
			return s.where != p
		}
		// An identity without a binding may get one, so that the proxy's answer is another.
		return s.where != redirected || slices.Contains(s.arguments, "client_id="+unknownClientID)
	})
}

// podHost is the variable of IMDS's protocol that some clients use instead of the metadata
// address.
func podHost() []string { return []string{"AZURE_POD_IDENTITY_AUTHORITY_HOST=http://127.0.0.1:8000"} }

// appService are the variables that injection sets for the protocol of App Service.
func appService(secret string) []string {
	const endpoint = "http://127.0.0.1:8000" + azure.AppServicePath
	return []string{
		azure.EnvIdentityEndpoint + "=" + endpoint, azure.EnvIdentityHeader + "=" + secret,
		azure.EnvMSIEndpoint + "=" + endpoint, azure.EnvMSISecret + "=" + secret,
	}
}

// scenariosOf returns the scenarios of a table.
func scenariosOf(t table) []scenario {
	return slices.DeleteFunc(scenarios(), func(s scenario) bool { return s.table != t })
}

func scenarioNamed(name string) (scenario, bool) {
	all := scenarios()
	i := slices.IndexFunc(all, func(s scenario) bool { return s.name == name })
	if i < 0 {
		return scenario{}, false
	}
	return all[i], true
}

// first returns a function that returns the fault for the first count exchanges.
func first(count int, f entra.Fault) func(int) *entra.Fault {
	return func(n int) *entra.Fault {
		if n < count {
			return &f
		}
		return nil
	}
}

// lasting returns a fault that changes the life of a token.
func lasting(life time.Duration) *entra.Fault {
	f := entra.FaultEdit("short life", func(answer map[string]any) {
		answer["expires_in"] = int64(life / time.Second)
		answer["ext_expires_in"] = answer["expires_in"]
	})
	return &f
}

// all returns a check that runs all of the checks.
func all(checks ...func(observed) error) func(observed) error {
	return func(o observed) error {
		var failed []error
		for _, check := range checks {
			failed = append(failed, check(o))
		}
		return errors.Join(failed...)
	}
}

// tokens checks that the client got n tokens that Entra signed, for this identity and for the
// requested resource.
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

// longestLife is longer than the life of any token of the stand-in for Entra.
const longestLife = 25 * time.Hour

// expiries checks when the tokens expire in the client's opinion: a client that reads expires_on
// wrongly never asks for another token, or asks each time.
func expiries(o observed) error {
	for _, a := range o.answers {
		expires := time.Unix(a.ExpiresOn, 0)
		if a.Token != "" && !o.hidesExpiry && (expires.Before(o.began) || expires.After(o.began.Add(longestLife))) {
			return fmt.Errorf("the token expires at %d in the client's opinion, want a time between %d and %s later", a.ExpiresOn, o.began.Unix(), longestLife)
		}
	}
	return nil
}

func exchanges(n int) func(observed) error {
	return func(o observed) error {
		if got := len(o.exchanges); got != n {
			return fmt.Errorf("%d exchanges, want %d", got, n)
		}
		return nil
	}
}

// atMostOneExchange checks that the proxy caches Entra's error. For az there may be no exchange
// for the resource, because its login has already failed.
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
		return errors.New("the same token again after its expiry")
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
	if o.requests > withoutRetry {
		return fmt.Errorf("%d requests, want at most %d", o.requests, withoutRetry)
	}
	return nil
}

// backedOff checks that the time between two exchanges respects Entra's Retry-After.
func backedOff(o observed) error {
	if len(o.exchanges) != 2 {
		return nil // the check of the number of exchanges returns an error
	}
	if pause := o.exchanges[1].Time.Sub(o.exchanges[0].Time); pause < throttle {
		return fmt.Errorf("the next exchange came after %s, want %s", pause, throttle)
	}
	return nil
}

// refusedWith checks that the client raised its documented error.
func refusedWith(text string) func(observed) error {
	return func(o observed) error {
		for _, a := range o.answers {
			if a.Error == "" {
				return errors.New("a token, want an error")
			}
			if got := a.Error + ": " + a.Message; !strings.Contains(got, text) {
				return fmt.Errorf("the error is %q, want %q in it", got, text)
			}
		}
		return nil
	}
}
