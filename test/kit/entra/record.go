package entra

import (
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// Endpoint is one of the server's endpoints.
type Endpoint int

// The endpoints.
const (
	TokenEndpoint Endpoint = iota
	TenantDiscovery
	InstanceDiscovery
	TenantKeys
	IssuerDiscovery
	IssuerKeys
	// UnknownPath is any other path. The server answers it with status 404.
	UnknownPath
)

// String returns the endpoint's name for logs and test failures.
func (e Endpoint) String() string {
	names := [...]string{"token", "tenant discovery", "instance discovery", "tenant keys", "issuer discovery", "issuer keys", "unknown path"}
	if e < 0 || int(e) >= len(names) {
		return "no endpoint"
	}
	return names[e]
}

// Outcomes of an Exchange. Others are "AADSTS" with a number and, for faults that write the
// answer, the fault's name.
const (
	// OutcomePending: the request is not answered yet.
	OutcomePending = "pending"
	// OutcomeIssued: the server has sent a successful answer.
	OutcomeIssued = "issued"
	// OutcomeAborted: the connection was closed without an answer.
	OutcomeAborted = "aborted"
)

// Exchange is a request that the server received.
type Exchange struct {
	// Endpoint is the request's endpoint. Exchanges returns only requests to TokenEndpoint.
	Endpoint Endpoint
	// Time is the arrival by the server's clock.
	Time time.Time

	// Method, Path, Host, RemoteAddr and Header are those of the request. The path is
	// the one on the wire, before any prefix was removed.
	Method, Path, Host, RemoteAddr string
	Header                         http.Header
	// SNI is the server name that the TLS client sent. Empty: none, or no TLS.
	SNI string

	// TenantID is the tenant in the path; ClientID and Scope are from the form.
	// Resource is the scope without /.default.
	TenantID, ClientID, Scope, Resource string

	// Issuer, Subject and Audience are the assertion's claims, and AssertionFrom
	// and AssertionUntil its time range, all unverified.
	Issuer, Subject, Audience     string
	AssertionFrom, AssertionUntil time.Time
	// AssertionID is the assertion's jti, which is different in each federated token.
	AssertionID string

	// Outcome is the result. Code and Status are the AADSTS number and the HTTP status of
	// the answer, or 0.
	Outcome      string
	Code, Status int
	// Fault is the name of the fault that was applied. Empty: none.
	Fault string
	// TokenID is the uti of the issued access token.
	TokenID string

	// TraceID and CorrelationID are the IDs in the answer.
	TraceID, CorrelationID string
}

func (s *Server) newExchange(e Endpoint, r *http.Request) *Exchange {
	x := &Exchange{
		Endpoint:      e,
		Time:          s.now(),
		Method:        r.Method,
		Path:          r.URL.Path,
		Host:          r.Host,
		RemoteAddr:    r.RemoteAddr,
		Header:        r.Header.Clone(),
		TenantID:      r.PathValue("tenant"),
		Outcome:       OutcomePending,
		TraceID:       newUUID(),
		CorrelationID: r.Header.Get("client-request-id"),
	}
	if path, _, _ := strings.Cut(r.RequestURI, "?"); path != "" {
		x.Path = path
	}
	if x.CorrelationID == "" {
		x.CorrelationID = newUUID()
	}
	if r.TLS != nil {
		x.SNI = r.TLS.ServerName
	}
	return x
}

// Counts are the numbers of requests by endpoint.
type Counts struct {
	Token, TenantDiscovery, InstanceDiscovery, TenantKeys, IssuerDiscovery, IssuerKeys, UnknownPath int
}

// record stores the token requests and counts all requests.
type record struct {
	mu        sync.Mutex // guards the fields below and what exchanges point to
	exchanges []*Exchange
	counts    [UnknownPath + 1]int
	inFlight  int
	accepted  int
}

// connection is the ConnState hook of the http.Server.
func (r *record) connection(_ net.Conn, state http.ConnState) {
	if state == http.StateNew {
		r.update(func() { r.accepted++ })
	}
}

func (r *record) begin(x *Exchange) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.counts[x.Endpoint]++
	if x.Endpoint == TokenEndpoint {
		r.exchanges = append(r.exchanges, x)
		r.inFlight++
	}
}

func (r *record) end(x *Exchange) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if x.Endpoint == TokenEndpoint {
		r.inFlight--
	}
}

func (r *record) update(change func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change()
}

// Exchanges returns the token requests since the start or the last Reset, in the order of
// their arrival, including those that are not answered yet.
func (s *Server) Exchanges() []Exchange {
	r := &s.record
	r.mu.Lock()
	defer r.mu.Unlock()
	exchanges := make([]Exchange, len(r.exchanges))
	for i, x := range r.exchanges {
		exchanges[i] = *x
	}
	return exchanges
}

// InFlight returns the number of token requests that are not answered yet.
func (s *Server) InFlight() int {
	s.record.mu.Lock()
	defer s.record.mu.Unlock()
	return s.record.inFlight
}

// Connections returns the number of TCP connections that the listener accepted since the
// start or the last Reset. A test can tell from it whether connections are reused.
func (s *Server) Connections() int {
	s.record.mu.Lock()
	defer s.record.mu.Unlock()
	return s.record.accepted
}

// Counts returns the numbers of requests since the start or the last Reset.
func (s *Server) Counts() Counts {
	s.record.mu.Lock()
	defer s.record.mu.Unlock()
	n := s.record.counts
	return Counts{
		Token:             n[TokenEndpoint],
		TenantDiscovery:   n[TenantDiscovery],
		InstanceDiscovery: n[InstanceDiscovery],
		TenantKeys:        n[TenantKeys],
		IssuerDiscovery:   n[IssuerDiscovery],
		IssuerKeys:        n[IssuerKeys],
		UnknownPath:       n[UnknownPath],
	}
}

// Reset removes the exchanges, the counts and all faults. It keeps applications, resources
// and cached keys.
func (s *Server) Reset() {
	s.Heal()
	s.record.mu.Lock()
	defer s.record.mu.Unlock()
	s.record.exchanges, s.record.accepted = nil, 0
	s.record.counts = [UnknownPath + 1]int{}
}
