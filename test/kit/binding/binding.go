// Package binding is a stand-in for the token proxy of AKS's identity bindings, which is behind
// the address of a cluster's API server.
//
//	proxy, err := binding.Start(binding.Config{Entra: idp, Certificate: …, ServerName: "….ests.aks", Review: …, Allowed: …})
//	defer proxy.Close()
//	proxy.Bind(entra.Application{ClientID: …})
//	// AZURE_KUBERNETES_TOKEN_PROXY=proxy.URL(), AZURE_KUBERNETES_SNI_NAME=….ests.aks
//
// It checks what AKS documents (https://learn.microsoft.com/azure/aks/identity-bindings-concepts):
// the server name, the audience of the service account token and its signature, as a TokenReview
// does, the verb use-managed-identity of group cid.wi.aks.azure.com for the client ID, as a
// SubjectAccessReview does, and that there is a binding. Then it requests the token of Entra, with
// an assertion of its own issuer, for which Entra has the only federated credential.
//
// AKS does not document its refusals. The stand-in answers as the API server would: 401, 403 and
// 404 with a Status object.
//
// # Security considerations
//
// Like the stand-in for Entra, it must never be used as a real token proxy.
package binding

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"imds-oidc-proxy/test/kit/entra"
)

const (
	// Audience is the audience of service account tokens for the token proxy.
	Audience = "api://AKSIdentityBinding"

	// Verb and Group are the permission for an identity, whose client ID is the resource.
	Verb  = "use-managed-identity"
	Group = "cid.wi.aks.azure.com"

	// subject is the subject of the assertions for Entra. That of AKS is not documented.
	subject = "identity-binding"

	headerTimeout = 10 * time.Second
	maxBody       = 1 << 20
)

// Config configures a Server. All fields without a default are required.
type Config struct {
	// Entra is where the tokens come from.
	Entra *entra.Server
	// Listen is the address to listen at. Empty: 127.0.0.1, any port.
	Listen string
	// Certificate is the TLS certificate.
	Certificate tls.Certificate
	// ServerName is the TLS server name of the token proxy. With another name, a client reaches
	// the API server, which refuses it.
	ServerName string
	// Path is the path of URL, before the path of each request. Empty: none.
	Path string
	// Review verifies a service account token and its audience, and returns its subject. An error
	// means that it is refused.
	Review func(ctx context.Context, token, audience string) (subject string, err error)
	// Allowed reports whether the subject has the verb for the client ID.
	Allowed func(ctx context.Context, subject, clientID string) (bool, error)
}

// Request is a token request that the server got.
type Request struct {
	ServerName, Path, Subject, ClientID string
	Status                              int
}

// Server is the stand-in. Its methods are safe for concurrent use.
type Server struct {
	cfg    Config
	http   *http.Server
	url    string
	served chan error

	mu       sync.Mutex // guards the fields below
	requests []Request
	bound    map[string]bool
}

// Start returns a Server. The caller must close it.
func Start(cfg Config) (*Server, error) {
	if cfg.Listen == "" {
		cfg.Listen = "127.0.0.1:0"
	}
	listener, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		return nil, fmt.Errorf("stand-in for the token proxy: %w", err)
	}
	s := &Server{cfg: cfg, url: "https://" + listener.Addr().String() + cfg.Path, served: make(chan error, 1), bound: make(map[string]bool)}
	s.http = &http.Server{
		Handler:           s,
		TLSConfig:         &tls.Config{Certificates: []tls.Certificate{cfg.Certificate}, NextProtos: []string{"http/1.1"}, MinVersion: tls.VersionTLS12},
		ReadHeaderTimeout: headerTimeout,
		ErrorLog:          log.New(io.Discard, "", 0),
	}
	go func() { s.served <- s.http.ServeTLS(listener, "", "") }()
	return s, nil
}

// Close closes the listener and all connections.
func (s *Server) Close() error {
	err := s.http.Close()
	if served := <-s.served; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	return err
}

// URL returns the value for AZURE_KUBERNETES_TOKEN_PROXY.
func (s *Server) URL() string { return s.url }

// Bind creates an identity binding: Entra gets the application with the credential of the binding
// only, in place of the application that it had.
func (s *Server) Bind(a entra.Application) {
	a.Credentials = []entra.FederatedCredential{{Subject: subject}}
	s.cfg.Entra.AddApplication(a)
	s.setBound(a.ClientID, true)
}

// Unbind deletes an identity binding. As with AKS, the credential stays.
func (s *Server) Unbind(clientID string) { s.setBound(clientID, false) }

func (s *Server) setBound(clientID string, bound bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bound[strings.ToLower(clientID)] = bound
}

// Requests returns the token requests so far.
func (s *Server) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Request(nil), s.requests...)
}

// ServeHTTP implements [http.Handler].
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	request := Request{ServerName: r.TLS.ServerName, Path: r.URL.Path}
	switch {
	case request.ServerName != s.cfg.ServerName:
		refuse(w, &request, http.StatusUnauthorized, "Unauthorized")
	case !strings.HasPrefix(r.URL.Path, s.cfg.Path+"/"):
		refuse(w, &request, http.StatusNotFound, "the server could not find the requested resource")
	case r.Method == http.MethodGet:
		s.pass(w, r)
		return // not a token request
	default:
		s.token(w, r, &request)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = append(s.requests, request)
}

// pass lets the stand-in for Entra answer.
func (s *Server) pass(w http.ResponseWriter, r *http.Request) {
	http.StripPrefix(s.cfg.Path, s.cfg.Entra.Handler()).ServeHTTP(w, r)
}

// token handles a token request.
func (s *Server) token(w http.ResponseWriter, r *http.Request, request *Request) {
	body, err := io.ReadAll(http.MaxBytesReader(nil, r.Body, maxBody))
	form, formErr := url.ParseQuery(string(body))
	if err := errors.Join(err, formErr); err != nil {
		refuse(w, request, http.StatusBadRequest, err.Error())
		return
	}
	request.ClientID = form.Get("client_id")
	if !s.authorize(w, r.Context(), form.Get("client_assertion"), request) {
		return
	}
	form.Set("client_assertion", s.cfg.Entra.SignFederatedToken(entra.Claims{Subject: subject}))
	encoded := form.Encode()
	passed := r.Clone(r.Context())
	passed.Body, passed.ContentLength = io.NopCloser(strings.NewReader(encoded)), int64(len(encoded))
	answer := &statusWriter{ResponseWriter: w, status: http.StatusOK}
	s.pass(answer, passed)
	request.Status = answer.status
}

// authorize answers a request that is refused, and reports whether it is not.
func (s *Server) authorize(w http.ResponseWriter, ctx context.Context, token string, request *Request) bool {
	var err error
	if request.Subject, err = s.cfg.Review(ctx, token, Audience); err != nil {
		refuse(w, request, http.StatusUnauthorized, "Unauthorized")
		return false
	}
	s.mu.Lock()
	bound := s.bound[strings.ToLower(request.ClientID)]
	s.mu.Unlock()
	if !bound {
		refuse(w, request, http.StatusNotFound, fmt.Sprintf("identity binding for client ID %q not found", request.ClientID))
		return false
	}
	allowed, err := s.cfg.Allowed(ctx, request.Subject, request.ClientID)
	switch {
	case err != nil:
		refuse(w, request, http.StatusInternalServerError, err.Error())
	case !allowed:
		refuse(w, request, http.StatusForbidden, fmt.Sprintf("User %q cannot %s resource %q in API group %q at the cluster scope", request.Subject, Verb, request.ClientID, Group))
	}
	return allowed && err == nil
}

// refuse answers with a Status of the Kubernetes API.
func refuse(w http.ResponseWriter, request *Request, code int, message string) {
	request.Status = code
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(map[string]any{
		"kind": "Status", "apiVersion": "v1", "metadata": map[string]any{}, "status": "Failure",
		"message": message, "reason": strings.ReplaceAll(http.StatusText(code), " ", ""), "code": code,
	})
}

// statusWriter records the status of an answer.
type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

// Unwrap is for [http.ResponseController].
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
