package exchange

import (
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
}
