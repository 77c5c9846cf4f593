package imds

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"time"

	"imds-oidc-proxy/internal/exchange"
)

// wireError is an error as the client gets it. Its description is constant: what
// is particular to a failure goes to the log, by wrapping (see [refused]), and
// never to the client.
//
// The status is chosen by what clients do with it: 400 makes some give up for
// good, so it is for what will not mend by itself; 404 and 410 make them retry
// for a minute; 502 and 503 are not retried by some, so what is transient is 500.
type wireError struct {
	status      int
	code        string // one of IMDS's own
	reason      string // names it among all others, for metrics
	description string
}

func (e *wireError) Error() string { return e.description }

// Refusals of what the request says.
var (
	errNoMetadataHeader  = &wireError{http.StatusBadRequest, "invalid_request", "no_metadata_header", "Required metadata header not specified"}
	errForwardedFor      = &wireError{http.StatusBadRequest, "invalid_request", "forwarded_for", "Requests with an X-Forwarded-For header are not served"}
	errForeignHost       = &wireError{http.StatusBadRequest, "invalid_request", "foreign_host", "The Host header must be an IP address or localhost"}
	errMalformedQuery    = &wireError{http.StatusBadRequest, "invalid_request", "malformed_query", "The query is malformed"}
	errDuplicateParam    = &wireError{http.StatusBadRequest, "invalid_request", "duplicate_param", "A query variable is given more than once"}
	errParamCase         = &wireError{http.StatusBadRequest, "invalid_request", "param_case", "Query variable names are lower case"}
	errNoAPIVersion      = &wireError{http.StatusBadRequest, "invalid_request", "no_api_version", "Required query variable 'api-version' is missing"}
	errUnknownAPIVersion = &wireError{http.StatusBadRequest, "invalid_request", "unknown_api_version", "The value of 'api-version' is not a known version"}
	errNoResource        = &wireError{http.StatusBadRequest, "invalid_request", "no_resource", "Required query variable 'resource' is missing"}
	errMalformedResource = &wireError{http.StatusBadRequest, "invalid_resource", "malformed_resource", "The value of 'resource' must be a URI or a GUID"}
	errSeveralSelectors  = &wireError{http.StatusBadRequest, "invalid_request", "several_selectors", "At most one of 'client_id', 'object_id', 'msi_res_id' and 'mi_res_id' may be given"}
	errIdentityNotFound  = &wireError{http.StatusBadRequest, "invalid_request", "identity_not_found", "Identity not found"}
	errIdentityAmbiguous = &wireError{http.StatusBadRequest, "invalid_request", "identity_ambiguous", "Multiple user assigned identities exist, please specify the clientId / resourceId of the identity in the token request"}
	errNotFound          = &wireError{http.StatusNotFound, "not_found", "not_found", "This path is not served"}
	errForwardingOff     = &wireError{http.StatusNotFound, "not_found", "forwarding_off", "This path is not served: forwarding to the instance metadata service is off"}
	errMethodNotAllowed  = &wireError{http.StatusMethodNotAllowed, "method_not_allowed", "method_not_allowed", "The method must be GET"}
)

// Failures of an exchange, by what they mean to the caller.
var (
	errInvalidResource    = &wireError{http.StatusBadRequest, "invalid_resource", "invalid_resource", "The resource is not known in the tenant"}
	errInvalidScope       = &wireError{http.StatusBadRequest, "invalid_scope", "invalid_scope", "The resource cannot be used as a scope"}
	errUnauthorizedClient = &wireError{http.StatusBadRequest, "unauthorized_client", "unauthorized_client", "The identity may not be used"}
	errInvalidTenant      = &wireError{http.StatusBadRequest, "invalid_request", "invalid_tenant", "The tenant was not found"}
	errFederation         = &wireError{http.StatusInternalServerError, "server_error", "federation", "No federated credential of the identity matches the service account token"}
	errFederatedToken     = &wireError{http.StatusInternalServerError, "server_error", "federated_token", "The service account token cannot be used"}
	errThrottled          = &wireError{http.StatusTooManyRequests, "too_many_requests", "throttled", "Too many requests; try again later"}
	errUnavailable        = &wireError{http.StatusInternalServerError, "service_unavailable", "unavailable", "The token service is not available; try again"}
	errDeadline           = &wireError{http.StatusInternalServerError, "service_unavailable", "deadline", "The token service did not answer in time; try again"}
	errInternal           = &wireError{http.StatusInternalServerError, "server_error", "internal", "The token could not be acquired"}
)

// Failures of forwarding. 502 rather than 500: outside Azure no retry will help.
var (
	errIMDSUnavailable = &wireError{http.StatusBadGateway, "service_unavailable", "imds_unavailable", "The instance metadata service did not give a usable answer; outside Azure there is none"}
	errForwardingBusy  = &wireError{http.StatusTooManyRequests, "too_many_requests", "forwarding_busy", "Too many requests to the instance metadata service; try again later"}
	errForwardingLoop  = &wireError{http.StatusLoopDetected, "server_error", "forwarding_loop", "The forwarded request came back to this proxy"}
)

// statusClientLeft stands in the log for a request whose client did not wait for
// the answer; what is sent, if anything, is the error itself. The number is nginx's.
const statusClientLeft = 499

// errClientLeft is what becomes of a request whose client closed the connection.
var errClientLeft = &wireError{status: statusClientLeft, reason: "client_left", description: "client left before the answer"}

// refusal adds, for the log alone, why a wireError is answered.
type refusal struct {
	wire  *wireError
	cause string
}

func refused(wire *wireError, cause string) error { return &refusal{wire, cause} }

func (e *refusal) Error() string { return e.wire.description + ": " + e.cause }
func (e *refusal) Unwrap() error { return e.wire }

// maxRetryAfter caps the Retry-After that is passed on from Entra: clients sleep
// for as long as it says, and most have a deadline of their own of 30 seconds or
// less. minRetryAfter is the least that the header can express.
const (
	minRetryAfter = time.Second
	maxRetryAfter = 10 * time.Second
)

// answer is an error made ready for the wire.
type answer struct {
	status      int
	code        string
	description string
	retryAfter  time.Duration // zero: no Retry-After
}

// answerFor is the one place where an error becomes what a client reads.
func answerFor(err error) answer {
	if failure, ok := errors.AsType[*exchange.Error](err); ok {
		return answerForExchange(failure)
	}
	wire, ok := errors.AsType[*wireError](err)
	switch {
	case ok:
	case errors.Is(err, context.DeadlineExceeded):
		wire = errDeadline
	default:
		wire = errInternal
	}
	a := answer{status: wire.status, code: wire.code, description: wire.description}
	if a.status == http.StatusTooManyRequests {
		a.retryAfter = minRetryAfter
	}
	return a
}

func answerForExchange(e *exchange.Error) answer {
	wire := wireErrorFor(e.Kind)
	a := answer{status: wire.status, code: wire.code, description: wire.description}
	if e.Code != 0 {
		a.description += " (AADSTS" + strconv.Itoa(e.Code) + ")"
	}
	if a.status == http.StatusTooManyRequests {
		a.retryAfter = min(max(e.RetryAfter, minRetryAfter), maxRetryAfter)
	}
	return a
}

func wireErrorFor(kind exchange.Kind) *wireError {
	switch kind {
	case exchange.UnknownIdentity:
		return errIdentityNotFound
	case exchange.InvalidResource:
		return errInvalidResource
	case exchange.InvalidScope:
		return errInvalidScope
	case exchange.UnauthorizedClient:
		return errUnauthorizedClient
	case exchange.InvalidTenant:
		return errInvalidTenant
	case exchange.FederationMismatch:
		return errFederation
	case exchange.FederatedTokenUnusable:
		return errFederatedToken
	case exchange.Throttled:
		return errThrottled
	case exchange.Unavailable:
		return errUnavailable
	case exchange.DeadlineExceeded:
		return errDeadline
	default:
		return errInternal
	}
}
