package imds

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"strconv"
	"time"

	"imds-oidc-proxy/internal/exchange"
)

// wireError is an error response. Its description is constant: details of a failure
// go to the log (see [refused]) and never to the client.
//
// The status follows from what clients do with it. After 400 some clients give up for
// good, so 400 is for errors that do not go away by themselves. After 404, 408, 410, 429
// and any 5xx some clients ask again for many seconds, so probes are refused with 403 (see
// errIdentityPath). Some clients do not retry after 502 and 503, so transient errors of the
// token endpoint have status 500.
type wireError struct {
	status      int
	code        string // one of IMDS's error codes
	reason      string // unique name of this error, for metrics
	description string
	failure     bool // the request was valid, although the status is a client's error
}

func (e *wireError) Error() string { return e.description }

func newWireError(status int, code, reason, description string) *wireError {
	return &wireError{status: status, code: code, reason: reason, description: description}
}

// failure returns an error for a valid request, whose status ends the client's tries.
func failure(code, reason, description string) *wireError {
	e := newWireError(http.StatusForbidden, code, reason, description)
	e.failure = true
	return e
}

func invalidRequest(reason, description string) *wireError {
	return newWireError(http.StatusBadRequest, "invalid_request", reason, description)
}

// Errors of invalid requests.
var (
	errNoMetadataHeader  = invalidRequest("no_metadata_header", "Required metadata header not specified")
	errForwardedFor      = invalidRequest("forwarded_for", "Requests with an X-Forwarded-For header are not served")
	errForeignHost       = invalidRequest("foreign_host", "The Host header must be an IP address or localhost")
	errRequestBody       = invalidRequest("request_body", "A token request has no body")
	errMalformedQuery    = invalidRequest("malformed_query", "The query is malformed")
	errDuplicateParam    = invalidRequest("duplicate_param", "A query variable is given more than once")
	errParamCase         = invalidRequest("param_case", "Query variable names are lower case")
	errNoAPIVersion      = invalidRequest("no_api_version", "Required query variable 'api-version' is missing")
	errUnknownAPIVersion = invalidRequest("unknown_api_version", "The value of 'api-version' is not a known version")
	errNoResource        = invalidRequest("no_resource", "Required query variable 'resource' is missing")
	errMalformedResource = newWireError(http.StatusBadRequest, "invalid_resource", "malformed_resource", "The value of 'resource' must be a URI or a GUID")
	errSeveralSelectors  = invalidRequest("several_selectors", "At most one of 'client_id', 'object_id', 'msi_res_id' and 'mi_res_id' may be given")
	errUnknownSelector   = invalidRequest("unknown_selector", "A query variable seems to name an identity, and is not known; use 'client_id', 'object_id', 'msi_res_id' or 'mi_res_id'")
	errIdentityNotFound  = invalidRequest("identity_not_found", "Identity not found")
	errIdentityAmbiguous = invalidRequest("identity_ambiguous", "Multiple user assigned identities exist, please specify the clientId / resourceId of the identity in the token request")
	errUnknownFormat     = invalidRequest("unknown_format", "The value of 'format' must be json or text")
	errInstanceLeaf      = invalidRequest("instance_leaf", "This element is a value, not an object: request it with format=text")
	errInstanceMissing   = newWireError(http.StatusForbidden, "not_found", "instance_missing", "The instance metadata of this pod has no such element")
	errNotFound          = newWireError(http.StatusNotFound, "not_found", "not_found", "This path is not served")
	errForwardingOff     = newWireError(http.StatusForbidden, "forbidden", "forwarding_off", "This path is not served: forwarding to the instance metadata service is off")
	errMethodNotAllowed  = newWireError(http.StatusMethodNotAllowed, "method_not_allowed", "method_not_allowed", "The method must be GET")
)

// errIdentityPath is for all paths of identity that are not served, also without the
// Metadata header. Clients look there for a newer protocol of IMDS (getplatformmetadata,
// issuecredential, credential): MSAL.NET, and with it Azure.Identity, and previews of MSAL
// for Java, Go and Node. 403 ends it at once for all of them:
//
//   - 400 means that IMDS has the protocol (MSAL.NET, ImdsManagedIdentitySource.cs).
//   - 404 is retried for up to 25 seconds, and 410 for 70, by Azure.Core 1.59 to 1.62
//     (ManagedIdentityResponseClassifier.cs, ImdsRetryDelayStrategy.cs;
//     azure-sdk-for-net#62761), and 404 and 410 by MSAL after the probe.
//   - 408, 429 and 5xx are retried by all (MSAL.NET, HttpRetryConditions.cs; MSAL4J,
//     IMDSRetryPolicy.java; msal-node, ImdsRetryPolicy.ts; MSAL Go, managedidentity.go).
//
// The description must not contain the word unreachable: to azidentity and Azure.Identity
// a 403 with it comes from Docker Desktop.
var errIdentityPath = newWireError(http.StatusForbidden, "forbidden", "identity_path", "This path of identity is not served")

// Errors of requests in the protocol of App Service without the right secret. No client repeats
// a request after 401. Microsoft's ODBC driver repeats it after 403, for 18 seconds. There is no
// WWW-Authenticate header: it is the challenge of another protocol, that of Azure Arc.
var (
	errNoSecretHeader    = newWireError(http.StatusUnauthorized, "access_denied", "no_secret_header", "Required header X-IDENTITY-HEADER or secret not specified")
	errWrongSecretHeader = newWireError(http.StatusUnauthorized, "access_denied", "wrong_secret_header", "The request must have one header X-IDENTITY-HEADER or secret, with the value of IDENTITY_HEADER")
)

// exchangeErrors maps each kind of failed exchange to its wire error.
var exchangeErrors = map[exchange.Kind]*wireError{
	exchange.UnknownIdentity:        errIdentityNotFound,
	exchange.InvalidResource:        newWireError(http.StatusBadRequest, "invalid_resource", "invalid_resource", "The resource is not known in the tenant"),
	exchange.InvalidScope:           newWireError(http.StatusBadRequest, "invalid_scope", "invalid_scope", "The resource cannot be used as a scope"),
	exchange.UnauthorizedClient:     newWireError(http.StatusBadRequest, "unauthorized_client", "unauthorized_client", "The identity may not be used"),
	exchange.InvalidTenant:          invalidRequest("invalid_tenant", "The tenant was not found"),
	exchange.FederationMismatch:     newWireError(http.StatusInternalServerError, "server_error", "federation", "No federated credential of the identity matches the service account token"),
	exchange.BindingMismatch:        newWireError(http.StatusInternalServerError, "server_error", "binding", "The identity binding of the cluster does not let the service account use the identity"),
	exchange.IssuerUnusable:         newWireError(http.StatusInternalServerError, "server_error", "issuer", "The documents of the service account token's issuer cannot be read"),
	exchange.FederatedTokenUnusable: newWireError(http.StatusInternalServerError, "server_error", "federated_token", "The service account token cannot be used"),
	exchange.Refused:                newWireError(http.StatusInternalServerError, "server_error", "refused", "Entra refused the request"),
	exchange.Throttled:              newWireError(http.StatusTooManyRequests, "too_many_requests", "throttled", "Too many requests; try again later"),
	exchange.Unavailable:            newWireError(http.StatusInternalServerError, "service_unavailable", "unavailable", "The token service is not available; try again"),
	exchange.DeadlineExceeded:       errDeadline,
}

// Errors of token requests for failures that have no exchange.Kind.
var (
	errDeadline = newWireError(http.StatusInternalServerError, "service_unavailable", "deadline", "The token service did not answer in time; try again")
	errInternal = newWireError(http.StatusInternalServerError, "server_error", "internal", "The token could not be acquired")
)

// Errors of forwarded requests. If there is no answer, or the redirect is wrong, a retry does
// not help, and some clients retry 404 and all 5xx: MSAL.NET 4.84 and later asks for
// /metadata/instance/compute before its first token, and for 7 seconds. So the status is 403.
// The errors of IMDS itself are forwarded with their own status.
var (
	errIMDSUnavailable = failure("service_unavailable", "imds_unavailable", "The instance metadata service did not give a usable answer; outside Azure there is none")
	errForwardingLoop  = failure("server_error", "forwarding_loop", "The forwarded request came back to this proxy")
	errForwardingBusy  = newWireError(http.StatusTooManyRequests, "too_many_requests", "forwarding_busy", "Too many requests to the instance metadata service; try again later")
)

// statusClientLeft is the status in the log if the client closed the connection before
// it got the answer. It is never sent. nginx uses the same number.
const statusClientLeft = 499

// errClientLeft is the result of a request whose client closed the connection.
var errClientLeft = &wireError{status: statusClientLeft, reason: "client_left", description: "the client closed the connection before it got the answer"}

// refusal is a wireError with its cause, which only the log shows.
type refusal struct {
	wire  *wireError
	cause string
}

func refused(wire *wireError, cause string) error { return &refusal{wire, cause} }

func (e *refusal) Error() string { return e.wire.description + ": " + e.cause }
func (e *refusal) Unwrap() error { return e.wire }

// maxRetryAfter caps the Retry-After from Entra that clients get: they sleep that long,
// and most have a deadline of 30 seconds or less. minRetryAfter is the smallest value
// that the header can express.
const (
	minRetryAfter = time.Second
	maxRetryAfter = 10 * time.Second
)

// answer is an error response with the details of one failure.
type answer struct {
	status      int
	code        string
	description string
	retryAfter  time.Duration // zero: no Retry-After header
}

// answerFor returns the response for an error. Nothing else decides what a client reads
// about an error.
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
	wire := cmp.Or(exchangeErrors[e.Kind], errInternal)
	a := answer{status: wire.status, code: wire.code, description: wire.description}
	if e.Code != 0 {
		a.description += " (AADSTS" + strconv.Itoa(e.Code) + ")"
	}
	if a.status == http.StatusTooManyRequests {
		a.retryAfter = min(max(e.RetryAfter, minRetryAfter), maxRetryAfter)
	}
	return a
}
