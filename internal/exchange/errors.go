package exchange

import (
	"fmt"
	"strconv"
	"time"

	"go.uber.org/zap/zapcore"
)

// Kind says what a failure means to the caller: whether a retry can help, and what
// configuration must change. Package imds maps each kind to a status.
type Kind int

// The kinds of failure. The table kinds has their names, and says which are permanent.
const (
	// UnknownIdentity: the tenant has no application with this client ID.
	UnknownIdentity Kind = iota + 1
	// InvalidResource: the tenant does not know the resource.
	InvalidResource
	// InvalidScope: Entra does not accept the scope made of the resource.
	InvalidScope
	// UnauthorizedClient: Entra knows the application and refuses it.
	UnauthorizedClient
	// InvalidTenant: Entra does not know the tenant.
	InvalidTenant
	// FederationMismatch: no federated credential matches the federated token. Either
	// the configuration is wrong, or a new credential has not been replicated yet, which
	// takes minutes.
	FederationMismatch
	// BindingMismatch: the token proxy of an identity binding does not let the service
	// account use the identity.
	BindingMismatch
	// IssuerUnusable: Entra cannot read the documents of the federated token's issuer, or
	// does not accept them.
	IssuerUnusable
	// FederatedTokenUnusable: the federated token is missing, unreadable or expired.
	FederatedTokenUnusable
	// Refused: Entra refuses the request for another reason, which this package may not
	// know, and which may pass.
	Refused
	// Throttled: Entra throttles requests, or a limit of the proxy refuses them.
	Throttled
	// Unavailable: Entra cannot be reached, or has an internal error.
	Unavailable
	// DeadlineExceeded: the response did not arrive in time.
	DeadlineExceeded
)

// kinds has the name of each kind in logs and metrics, and whether a failure of the
// kind lasts until a person changes the configuration.
var kinds = [...]struct {
	name      string
	permanent bool
}{
	UnknownIdentity:        {"unknown_identity", true},
	InvalidResource:        {"invalid_resource", true},
	InvalidScope:           {"invalid_scope", true},
	UnauthorizedClient:     {"unauthorized_client", true},
	InvalidTenant:          {"invalid_tenant", true},
	FederationMismatch:     {"federation_mismatch", false},
	BindingMismatch:        {"binding_mismatch", false},
	IssuerUnusable:         {"issuer_unusable", false},
	FederatedTokenUnusable: {"federated_token_unusable", false},
	Refused:                {"refused", false},
	Throttled:              {"throttled", false},
	Unavailable:            {"unavailable", false},
	DeadlineExceeded:       {"deadline_exceeded", false},
}

func (k Kind) known() bool { return k >= UnknownIdentity && int(k) < len(kinds) }

// Permanent reports whether retries fail until a person changes the configuration.
func (k Kind) Permanent() bool { return k.known() && kinds[k].permanent }

// String returns the name of the kind in logs and metrics.
func (k Kind) String() string {
	if !k.known() {
		return fmt.Sprintf("kind(%d)", int(k))
	}
	return kinds[k].name
}

// Retry says whether a retry may succeed. The caller decides when and how often to retry.
type Retry int

const (
	// RetryNever: the same request would fail again, or Entra throttles requests.
	RetryNever Retry = iota
	// RetrySoon: retry a few times, after pauses with jitter.
	RetrySoon
	// RetryReread: retry once, since each try reads the federated token file again.
	RetryReread
	// RetryOnce: retry once, after a pause. It is unknown whether this helps.
	RetryOnce
)

// Error is a failed exchange. Its text is safe to log: it contains no token, no assertion, and
// of Entra's response only codes and identifiers.
type Error struct {
	// Kind says what the failure means to the caller.
	Kind Kind

	// Code is Entra's AADSTS number, such as 700016. Zero: there is none.
	Code int

	// RetryAfter is how long to wait before a retry. Zero: unknown.
	RetryAfter time.Duration

	// Retry says whether a retry may succeed.
	Retry Retry

	// Detail is one lower-case clause for the log that says what was wrong.
	Detail string

	// Fault says why there was no response of Entra, or none that can be used. Nil: Entra
	// responded, or no request was sent.
	Fault *Fault

	// TraceID and CorrelationID identify the request in Entra's logs. They are GUIDs.
	// Empty: the response has none.
	TraceID       string
	CorrelationID string

	// Hint is for the log: the command or the setting that fixes the failure. It may
	// contain claims of the federated token. Empty: there is no particular fix.
	Hint string

	// Cause is what Unwrap returns: the error of the caller's context, or a sentinel of
	// package tokens. It is never an error of MSAL or of net/http, whose texts quote the
	// request.
	Cause error

	// hint is the advice from which Hint is made.
	hint hint

	// federated has the claims of the federated token, for the log. Nil: none was read.
	federated *FederatedToken
}

// Error returns Detail and the AADSTS code.
func (e *Error) Error() string {
	if e.Code == 0 {
		return e.Detail
	}
	return fmt.Sprintf("%s (AADSTS%d)", e.Detail, e.Code)
}

// Unwrap returns Cause.
func (e *Error) Unwrap() error { return e.Cause }

// Label returns the name of the failure in metrics: the AADSTS number if this package knows it,
// "other" if it does not, and the kind if there is no AADSTS number. So there are less than two
// hundred names, whatever a response contains.
func (e *Error) Label() string {
	if e.Code == 0 {
		return e.Kind.String()
	}
	if _, known := rulingOn([]int{e.Code}); !known {
		return "other"
	}
	return strconv.Itoa(e.Code)
}

// MarshalLogObject implements [zapcore.ObjectMarshaler]. Most of these fields are not sent to
// clients.
func (e *Error) MarshalLogObject(enc zapcore.ObjectEncoder) error {
	enc.AddString("error", e.Detail)
	enc.AddString("kind", e.Kind.String())
	if e.Code != 0 {
		enc.AddInt("aadsts", e.Code)
	}
	if e.TraceID != "" || e.CorrelationID != "" {
		enc.AddString("trace_id", e.TraceID)
		enc.AddString("correlation_id", e.CorrelationID)
	}
	if e.federated != nil {
		if err := enc.AddObject("federated_token", e.federated); err != nil {
			return err
		}
	}
	if e.Hint != "" {
		enc.AddString("hint", e.Hint)
	}
	return nil
}
