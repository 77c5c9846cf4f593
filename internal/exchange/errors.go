package exchange

import (
	"fmt"
	"strconv"
	"time"

	"go.uber.org/zap/zapcore"
)

// Kind says what a failure means to the caller: whether asking again can help,
// and whose configuration has to change. Package imds maps each to a status.
type Kind int

// The kinds of failure. kinds names each and says which are permanent.
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
	// FederationMismatch: no federated credential matches the federated token.
	// It may be a fault, or a credential whose propagation takes minutes.
	FederationMismatch
	// FederatedTokenUnusable: the federated token is missing, unreadable or expired.
	FederatedTokenUnusable
	// Throttled: Entra, or a limit of the proxy, asks for fewer requests.
	Throttled
	// Unavailable: Entra cannot be reached, or answers with a fault of its own.
	Unavailable
	// DeadlineExceeded: the answer did not come within the time allowed.
	DeadlineExceeded
)

// kinds has the name of each kind in logs and metrics, and whether a failure of the
// kind stays the same until a person changes the configuration.
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
	FederatedTokenUnusable: {"federated_token_unusable", false},
	Throttled:              {"throttled", false},
	Unavailable:            {"unavailable", false},
	DeadlineExceeded:       {"deadline_exceeded", false},
}

func (k Kind) known() bool { return k >= UnknownIdentity && int(k) < len(kinds) }

// Permanent reports whether asking again is pointless until a person acts.
func (k Kind) Permanent() bool { return k.known() && kinds[k].permanent }

// String returns the name of the kind in logs and metrics.
func (k Kind) String() string {
	if !k.known() {
		return fmt.Sprintf("kind(%d)", int(k))
	}
	return kinds[k].name
}

// Retry says whether another try may succeed where one has failed. When it is made,
// and how often, is up to the caller.
type Retry int

const (
	// RetryNever: the same request fails the same way, or Entra asked for fewer
	// requests.
	RetryNever Retry = iota
	// RetrySoon: a few times, after jittered pauses.
	RetrySoon
	// RetryReread: once. Each try reads the federated token file again.
	RetryReread
)

// Error is a failed exchange. Its text is safe to log: it holds no token, no
// assertion, and nothing that Entra sent but codes and identifiers.
type Error struct {
	// Kind says what the failure means to the caller.
	Kind Kind

	// Code is Entra's AADSTS number, such as 700016. Zero: Entra gave none.
	Code int

	// RetryAfter is how long to wait before asking again. Zero: not said.
	RetryAfter time.Duration

	// Retry says whether another try may succeed.
	Retry Retry

	// Detail is one lower-case clause for the log: what was wrong.
	Detail string

	// Fault is what kept Entra's answer from coming, or from being used. Nil: Entra
	// answered, or was not asked.
	Fault *Fault

	// TraceID and CorrelationID find the attempt in Entra's own logs. They are
	// GUIDs. Empty: Entra gave none.
	TraceID       string
	CorrelationID string

	// Hint is for the log: the command or the setting that fixes it. It may hold
	// claims of the federated token. Empty: nothing in particular fixes it.
	Hint string

	// Cause is what Unwrap returns: the error of the caller's context.
	// Never an error of MSAL or of net/http: their texts quote what was sent.
	Cause error

	// hint is the advice that Hint is made of.
	hint hint

	// federated has the claims of the federated token that was used, for the log.
	// Nil: none was read.
	federated *FederatedToken
}

// Error says what was wrong, in one line.
func (e *Error) Error() string {
	if e.Code == 0 {
		return e.Detail
	}
	return fmt.Sprintf("%s (AADSTS%d)", e.Detail, e.Code)
}

// Unwrap returns Cause.
func (e *Error) Unwrap() error { return e.Cause }

// Label names the failure in metrics: Entra's AADSTS number if this package knows it,
// "other" if it does not, and the kind if Entra gave none. So there are a few dozen
// names, whatever an answer holds.
func (e *Error) Label() string {
	if e.Code == 0 {
		return e.Kind.String()
	}
	if _, known := rulingOn([]int{e.Code}); !known {
		return "other"
	}
	return strconv.Itoa(e.Code)
}

// MarshalLogObject implements [zapcore.ObjectMarshaler]: it writes what the log says
// of a failure. Most of it is not sent to clients.
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
