package exchange

import (
	"context"
	"fmt"
	"time"
)

// Kind says what a failure means to the caller: whether asking again can help,
// and whose configuration has to change. Package imds maps each to a status.
type Kind int

// Permanent kinds: asking again gives the same answer until someone changes the
// configuration.
const (
	// UnknownIdentity: the tenant has no application with this client ID.
	UnknownIdentity Kind = iota + 1
	// InvalidResource: the tenant does not know the resource.
	InvalidResource
	// InvalidScope: the resource cannot be made into a scope that Entra takes.
	InvalidScope
	// UnauthorizedClient: Entra knows the application and refuses it.
	UnauthorizedClient
	// InvalidTenant: the tenant, or the authority host, is not one Entra knows.
	InvalidTenant
)

// Transient kinds: the same request may succeed later.
const (
	// FederationMismatch: no federated credential matches the federated token.
	// It may be a fault, or a credential whose propagation takes minutes.
	FederationMismatch Kind = iota + 100
	// FederatedTokenUnusable: the federated token is missing, unreadable or expired.
	FederatedTokenUnusable
	// Throttled: Entra asks for fewer requests.
	Throttled
	// Unavailable: Entra cannot be reached, or answers with a fault of its own.
	Unavailable
	// DeadlineExceeded: the answer did not come within the time allowed.
	DeadlineExceeded
)

// Permanent reports whether asking again is pointless until a person acts.
func (k Kind) Permanent() bool { return k >= UnknownIdentity && k <= InvalidTenant }

// String names the kind in logs and metrics.
func (k Kind) String() string {
	switch k {
	case UnknownIdentity:
		return "unknown_identity"
	case InvalidResource:
		return "invalid_resource"
	case InvalidScope:
		return "invalid_scope"
	case UnauthorizedClient:
		return "unauthorized_client"
	case InvalidTenant:
		return "invalid_tenant"
	case FederationMismatch:
		return "federation_mismatch"
	case FederatedTokenUnusable:
		return "federated_token_unusable"
	case Throttled:
		return "throttled"
	case Unavailable:
		return "unavailable"
	case DeadlineExceeded:
		return "deadline_exceeded"
	}
	return fmt.Sprintf("kind(%d)", int(k))
}

// Error is a failed exchange. Its text is safe to log: it holds no token, no
// assertion and nothing that Entra sent but codes and identifiers.
type Error struct {
	// Kind says what the failure means to the caller.
	Kind Kind

	// Code is Entra's AADSTS number, such as 700016. Zero: Entra gave none.
	Code int

	// RetryAfter is how long to wait before asking again. Zero: not said.
	RetryAfter time.Duration

	// Detail is one lower-case clause for the log: what was wrong.
	Detail string

	// Fault is what kept Entra's answer from coming, or from being used. Nil: Entra
	// answered, or was not asked.
	Fault *Fault

	// TraceID and CorrelationID find the attempt in Entra's own logs. They are
	// GUIDs. Empty: Entra gave none.
	TraceID       string
	CorrelationID string

	// Hint is for the log: the command or the setting that mends it. It may hold
	// claims of the federated token. Empty: nothing in particular mends it.
	Hint string

	// retry is what to do before the caller is told.
	retry retryPolicy

	// hint is the advice that Hint is made of, once it is known for whom.
	hint hint

	// federated is the federated token that was used, for the log.
	federated FederatedToken

	// cause is the caller's own context error, which is safe to unwrap to.
	cause error
}

// Error says what was wrong, in one line.
func (e *Error) Error() string {
	if e.Code == 0 {
		return e.Detail
	}
	return fmt.Sprintf("%s (AADSTS%d)", e.Detail, e.Code)
}

// Unwrap returns the caller's context error where that is why it has no answer. It never
// returns an error of MSAL or of net/http, whose texts quote what was sent.
func (e *Error) Unwrap() error { return e.cause }

// after returns e with the time to wait, as it stands for one caller.
func (e *Error) after(wait time.Duration) *Error {
	copied := *e
	copied.RetryAfter = max(wait, 0)
	return &copied
}

// outOfTime is the answer to a caller whose wait ended before the exchange did:
// by its context, or by the bound on all waits.
func outOfTime(caller context.Context) *Error {
	e := &Error{Kind: DeadlineExceeded, Detail: "the exchange took too long", cause: context.DeadlineExceeded}
	if err := caller.Err(); err != nil {
		e.Detail, e.cause = "the caller left before the exchange was over", err
	}
	return e
}
