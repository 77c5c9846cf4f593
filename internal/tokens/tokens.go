// Package tokens caches Entra access tokens: it answers requests from its cache, makes one
// exchange at a time for each missing token, and refreshes the tokens in use before they
// expire.
//
//	tokens, err := tokens.New(tokens.Config{Exchanger: exchanger})
//	go tokens.Run(ctx) // prefetches and refreshes in the background
//	result, err := tokens.Token(ctx, tokens.Request{ClientID: …, Resource: …})
//
// A [Service] has the lock, the clock and the goroutines of the running exchanges. The type
// memory has none of these: it holds the tokens and failures, decides what to do with a request,
// and records the outcome of an exchange.
//
// The package makes no exchange itself (package exchange does), does not speak HTTP to the
// pod's applications (package imds does), and never writes a token to disk.
//
// # Security considerations
//
// Every container of the pod can request tokens for any client ID and resource. Budgets limit
// what such requests cost Entra, and keep one client from starving another. The number and the
// size of cached tokens, remembered failures, running exchanges and waiting callers are
// bounded.
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
	// ClientID is the application (client) ID to ask for, unless Selector is set.
	ClientID azure.ClientID

	// Selector is the object ID or the ARM resource ID of the identity to ask for. The
	// service finds it among [Config.Identities], by the claims of their access tokens.
	// Empty: ClientID is the identity.
	Selector azure.Selector

	// Resource is the v1 resource as the caller spelled it. It becomes the v2 scope
	// Resource + "/.default".
	Resource azure.Resource

	// Fresh asks for a token that is not cached, because a resource refused the cached
	// one, or the caller wants to bypass the cache. Such requests are rate-limited.
	Fresh bool
}

// Source says where a token came from.
type Source string

// The sources, as logs and metrics name them.
const (
	SourceCache Source = "cache"
	SourceEntra Source = "entra"
)

// Result is the answer to a Request.
type Result struct {
	Token  exchange.Token
	Source Source

	// ClientID is the identity that [Request.Selector] names. Empty: the request has none.
	ClientID azure.ClientID
}

// ErrUnknownSelector is the cause of the error for a [Request.Selector] that the tokens of no
// configured identity have.
var ErrUnknownSelector = errors.New("unknown selector")

// Exchanger makes exchanges: an [*exchange.Exchanger].
type Exchanger interface {
	// Exchange makes one token request. Its error is an [*exchange.Error], and it
	// returns soon after ctx ends.
	Exchange(ctx context.Context, clientID azure.ClientID, resource azure.Resource) (exchange.Grant, error)

	// Discover connects to Entra, so that the first exchange is faster. Its error is
	// an [*exchange.Error].
	Discover(ctx context.Context) error
}

// DefaultMaxWaiting is less than the number of connections that the proxy accepts (1,088), so
// that connections are left for callers with a cached token.
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

// Config configures a Service.
type Config struct {
	// Exchanger makes the exchanges. Required.
	Exchanger Exchanger

	// Prefetch lists the tokens to obtain at the start and to refresh for as long as the
	// service runs, whether or not a caller asks for them. Empty: none.
	Prefetch []Request

	// Identities lists the configured client IDs, the default one first. Each has its own
	// budget for exchanges of keys (client ID and resource) that have no token; all other
	// client IDs share one. A [Request.Selector] names one of them.
	Identities []azure.ClientID

	// MaxWaiting bounds the callers that wait for exchanges at once. A further caller is
	// refused with [ErrOverloaded], or takes the place of another. Zero: DefaultMaxWaiting.
	MaxWaiting int

	// Log logs the outcome of exchanges. Nil: nothing is logged.
	Log *zap.Logger

	// Observer is called for metrics. Zero: nothing is counted.
	Observer Observer
}

// Observer has functions to call for metrics. They must not block. Those that are nil are not
// called.
type Observer struct {
	// Exchanged is called after each try of an exchange, with its duration and its error.
	// A nil error means success.
	Exchanged func(took time.Duration, err *exchange.Error)

	// Refreshed is called after each exchange, with all its tries, for a key whose token
	// was still valid. A nil error means success.
	Refreshed func(err *exchange.Error)

	// Limited is called for each request that a limit refuses.
	Limited func(Limit)

	// Learned is called when a token shows for the first time which identity a
	// [Request.Selector] names.
	Learned func(azure.Selector)
}

func (o Observer) learned(selector azure.Selector) {
	if o.Learned != nil {
		o.Learned(selector)
	}
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

// Stats says what the cache holds.
type Stats struct {
	// Entries is the number of cached tokens.
	Entries int
	// SoonestExpiry is when the first of them expires. Zero: there is none.
	SoonestExpiry time.Time
}
