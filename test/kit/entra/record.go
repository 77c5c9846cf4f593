package entra

import (
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// Endpoint names one of the things that the server serves.
type Endpoint int

// The endpoints.
const (
	TokenEndpoint Endpoint = iota
	TenantDiscovery
	InstanceDiscovery
	TenantKeys
	IssuerDiscovery
	IssuerKeys
	// UnknownPath is anything else, which is answered with 404.
	UnknownPath
)

// String is the endpoint's name in logs and test failures.
func (e Endpoint) String() string {
	names := [...]string{"token", "tenant discovery", "instance discovery", "tenant keys", "issuer discovery", "issuer keys", "unknown path"}
	if e < 0 || int(e) >= len(names) {
		return "no endpoint"
	}
	return names[e]
}

// Outcomes of an Exchange besides "AADSTS" with a number and, for faults that
// answer by themselves, the fault's name.
const (
	// OutcomePending: it is being served, or hangs.
	OutcomePending = "pending"
	// OutcomeIssued: it was answered well, as far as the server can tell.
	OutcomeIssued = "issued"
	// OutcomeAborted: the connection ended without an answer.
	OutcomeAborted = "aborted"
)

// Exchange is a request as the server saw it.
type Exchange struct {
	// Endpoint is where it came in. Exchanges returns those of TokenEndpoint.
	Endpoint Endpoint
	// Time is when, by the server's clock.
	Time time.Time

	// Method, Path, Host, RemoteAddr and Header are the request's own. The path
	// is the one on the wire, before any prefix was stripped.
	Method, Path, Host, RemoteAddr string
	Header                         http.Header
	// SNI is the name that the TLS client asked for. Empty: none, or no TLS.
	SNI string

	// TenantID is the tenant in the path; ClientID and Scope are from the form.
	// Resource is the scope without /.default.
	TenantID, ClientID, Scope, Resource string

	// Issuer, Subject and Audience are the assertion's claims, and AssertionFrom
	// and AssertionUntil its time range, all unverified.
	Issuer, Subject, Audience     string
	AssertionFrom, AssertionUntil time.Time
	// AssertionID is the assertion's jti, which tells one federated token from
	// another.
	AssertionID string

	// Outcome is what became of it; Code the AADSTS number and Status the HTTP
	// status that were sent, 0 for none.
	Outcome      string
	Code, Status int
	// Fault is the name of the fault that it suffered. Empty: none.
	Fault string
	// TokenID is the uti of the access token that was issued.
	TokenID string

	// TraceID and CorrelationID are those of the answer.
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

// Counts is how many requests each endpoint saw.
type Counts struct {
	Token, TenantDiscovery, InstanceDiscovery, TenantKeys, IssuerDiscovery, IssuerKeys, UnknownPath int
}

// record remembers requests.
type record struct {
	mu        sync.Mutex // guards all below and what exchanges point to
	exchanges []*Exchange
	counts    [UnknownPath + 1]int
	inFlight  int
	accepted  int
}

// connection is the http.Server's hook.
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

// Exchanges are the token requests since the start or the last Reset, in the
// order of their arrival, those still in flight too.
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

// InFlight is how many token requests are being served, or hang, right now.
func (s *Server) InFlight() int {
	s.record.mu.Lock()
	defer s.record.mu.Unlock()
	return s.record.inFlight
}

// Connections is how many TCP connections the listener took since the start or the
// last Reset: more than the requests' clients need shows that they are not reused.
func (s *Server) Connections() int {
	s.record.mu.Lock()
	defer s.record.mu.Unlock()
	return s.record.accepted
}

// Counts are the requests of each endpoint since the start or the last Reset.
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

// Reset forgets the exchanges and the counts, and heals all faults.
// Applications, resources and cached keys stay.
func (s *Server) Reset() {
	s.Heal()
	s.record.mu.Lock()
	defer s.record.mu.Unlock()
	s.record.exchanges, s.record.accepted = nil, 0
	s.record.counts = [UnknownPath + 1]int{}
}
