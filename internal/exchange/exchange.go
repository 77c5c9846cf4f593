// Package exchange trades the pod's federated token for an Entra access token, once
// for each call.
//
// The federated token is the service-account token that the kubelet projects into the
// pod (audience api://AzureADTokenExchange). Entra takes it as a client assertion
// (RFC 7523) and answers with an access token for one client ID and one resource. MSAL
// makes that call; this package has the way to Entra around it: the token file, the
// connection, the tenant's OpenID configuration, and what Entra's errors mean.
//
//	exchanger, err := exchange.New(exchange.Config{TenantID: …, FederatedTokenFile: …})
//	defer exchanger.Close()
//	grant, err := exchanger.Exchange(ctx, clientID, resource)
//
// It keeps no access token, and never tries again by itself: an [*Error] says whether
// another try may succeed, and package tokens decides when to make it.
//
// # Security considerations
//
// No error and no log line of this package holds an access token, a federated token,
// or a body that Entra sent: MSAL quotes such bodies in its errors, so nothing that
// MSAL says is passed on unfiltered.
package exchange

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/AzureAD/microsoft-authentication-library-for-go/apps/confidential"

	"imds-oidc-proxy/internal/azure"
)

const (
	// discoverTimeout bounds discovery, with the connection that it takes. The
	// resolver alone takes 5 s to get over one lost packet.
	discoverTimeout = 8 * time.Second

	// MinLife is the least time that a token has left when it is of use: clients
	// count whole seconds, some crash on none, and their answer is yet to be written.
	MinLife = 2 * time.Second

	// unknownClient stands in for a client ID where none is sent.
	unknownClient = "00000000-0000-0000-0000-000000000000"
)

// Token is an Entra access token with its life.
type Token struct {
	// AccessToken is the bearer token itself: a secret, which is why it has no
	// JSON: loggers encode by reflection.
	AccessToken string `json:"-"`

	// NotBefore is when the exchange that obtained the token began.
	NotBefore time.Time

	// ExpiresOn is when Entra says that the token ends, by the wall clock. It has no
	// monotonic reading, since the monotonic clock stands still while a machine sleeps.
	ExpiresOn time.Time
}

// Format keeps the secret out of every verb of package fmt.
func (t Token) Format(f fmt.State, _ rune) {
	io.WriteString(f, "access token until "+t.ExpiresOn.UTC().Format(time.RFC3339))
}

// Grant is what a successful exchange returns.
type Grant struct {
	Token Token

	// RefreshOn is when Entra asks for the token to be replaced. Zero: not said.
	RefreshOn time.Time
}

// Exchanger makes exchanges for one tenant. It is safe for concurrent use.
//
// It makes an MSAL client for each exchange. MSAL's clients have a token cache of
// their own, which would answer in place of Entra, and which tells resources apart
// without regard to case; a client's first call finds it empty. What is costly to lose
// with the client, the discovery document and the connection, is kept by the HTTP
// client.
type Exchanger struct {
	authority string
	peer      string                    // who answers, for errors
	way       func(failed error) string // how a request got there, for errors
	tokenFile *sharedFile[FederatedToken]
	discovery *discovery
	http      *http.Client // on top of discovery
}

// New returns an Exchanger for cfg, or an error that names the flag or variable to
// change. It reads the files of certificates; it opens no connection and starts no
// goroutine.
func New(cfg Config) (*Exchanger, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	transport, err := newTransport(cfg)
	if err != nil {
		return nil, err
	}
	return newExchanger(cfg, transport), nil
}

// newExchanger takes a whole configuration, and what carries requests to Entra.
func newExchanger(cfg Config, transport http.RoundTripper) *Exchanger {
	discovery := &discovery{next: &guard{next: transport}}
	return &Exchanger{
		authority: string(cfg.AuthorityHost) + string(cfg.TenantID),
		peer:      cfg.peer(),
		way:       cfg.way,
		tokenFile: newTokenFile(cfg.FederatedTokenFile),
		discovery: discovery,
		http:      &http.Client{Transport: discovery, CheckRedirect: noRedirect},
	}
}

// Exchange makes one token request, for as long as ctx lets it. Its error is an [*Error].
func (e *Exchanger) Exchange(ctx context.Context, clientID azure.ClientID, resource azure.Resource) (Grant, error) {
	token, err := e.tokenFile.read(ctx)
	if err == nil {
		err = e.tokenFile.about(token.usable(time.Now()))
	}
	if err != nil {
		return Grant{}, (&Error{Kind: FederatedTokenUnusable, Detail: bounded(err.Error())}).advised(clientID, resource, token)
	}
	grant, failed := e.request(ctx, clientID, resource, token)
	if failed != nil {
		return Grant{}, failed.advised(clientID, resource, token)
	}
	return grant, nil
}

// request sends the token request, with token as the assertion.
func (e *Exchanger) request(ctx context.Context, clientID azure.ClientID, resource azure.Resource, token FederatedToken) (Grant, *Error) {
	began := time.Now()
	result, used, err := e.acquire(ctx, clientID, scope(resource), func() (string, error) { return *token.raw, nil })
	if err != nil {
		failed := classify(ctx, err, e.peer, e.way(err))
		e.discovery.judge(used, failed.Code != 0)
		return Grant{}, failed
	}
	e.discovery.judge(used, true)
	if fault := unusable(result, began); fault != "" {
		return Grant{}, &Error{Kind: Unavailable, Detail: fault}
	}
	return Grant{
		Token:     Token{AccessToken: result.AccessToken, NotBefore: began, ExpiresOn: result.ExpiresOn.Round(0)},
		RefreshOn: result.Metadata.RefreshOn,
	}, nil
}

// advised fills in Hint, and the claims that the log shows.
func (e *Error) advised(clientID azure.ClientID, resource azure.Resource, token FederatedToken) *Error {
	e.Hint = e.hint.advise(string(clientID), string(resource), token)
	if token.raw != nil {
		e.federated = token.boundedClaims()
	}
	return e
}

// errDiscovered stops MSAL where it asks for the assertion: discovery is done by then,
// and the connection is open.
var errDiscovered = errors.New("only discovery was wanted")

// Discover does what an exchange does before its token request: it connects to Entra,
// verifies its certificate and reads the tenant's OpenID configuration, within 8
// seconds. The next exchange is faster for it. Its error is an [*Error].
func (e *Exchanger) Discover(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, discoverTimeout)
	defer cancel()
	_, _, err := e.acquire(ctx, unknownClient, scope(unknownClient), func() (string, error) { return "", errDiscovered })
	if errors.Is(err, errDiscovered) {
		return nil
	}
	return classify(ctx, err, e.peer, e.way(err)).advised("", "", FederatedToken{})
}

// Close closes the idle connections, and ends a discovery that nobody waits for.
func (e *Exchanger) Close() { e.http.CloseIdleConnections() }

// acquire also returns the discovery document that MSAL was given; nil: there was none.
func (e *Exchanger) acquire(ctx context.Context, clientID azure.ClientID, scope string, assertion func() (string, error)) (confidential.AuthResult, *document, error) {
	ctx, used := noteDocument(ctx)
	fits := false
	credential := confidential.NewCredFromAssertionCallback(
		func(context.Context, confidential.AssertionRequestOptions) (string, error) {
			fits = true // MSAL judges the document before it asks for the assertion
			return assertion()
		})
	client, err := confidential.New(e.authority, string(clientID), credential,
		confidential.WithHTTPClient(e.http),
		// Instance discovery would ask the public cloud about private authorities.
		confidential.WithInstanceDiscovery(false),
		confidential.WithAzureRegion(noRegion))
	if err != nil {
		return confidential.AuthResult{}, nil, err
	}
	result, err := client.AcquireTokenByCredential(ctx, []string{scope})
	if err != nil && *used != nil && !fits {
		err = &misfit{(*used).configuration(), err}
	}
	return result, *used, err
}
