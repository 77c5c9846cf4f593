// Package exchange exchanges the pod's federated token for an Entra access token.
//
// The federated token is the service-account token that the kubelet projects into the
// pod (audience api://AzureADTokenExchange). Entra accepts it as a client assertion
// (RFC 7523) and answers with an access token for one client ID and one resource. MSAL
// makes that request. This package does the rest: it reads the token file, connects to
// Entra, gets the tenant's OpenID configuration, and interprets Entra's errors.
//
//	exchanger, err := exchange.New(exchange.Config{TenantID: …, FederatedTokenFile: …})
//	defer exchanger.Close()
//	grant, err := exchanger.Exchange(ctx, clientID, resource)
//
// The package does not cache access tokens and does not retry: an [*Error] says whether a
// retry may succeed, and package tokens decides when to make it.
//
// # Security considerations
//
// No error and no log line of this package contains an access token, a federated token,
// or a response body. MSAL's errors quote such bodies, so their texts are never passed
// on.
package exchange

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"

	"github.com/AzureAD/microsoft-authentication-library-for-go/apps/confidential"

	"imds-oidc-proxy/internal/azure"
)

const (
	// discoverTimeout bounds discovery, including the connection. The resolver alone
	// takes 5 s to recover from one lost packet.
	discoverTimeout = 8 * time.Second

	// MinLife is the least remaining lifetime of a token that is returned: clients
	// count whole seconds, some crash on zero, and writing the answer takes time.
	MinLife = 2 * time.Second

	// unknownClient is the client ID for MSAL when no token request is sent.
	unknownClient = "00000000-0000-0000-0000-000000000000"
)

// Token is an Entra access token with its lifetime.
type Token struct {
	// AccessToken is the bearer token, a secret. It is excluded from JSON because
	// loggers encode values by reflection.
	AccessToken string `json:"-"`

	// NotBefore is when the exchange that obtained the token began.
	NotBefore time.Time

	// ExpiresOn is when the token expires, by the wall clock. It has no monotonic
	// reading, since the monotonic clock stops while a machine sleeps.
	ExpiresOn time.Time
}

// Format keeps the secret out of every verb of package fmt.
func (t Token) Format(f fmt.State, _ rune) {
	io.WriteString(f, "access token until "+t.ExpiresOn.UTC().Format(time.RFC3339))
}

// Grant is what a successful exchange returns.
type Grant struct {
	Token Token

	// RefreshOn is when Entra asks for a refresh of the token (refresh_in). Zero: Entra
	// does not say.
	RefreshOn time.Time
}

// Exchanger makes exchanges for one tenant. It is safe for concurrent use.
//
// It makes an MSAL client for each exchange. An MSAL client has its own token cache, which
// would answer instead of Entra and ignores the case of resources. The cache of a new client
// is empty. The HTTP client, which all MSAL clients share, keeps what is expensive: the
// discovery document and the connection.
type Exchanger struct {
	authority string
	peer      peer
	via       func(failed error) string // the HTTP proxy in between, for errors
	tokenFile *sharedFile[FederatedToken]
	guard     *guard
	discovery *discovery   // on top of guard
	http      *http.Client // on top of discovery
}

// New returns an Exchanger for cfg, or an error that names the flag or environment variable
// to change. It reads the files of certificates, but opens no connection and starts no
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

// newExchanger returns an Exchanger for a complete configuration and a transport to Entra.
func newExchanger(cfg Config, transport http.RoundTripper) *Exchanger {
	guard := &guard{next: transport, authority: cfg.AuthorityHost}
	if cfg.Binding.TokenProxy != "" {
		guard.authority = "" // the token proxy gets the request, whatever its host
	}
	discovery := &discovery{next: guard}
	return &Exchanger{
		authority: string(cfg.AuthorityHost) + string(cfg.TenantID),
		peer:      cfg.peer(),
		via:       cfg.via,
		tokenFile: newTokenFile(cfg.FederatedTokenFile),
		guard:     guard,
		discovery: discovery,
		http:      &http.Client{Transport: discovery, CheckRedirect: noRedirect},
	}
}

// Exchange makes one token request. It returns when ctx ends at the latest. Its error is an
// [*Error].
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
		failed := classify(ctx, err, e.peer, e.via(err))
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

// advised sets Hint, and the claims for the log.
func (e *Error) advised(clientID azure.ClientID, resource azure.Resource, token FederatedToken) *Error {
	if (e.hint == hintCredential || e.hint == hintCase) && slices.Contains(token.Audiences, azure.BindingAudience) {
		e.hint = hintUnbound
	}
	e.Hint = e.hint.advise(e.Code, string(clientID), string(resource), token)
	if token.raw != nil {
		e.federated = token.boundedClaims()
	}
	return e
}

// errDiscovered stops MSAL when it asks for the assertion: by then, discovery has succeeded
// and the connection is open.
var errDiscovered = errors.New("stopped after discovery")

// Discover does what an exchange does before its token request: it connects to Entra,
// verifies its certificate and reads the tenant's OpenID configuration, within 8
// seconds. This makes the next exchange faster. Its error is an [*Error].
func (e *Exchanger) Discover(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, discoverTimeout)
	defer cancel()
	_, _, err := e.acquire(ctx, unknownClient, scope(unknownClient), func() (string, error) { return "", errDiscovered })
	if errors.Is(err, errDiscovered) {
		return nil
	}
	return classify(ctx, err, e.peer, e.via(err)).advised("", "", FederatedToken{})
}

// Close closes the idle connections, and cancels a discovery in the background.
func (e *Exchanger) Close() { e.http.CloseIdleConnections() }

// acquire requests a token by MSAL. It also returns the discovery document that MSAL got, nil
// if it got none.
func (e *Exchanger) acquire(ctx context.Context, clientID azure.ClientID, scope string, assertion func() (string, error)) (confidential.AuthResult, *document, error) {
	ctx, used := noteDocument(ctx)
	fits := false
	credential := confidential.NewCredFromAssertionCallback(
		func(context.Context, confidential.AssertionRequestOptions) (string, error) {
			// MSAL has validated the rest of the document before it asks for the assertion.
			if err := (*used).checkEndpoint(e.guard); err != nil {
				return "", err
			}
			fits = true
			return assertion()
		})
	client, err := confidential.New(e.authority, string(clientID), credential,
		confidential.WithHTTPClient(e.http),
		// Instance discovery would ask the public cloud about private authority hosts.
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
