// Package imds answers as the Azure instance metadata service (IMDS) does at
// http://169.254.169.254, so that unmodified client libraries get tokens from a
// pod that has no managed identity.
//
// It speaks IMDS's protocol and nothing else: it reads and validates requests,
// settles which identity is meant, asks a [TokenSource] for the token, and writes
// the answer in the bytes that clients rely on. What IMDS tells about the machine
// and not about its identity can be forwarded to the real one (see
// [Config.Passthrough]). It obtains no tokens and keeps none.
//
//	handler, err := imds.New(imds.Config{Tokens: exchanger, TenantID: tenant})
//	…
//	err = server.New(listener, server.Config{Handler: handler, …}).Serve()
//
// # Security considerations
//
// Whoever can connect gets tokens: the listener belongs on a loopback address.
// Requests that an attacker makes another program send (SSRF) lack the Metadata
// header or carry X-Forwarded-For or a foreign Host, and are refused.
//
// A request never gets another identity's token than the one it names, nor the
// node's: a path is forwarded only if its canonical spelling is on a short list
// that has nothing of /metadata/identity, and what is forwarded is written anew.
//
// Error descriptions are constants. Tokens, raw URIs and headers are never logged.
package imds

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"

	"go.uber.org/zap"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/tokens"
)

// TokenSource is what this package needs of package tokens.
type TokenSource interface {
	// Token returns a token that is valid now. A failure is an
	// [*exchange.Error], or an error whose text is safe to log.
	Token(ctx context.Context, req tokens.Request) (tokens.Result, error)
}

// Config says how to answer.
type Config struct {
	// Tokens is asked for every token. Required.
	Tokens TokenSource

	// TenantID is told to those who ask /metadata/identity/info. Required.
	TenantID azure.Tenant

	// DefaultClientID is the identity of requests that name none
	// (AZURE_CLIENT_ID). Empty: the only identity of Identities and
	// AllowedClientIDs; where there are none or several, such requests are refused.
	DefaultClientID azure.ClientID

	// Identities maps object IDs and ARM resource IDs to client IDs, for requests
	// by object_id, msi_res_id or mi_res_id. Empty: such requests are refused.
	Identities map[azure.Selector]azure.ClientID

	// AllowedClientIDs limits the client IDs that may be asked for; those of
	// DefaultClientID and Identities must be among them. Empty: any.
	AllowedClientIDs []azure.ClientID

	// StrictAPIVersion refuses requests without api-version, as IMDS does. False:
	// they are taken, since documented samples leave it out.
	StrictAPIVersion bool

	// Passthrough is the real IMDS, to which requests that are not about identity are
	// forwarded. Empty: they are not forwarded.
	Passthrough azure.MetadataURL

	// MaxConnections is how many clients may be connected to the server. Forwarded
	// requests take a quarter of them at the most. Zero: there is no limit.
	MaxConnections int

	// Fallback answers requests for all paths but the metadata service's. Where a path
	// is not served it answers as [NotFound] does, and a wrong method as
	// [MethodNotAllowed]. Nil: NotFound.
	Fallback http.Handler

	// Log gets one line per request. Nil: no logging.
	Log *zap.Logger

	// Observe is told of each request when it is over, in the request's own
	// goroutine: it must not wait, nor keep the request. Nil: nobody looks.
	Observe func(*http.Request, Event)

	// Version is shown in the Server header. Empty: the name alone.
	Version string

	// Now is the clock. Nil: time.Now.
	Now func() time.Time

	forwardLimits forwardLimits // for tests of this package
}

// ServerName begins the Server header of every answer of the proxy's own, and tells
// people and other proxies who answered.
const ServerName = "imds-oidc-proxy"

// Handler answers as IMDS does. It is safe for concurrent use.
type Handler struct {
	tokens     TokenSource
	identities identities
	forwarder  *forwarder // nil: forwarding is off
	log        *zap.Logger
	debug      bool                       // log takes that level
	observe    func(*http.Request, Event) // nil: nobody looks
	now        func() time.Time
	fallback   http.Handler
	outcomes   sync.Pool // of *outcome

	strictVersion   bool
	saidUnversioned sync.Once

	infoBody     []byte
	versionsBody []byte

	serverHeader []string // shared by all answers, and never changed
}

// Validate returns an error where identities do not go together. It names the proxy's flag
// or variable.
func (cfg Config) Validate() error {
	_, err := newIdentities(cfg)
	return err
}

// New returns a Handler, or says which part of the configuration is wrong.
func New(cfg Config) (*Handler, error) {
	if cfg.Tokens == nil {
		return nil, errors.New("no token source")
	}
	if cfg.TenantID == "" {
		return nil, errors.New("no tenant ID")
	}
	ids, err := newIdentities(cfg)
	if err != nil {
		return nil, err
	}
	h := &Handler{
		tokens:        cfg.Tokens,
		identities:    ids,
		forwarder:     newForwarder(cfg.Passthrough, cfg.MaxConnections, cfg.forwardLimits),
		log:           cfg.Log,
		fallback:      cfg.Fallback,
		observe:       cfg.Observe,
		now:           cfg.Now,
		strictVersion: cfg.StrictAPIVersion,
		infoBody:      appendInfo(nil, string(cfg.TenantID)),
		versionsBody:  appendVersions(nil, apiVersions()),
		serverHeader:  []string{serverName(cfg.Version)},
		outcomes:      sync.Pool{New: func() any { return new(outcome) }},
	}
	if h.log == nil {
		h.log = zap.NewNop()
	}
	h.debug = h.log.Core().Enabled(zap.DebugLevel)
	if h.now == nil {
		h.now = time.Now
	}
	if h.fallback == nil {
		h.fallback = http.HandlerFunc(NotFound)
	}
	return h, nil
}

func serverName(version string) string {
	if version == "" {
		return ServerName
	}
	return ServerName + "/" + version
}
