// Package exchange trades the pod's federated token for Entra access tokens.
//
// The federated token is the service-account token that the kubelet projects
// into the pod (audience api://AzureADTokenExchange). Entra takes it as a client
// assertion (RFC 7523) and answers with an access token for one client ID and
// one resource. MSAL makes that call; this package decides when to make it, and
// keeps the answers in memory until they expire.
//
//	tokens, err := exchange.New(exchange.Config{TenantID: …, FederatedTokenFile: …})
//	go tokens.Run(ctx) // warms up, and replaces tokens ahead of time
//	result, err := tokens.Token(ctx, exchange.Request{ClientID: …, Resource: …})
//
// It does not speak HTTP to the pod's applications (package imds does), and it
// never writes a token to disk.
//
// # Security considerations
//
// No error and no log line of this package holds an access token, a federated
// token, or a body that Entra sent: MSAL quotes such bodies in its errors, so
// nothing that MSAL says is passed on unfiltered.
package exchange

import (
	"fmt"
	"io"
	"time"
)

// Request names the access token that a caller wants.
type Request struct {
	// ClientID is the application (client) ID to ask for: a GUID in lower case.
	ClientID string

	// Resource is the v1 resource as the caller spelled it, a URI or a GUID.
	// It becomes the v2 scope Resource + "/.default".
	Resource string

	// Fresh says that a cached token will not do: the caller's was refused, or
	// it asked to bypass the cache. Such requests are rate-limited.
	Fresh bool
}

// Token is an Entra access token with its life.
type Token struct {
	// AccessToken is the bearer token itself: a secret, which is why it has no
	// JSON: loggers encode by reflection.
	AccessToken string `json:"-"`

	// NotBefore is when the exchange that obtained the token began.
	NotBefore time.Time

	// ExpiresOn is when Entra says that the token ends, by the clock on the wall as
	// it was when the token was handed out.
	ExpiresOn time.Time
}

// Format keeps the secret out of every verb of package fmt.
func (t Token) Format(f fmt.State, _ rune) {
	io.WriteString(f, "access token until "+t.ExpiresOn.UTC().Format(time.RFC3339))
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
	Token  Token
	Source Source
}
