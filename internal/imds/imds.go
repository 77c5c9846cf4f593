// Package imds implements the protocol of the Azure instance metadata service (IMDS), so
// that unmodified client libraries, which send their requests to http://169.254.169.254,
// get tokens in a pod that has no managed identity.
//
// It serves the same tokens in the managed identity protocol of Azure App Service, for pods
// without a redirect (see [Config.AppServiceHeader]).
//
// The package validates requests, finds the identity that a request names, gets the token
// from a [TokenSource], and writes the answer byte for byte as clients expect it. It can
// forward requests for instance metadata, which are not about identity, to the real IMDS
// (see [Config.Passthrough]). It does not obtain or cache tokens itself.
//
//	handler, err := imds.New(imds.Config{Tokens: tokenService, TenantID: tenant})
//	…
//	err = server.New(listener, server.Config{Handler: handler, …}).Serve()
//
// # Security considerations
//
// Everybody who can connect gets tokens, so the listener must have a loopback address.
// Requests that an attacker causes another program to send (SSRF) are refused: they lack
// the Metadata header, or they have X-Forwarded-For. In the protocol of App Service they lack
// the header with the pod's secret, which is compared in constant time. DNS rebinding is
// refused by the Host header.
//
// A request never gets a token for an identity other than the one it names, nor for the
// node's identity. A path is forwarded only if its canonical form is on a short list
// without /metadata/identity, and the forwarded request is built from parsed values, so
// that the proxy and IMDS cannot read one path in two ways.
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

// TokenSource is the part of package tokens that this package uses.
type TokenSource interface {
	// Token returns a token that is valid now. An error is an [*exchange.Error], or its
	// text is safe to log.
	Token(ctx context.Context, req tokens.Request) (tokens.Result, error)
}

// Config configures a Handler.
type Config struct {
	// Tokens returns the tokens. Required.
	Tokens TokenSource

	// TenantID is the answer to /metadata/identity/info. Required.
	TenantID azure.Tenant

	// DefaultClientID is the identity for requests that name none (AZURE_CLIENT_ID).
	// Empty: if Identities and AllowedClientIDs have exactly one client ID, it is the
	// default; otherwise such requests are refused.
	DefaultClientID azure.ClientID

	// Identities maps object IDs and ARM resource IDs to client IDs, for requests
	// by object_id, msi_res_id or mi_res_id. For other such requests, Tokens gets the
	// selector, unless no client ID is configured here: then they are refused.
	Identities map[azure.Selector]azure.ClientID

	// AllowedClientIDs limits the client IDs that requests may name. It must include those
	// of DefaultClientID and Identities. Empty: no limit.
	AllowedClientIDs []azure.ClientID

	// AppServiceHeader is the value of the header with which requests in the protocol of App
	// Service are served at [azure.AppServicePath]. Empty: they are not served, and the path
	// is one that is not found.
	AppServiceHeader azure.AppServiceHeader

	// StrictAPIVersion refuses requests without api-version, as IMDS does. False: they are
	// accepted, because documented samples omit it.
	StrictAPIVersion bool

	// Instance answers requests for instance metadata (/metadata/instance), which then are
	// never forwarded. Nil: they are forwarded like those for the other categories.
	Instance *Instance

	// Passthrough is the URL of the real IMDS, which gets the requests for instance
	// metadata. Empty: no request is forwarded.
	Passthrough azure.MetadataURL

	// LearnSilence answers requests for instance metadata at once after a connection to the
	// real IMDS has timed out, until [Handler.Run] connects to it. False: each request waits
	// for a second.
	LearnSilence bool

	// MaxConnections is the connection limit of the server. Forwarded requests take at
	// most a quarter of the connections. Zero: there is no limit.
	MaxConnections int

	// Fallback answers requests for all paths outside the metadata service. For a path
	// that is not served it must answer as [NotFound], and for a wrong method as
	// [MethodNotAllowed]. Nil: NotFound.
	Fallback http.Handler

	// Log gets one line per request. Nil: no logging.
	Log *zap.Logger

	// Observe is called with each finished request, in the request's goroutine. It must not
	// block and must not keep the request. Nil: it is not called.
	Observe func(*http.Request, Event)

	// Version is shown in the Server header. Empty: the header has only the name.
	Version string

	// Now is the clock. Nil: time.Now.
	Now func() time.Time

	forwardLimits forwardLimits // for tests of this package
}

// ServerName is the start of the Server header in every answer that the proxy itself gives.
// It shows people and other proxies which server has answered.
const ServerName = "imds-oidc-proxy"

// Handler answers requests as IMDS does. It is safe for concurrent use.
type Handler struct {
	tokens     TokenSource
	identities identities
	instance   *Instance  // nil: there is none
	forwarder  *forwarder // nil: forwarding is off
	log        *zap.Logger
	debug      bool                       // log has the level debug enabled
	observe    func(*http.Request, Event) // nil: it is not called
	now        func() time.Time
	fallback   http.Handler
	outcomes   sync.Pool // of *outcome

	appServiceHeader []byte // empty: the protocol of App Service is not served

	strictVersion     bool
	loggedUnversioned sync.Once

	infoBody     []byte
	versionsBody []byte
	newestBody   []byte

	serverHeader []string // shared by all answers; never changed
}

// Validate returns an error if the fields about identities contradict each other. The error
// names the proxy's flag or environment variable.
func (cfg Config) Validate() error {
	_, err := newIdentities(cfg)
	return err
}

// New returns a Handler, or an error that says what is wrong with the configuration.
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
		instance:      cfg.Instance,
		forwarder:     newForwarder(cfg.Passthrough, cfg.MaxConnections, cfg.forwardLimits),
		log:           cfg.Log,
		fallback:      cfg.Fallback,
		observe:       cfg.Observe,
		now:           cfg.Now,
		strictVersion: cfg.StrictAPIVersion,

		appServiceHeader: []byte(cfg.AppServiceHeader),
		infoBody:         appendInfo(nil, string(cfg.TenantID)),
		versionsBody:     appendVersions(nil, apiVersions()),
		newestBody:       appendNewest(nil, apiVersions()),
		serverHeader:     []string{serverName(cfg.Version)},
		outcomes:         sync.Pool{New: func() any { return new(outcome) }},
	}
	if cfg.LearnSilence && h.forwarder != nil {
		h.forwarder.silence = newSilence(cfg.Passthrough, h.forwarder.transport.DialContext)
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
