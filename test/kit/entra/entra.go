// Package entra is a stand-in for Microsoft Entra ID and for the cluster's OIDC
// issuer, for tests, the demo and benchmarks.
//
// It speaks HTTPS with a throwaway CA, and serves what a client assertion needs:
// instance discovery, tenant discovery, the v2 token endpoint, and, below
// [Server.Issuer], the issuer's own discovery document and keys. The token
// endpoint checks a request as Entra does: it fetches the issuer's keys, verifies
// the assertion against the application's federated credentials, and answers in
// Entra's words, with its AADSTS codes.
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
// It misbehaves on demand ([Server.FailNext], [Server.FailAlways],
// [Server.FailWhen]) and remembers what it was asked ([Server.Exchanges]).
//
// # Security considerations
//
// Never a real identity provider: whoever holds the Server can sign anything. It
// listens on loopback unless told otherwise.
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

// Defaults of Config, for tests to compare with.
const (
	// DefaultTenantID is a made-up tenant.
	DefaultTenantID = "11111111-2222-4333-8444-555555555555"

	// DefaultAudience is the audience that Entra asks of federated tokens.
	DefaultAudience = "api://AzureADTokenExchange"

	// DefaultTokenLifetime is how long Entra's tokens for managed identities live.
	DefaultTokenLifetime = 24 * time.Hour

	// DefaultHost names the authority of a Server that has no listener.
	DefaultHost = "login.example.test"
)

// issuerPath is where the cluster's issuer stands, so that one server is both.
const issuerPath = "/cluster"

// headerTimeout ends connections that never finish their request's header.
const headerTimeout = 10 * time.Second

// Config says what tenant to be. The zero value is a working one.
type Config struct {
	// TenantID is the only tenant there is. Empty: DefaultTenantID.
	TenantID string

	// Listen is the address for Start to listen on, one that clients can dial.
	// Empty: 127.0.0.1, any port.
	Listen string

	// Host is the host and port that URLs of a Server made by New carry. Empty:
	// DefaultHost. Start ignores it: its listener's address is the host.
	Host string

	// ServerNames are further names that the TLS certificate is valid for, for
	// tests of SNI. Empty: localhost, the loopback addresses and the host only.
	ServerNames []string

	// Now is the clock for token lives and time stamps. Nil: time.Now.
	Now func() time.Time

	// TokenLifetime is how long access tokens live. Zero: DefaultTokenLifetime.
	TokenLifetime time.Duration

	// RefreshIn is the refresh_in of each answer. Zero: none. Entra sends half
	// of the life with long-lived tokens.
	RefreshIn time.Duration

	// QuickTokens signs access tokens with ES256, which takes a fraction of the
	// time, for simulations of many clients. False: RS256, as Entra does.
	QuickTokens bool

	// ClockSkew is how far an assertion may be outside its time range. Zero: not
	// at all, so that tests of the boundaries are sharp. Entra allows minutes.
	ClockSkew time.Duration

	// IssuerClient fetches the documents of issuers other than this server's
	// own, such as a real API server's. Nil: they cannot be reached, so that no
	// test asks an outside host by mistake.
	IssuerClient *http.Client

	// Keys are the signing keys. Nil: new ones. Making a key takes a fraction of
	// a second, so tests that start many servers share theirs.
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

// Server is the stand-in. Its methods may be called at any time, from any
// goroutine.
type Server struct {
	cfg     Config
	baseURL string // https://host:port, no trailing slash
	tls     *certificates
	handler http.Handler
	issuers *issuerKeys

	directory directory
	faults    faultPlan
	record    record

	closeOnce sync.Once
	closed    chan struct{}
	http      *http.Server // nil without a listener
	served    chan error
	warming   sync.WaitGroup
}

// New returns a Server without a listener: its users serve Handler themselves,
// or call it through Transport. It starts no goroutine, so that it can be used in
// a testing/synctest bubble, where it has to be made inside the bubble.
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

// Start returns a Server that listens on cfg.Listen. The caller closes it.
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
	// The keys are made meanwhile, so that the first token is not late for
	// clients that wait one second only. An error comes up when a key is used.
	s.warming.Go(func() { _, _ = s.tokenKey() })
	s.warming.Go(func() { _, _ = s.cfg.Keys.cluster() })
	s.served = make(chan error, 1)
	go func() { s.served <- s.http.ServeTLS(listener, "", "") }()
	return s, nil
}

// Close ends every request in flight, hanging ones too, and the listener.
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
		s.warming.Wait()
	})
	return err
}

// Handler serves all that the Server serves, over whatever the caller likes.
func (s *Server) Handler() http.Handler { return s.handler }

// AuthorityHost is the value for AZURE_AUTHORITY_HOST, with a trailing slash.
func (s *Server) AuthorityHost() string { return s.baseURL + "/" }

// Authority is the tenant's authority URL, as MSAL takes it.
func (s *Server) Authority() string { return s.baseURL + "/" + s.cfg.TenantID }

// TenantID is the tenant's ID.
func (s *Server) TenantID() string { return s.cfg.TenantID }

// Issuer is the cluster's OIDC issuer, without a trailing slash.
func (s *Server) Issuer() string { return s.baseURL + issuerPath }

// TokenURL is the v2 token endpoint.
func (s *Server) TokenURL() string { return s.Authority() + "/oauth2/v2.0/token" }

// now is the server's time.
func (s *Server) now() time.Time { return s.cfg.Now().UTC() }

// isOwn reports whether rawURL leads to this server.
func (s *Server) isOwn(rawURL string) bool {
	u, err := url.Parse(rawURL)
	return err == nil && strings.EqualFold("https://"+u.Host, s.baseURL)
}
