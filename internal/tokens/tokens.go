// Package tokens keeps Entra access tokens: it answers requests from memory, has the
// missing ones exchanged, and refreshes those in use ahead of time.
//
//	tokens, err := tokens.New(tokens.Config{Exchanger: exchanger})
//	go tokens.Run(ctx) // prefetches, and refreshes in the background
//	result, err := tokens.Token(ctx, tokens.Request{ClientID: …, Resource: …})
//
// A [Service] owns the lock, the goroutines of the running exchanges and the clock. What
// to do with a request, and what follows from the outcome of an exchange, a memory
// decides that has none of these.
//
// It makes no exchange itself (package exchange does), does not speak HTTP to the pod's
// applications (package imds does), and never writes a token to disk.
package tokens

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/exchange"
)

// Request names the access token that a caller wants.
type Request struct {
	// ClientID is the application (client) ID to ask for.
	ClientID azure.ClientID

	// Resource is the v1 resource as the caller spelled it. It becomes the v2 scope
	// Resource + "/.default".
	Resource azure.Resource

	// Fresh says that a cached token will not do: the caller's was refused, or
	// it asked to bypass the cache. Such requests are rate-limited.
	Fresh bool
}

// Source says where a token came from.
type Source string

// The two sources, as they stand in logs and metrics.
const (
	SourceCache Source = "cache"
	SourceEntra Source = "entra"
)

// Result is the answer to a Request.
type Result struct {
	Token  exchange.Token
	Source Source
}

// Exchanger makes exchanges: an [*exchange.Exchanger].
type Exchanger interface {
	// Exchange makes one token request. Its error is an [*exchange.Error], and it
	// returns soon after ctx ends.
	Exchange(ctx context.Context, clientID azure.ClientID, resource azure.Resource) (exchange.Grant, error)

	// Discover connects to Entra, so that the first exchange is faster. Its error is
	// an [*exchange.Error].
	Discover(ctx context.Context) error
}

// DefaultMaxWaiting is a little less than the connections that the proxy accepts (1,088), so
// that callers with a cached token find one.
const DefaultMaxWaiting = 1000

// Limit names a limit of this package, in metrics. The error of a request that the limit
// refuses wraps it.
type Limit string

// The limits that refuse requests.
const (
	// ErrExchangeRate: the budget of exchanges of the client ID is used up.
	ErrExchangeRate Limit = "exchange_rate"
	// ErrRunningExchanges: too many exchanges are running.
	ErrRunningExchanges Limit = "running_exchanges"
	// ErrOverloaded: [Config.MaxWaiting] other callers are waiting.
	ErrOverloaded Limit = "waiting_callers"
)

// Error implements error.
func (l Limit) Error() string { return "over the limit " + string(l) }

// Config says how to keep tokens.
type Config struct {
	// Exchanger makes the exchanges. Required.
	Exchanger Exchanger

	// Prefetch lists the tokens to have ready before they are asked for, for as long
	// as the service runs. Empty: none.
	Prefetch []Request

	// Identities lists the configured client IDs. Each has a budget of its own for the
	// exchanges of keys (client ID and resource) that have no token; all other client IDs
	// share one.
	Identities []azure.ClientID

	// MaxWaiting bounds the callers that wait for exchanges at once. The next one is
	// refused with [ErrOverloaded], or takes the place of another. Zero:
	// DefaultMaxWaiting.
	MaxWaiting int

	// Log gets the outcome of exchanges. Nil: nothing is logged.
	Log *zap.Logger

	// Observer counts exchanges, for metrics. Zero: nothing is counted.
	Observer Observer
}

// Observer counts exchanges. Its functions must not block; nil: not called.
type Observer struct {
	// Exchanged gets the duration of one try at an exchange, and its failure. Nil: it
	// succeeded.
	Exchanged func(took time.Duration, err *exchange.Error)

	// Refreshed gets the failure of an exchange, with all its tries, for a token that
	// was still valid. Nil: it succeeded.
	Refreshed func(err *exchange.Error)

	// Limited gets the limit that refused a request.
	Limited func(Limit)
}

func (o Observer) exchanged(took time.Duration, err *exchange.Error) {
	if o.Exchanged != nil {
		o.Exchanged(took, err)
	}
}

func (o Observer) refreshed(err *exchange.Error) {
	if o.Refreshed != nil {
		o.Refreshed(err)
	}
}

func (o Observer) refused(err *exchange.Error) {
	if limit, ok := errors.AsType[Limit](err); ok && o.Limited != nil {
		o.Limited(limit)
	}
}

// Stats is what the cache holds now.
type Stats struct {
	// Entries counts the tokens held.
	Entries int
	// SoonestExpiry is when the first of them ends. Zero: there is none.
	SoonestExpiry time.Time
}
