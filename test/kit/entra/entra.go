// Package entra is a fake (a stand-in) of Microsoft Entra ID and of the cluster's OIDC
// issuer, for tests, the demo and benchmarks.
//
// It serves HTTPS with a certificate of its own temporary CA: instance discovery, tenant
// discovery, the v2 token endpoint, and, below [Server.Issuer], the issuer's discovery
// document and keys. The token endpoint checks a request as Entra does: it fetches the
// issuer's keys, verifies the assertion against the application's federated credentials,
// and answers with Entra's error texts and AADSTS codes.
//
//	idp, err := entra.Start(entra.Config{})
//	defer idp.Close()
//	idp.AddApplication(entra.Application{
//		ClientID:    "0f0f0f0f-…",
//		Credentials: []entra.FederatedCredential{{Subject: "system:serviceaccount:shop:cart"}},
//	})
//	token, err := idp.ProjectToken(entra.ProjectedTokenConfig{Dir: dir, Subject: "system:serviceaccount:shop:cart"})
//	// AZURE_AUTHORITY_HOST=idp.AuthorityHost() AZURE_TENANT_ID=idp.TenantID()
//	// AZURE_FEDERATED_TOKEN_FILE=token.Path(), and idp.WriteCA(…) for the CA file
//
// Tests can make it fail ([Server.FailNext], [Server.FailAlways], [Server.FailWhen]). It
// records the token requests ([Server.Exchanges]).
//
// # Security considerations
//
// It must never be used as a real identity provider: any code that has the Server can sign
// any token. By default it listens on loopback.
package entra

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

// The defaults of Config.
const (
	// DefaultTenantID is a made-up tenant.
	DefaultTenantID = "11111111-2222-4333-8444-555555555555"

	// DefaultAudience is the audience that Entra requires of federated tokens.
	DefaultAudience = "api://AzureADTokenExchange"

	// DefaultTokenLifetime is the lifetime of Entra's tokens for managed identities.
	DefaultTokenLifetime = 24 * time.Hour

	// DefaultHost is the host of the authority of a Server without a listener.
	DefaultHost = "login.example.test"
)

// issuerPath is the path of the cluster's issuer, so that one server serves both.
const issuerPath = "/cluster"

// headerTimeout bounds how long a connection may take to send a request's header.
const headerTimeout = 10 * time.Second

// Config configures the tenant. The zero value works.
type Config struct {
	// TenantID is the only tenant. Empty: DefaultTenantID.
	TenantID string

	// Listen is the address at which Start listens. Clients must be able to dial it.
	// Empty: 127.0.0.1, any port.
	Listen string

	// Host is the host and port in the URLs of a Server made by New. Empty:
	// DefaultHost. Start ignores it and uses its listener's address.
	Host string

	// ServerNames are further names in the TLS certificate, for tests of SNI. The
	// certificate always has localhost, the loopback addresses and the host.
	ServerNames []string

	// Now is the clock for token lifetimes and time stamps. Nil: time.Now.
	Now func() time.Time

	// TokenLifetime is the lifetime of access tokens. Zero: DefaultTokenLifetime.
	TokenLifetime time.Duration

	// RefreshIn is the refresh_in of each answer. Zero: none. For long-lived tokens Entra
	// sends half of their lifetime.
	RefreshIn time.Duration

	// QuickTokens signs access tokens with ES256, for simulations of many clients: it
	// takes a fraction of the time of RS256, which Entra uses. False: RS256.
	QuickTokens bool

	// ClockSkew is how far an assertion may be outside its time range. Entra allows
	// minutes. Zero: not at all, so that tests can check the exact boundaries.
	ClockSkew time.Duration

	// IssuerClient fetches the documents of other issuers than this server's own, such
	// as a real API server's. Nil: other issuers cannot be reached, so that no test sends
	// a request to an outside host by mistake.
	IssuerClient *http.Client

	// Keys are the signing keys. Nil: new keys. Generating a key takes a fraction of a
	// second, so tests that start many servers share their keys.
	Keys *Keys

	// Log gets one line for each token request, without secrets. Nil: none.
	Log *slog.Logger
}

func (c Config) withDefaults() Config {
	if c.TenantID == "" {
		c.TenantID = DefaultTenantID
	}
	if c.Listen == "" {
		c.Listen = "127.0.0.1:0"
	}
	if c.Host == "" {
		c.Host = DefaultHost
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.TokenLifetime == 0 {
		c.TokenLifetime = DefaultTokenLifetime
	}
	if c.Keys == nil {
		c.Keys = NewKeys()
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}

// Server is the fake. Its methods are safe for concurrent use.
type Server struct {
	cfg     Config
	baseURL string // https://host:port, no trailing slash
	tls     *certificates
	handler http.Handler
	issuers *issuerKeys

	directory directory
	faults    faultPlan
	record    record

	closeOnce  sync.Once
	closed     chan struct{}
	http       *http.Server // nil without a listener
	served     chan error
	generating sync.WaitGroup // of keys
}

// New returns a Server without a listener: the caller serves its Handler or uses its
// Transport. New starts no goroutine, so that the Server can be used in a
// testing/synctest bubble. It must be made inside the bubble.
func New(cfg Config) (*Server, error) {
	cfg = cfg.withDefaults()
	return newServer(cfg, cfg.Host)
}

func newServer(cfg Config, host string) (*Server, error) {
	certs, err := newCertificates(host, cfg.ServerNames)
	if err != nil {
		return nil, fmt.Errorf("make the TLS certificates: %w", err)
	}
	s := &Server{
		cfg:     cfg,
		baseURL: "https://" + host,
		tls:     certs,
		closed:  make(chan struct{}),
	}
	s.directory.resources = defaultResources()
	s.faults.healed = make(chan struct{})
	s.handler = s.routes()
	s.issuers = newIssuerKeys(s)
	return s, nil
}

// Start returns a Server that listens at cfg.Listen. The caller must close it.
func Start(cfg Config) (*Server, error) {
	cfg = cfg.withDefaults()
	listener, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		return nil, fmt.Errorf("stand-in for Entra: %w", err)
	}
	s, err := newServer(cfg, listener.Addr().String())
	if err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	s.http = &http.Server{
		Handler:           s.handler,
		TLSConfig:         s.ServerTLSConfig(),
		ReadHeaderTimeout: headerTimeout,
		ConnState:         s.record.connection,
		ErrorLog:          slog.NewLogLogger(cfg.Log.Handler(), slog.LevelDebug),
	}
	// Generate the keys in the background, so that the first token is in time for clients
	// that wait for only one second. An error is returned when the key is used.
	s.generating.Go(func() { _, _ = s.tokenKey() })
	s.generating.Go(func() { _, _ = s.cfg.Keys.cluster() })
	s.served = make(chan error, 1)
	go func() { s.served <- s.http.ServeTLS(listener, "", "") }()
	return s, nil
}

// Close closes the listener and aborts all requests, including those that hang.
func (s *Server) Close() error {
	var err error
	s.closeOnce.Do(func() {
		close(s.closed)
		if s.http == nil {
			return
		}
		err = s.http.Close()
		if served := <-s.served; !errors.Is(served, http.ErrServerClosed) {
			err = errors.Join(err, served)
		}
		s.generating.Wait()
	})
	return err
}

// Handler returns the handler of all endpoints.
func (s *Server) Handler() http.Handler { return s.handler }

// AuthorityHost returns the value for AZURE_AUTHORITY_HOST, with a trailing slash.
func (s *Server) AuthorityHost() string { return s.baseURL + "/" }

// Authority returns the tenant's authority URL, as MSAL takes it.
func (s *Server) Authority() string { return s.baseURL + "/" + s.cfg.TenantID }

// TenantID returns the tenant's ID.
func (s *Server) TenantID() string { return s.cfg.TenantID }

// Issuer returns the URL of the cluster's OIDC issuer, without a trailing slash.
func (s *Server) Issuer() string { return s.baseURL + issuerPath }

// TokenURL returns the URL of the v2 token endpoint.
func (s *Server) TokenURL() string { return s.Authority() + "/oauth2/v2.0/token" }

// now returns the server's time.
func (s *Server) now() time.Time { return s.cfg.Now().UTC() }

// isOwn reports whether rawURL is a URL of this server.
func (s *Server) isOwn(rawURL string) bool {
	u, err := url.Parse(rawURL)
	return err == nil && strings.EqualFold("https://"+u.Host, s.baseURL)
}
