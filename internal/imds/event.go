package imds

import (
	"errors"
	"net/http"
	"time"

	"imds-oidc-proxy/internal/tokens"
)

// Event is what is known of a request when it is over. It holds nothing that the
// caller wrote.
type Event struct {
	// Endpoint is who answered: token, info, versions, forward, own for an
	// endpoint of the proxy's own, none for a path that is not served.
	Endpoint string

	// Status is that of the answer; 499 where the client left before it.
	Status int

	// Source is where the token came from. Empty: no token was given.
	Source tokens.Source

	// Refusal names what was wrong with the request itself, such as
	// no_metadata_header: one of a few dozen constants. Empty: nothing was.
	Refusal string

	// Duration is from the end of the request's header to the answer.
	Duration time.Duration
}

// ClientLeft reports whether the client did not wait for the answer.
func (e Event) ClientLeft() bool { return e.Status == statusClientLeft }

// The values of Event.Endpoint.
const (
	EndpointToken    = "token"
	EndpointInfo     = "info"
	EndpointVersions = "versions"
	EndpointForward  = "forward"
	EndpointOwn      = "own"
	EndpointNone     = "none"
)

// refusalOf returns the reason of a refusal of what the request says, as opposed
// to a failure to do what it asks.
func refusalOf(err error) string {
	wire, ok := errors.AsType[*wireError](err)
	if !ok || wire.status >= http.StatusInternalServerError ||
		wire.status == http.StatusTooManyRequests || wire.status == statusClientLeft {
		return ""
	}
	return wire.reason
}
