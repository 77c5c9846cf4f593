package entra

import (
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

const (
	// maxBody bounds the bytes that are read of a body.
	maxBody = 1 << 20

	// maxDiscarded bounds the bytes of a body that are discarded because it is too large. A
	// connection that is closed while the client still sends is reset, and the client may lose
	// the answer.
	maxDiscarded = 16 << 20
)

// call is one request that the server handles.
type call struct {
	s *Server
	w http.ResponseWriter
	r *http.Request
	x *Exchange

	// assertion, claims and keyID are the client assertion, its claims and the key ID in
	// its header, none of them verified. They are zero if it could not be parsed.
	assertion *jwt.JSONWebToken
	claims    jwt.Claims
	keyID     string

	// app is the application, after checkApplication.
	app Application

	// missing is the name of a parameter that the form does not have.
	missing string

	// edit changes the members of a successful answer. Nil: no change.
	edit func(answer map[string]any)

	// healed is closed when Heal removes the fault of the call.
	healed <-chan struct{}
}

// endpoint returns a handler that records the request, applies its fault if there is one, and
// calls normal unless the fault has answered the request.
func (s *Server) endpoint(e Endpoint, normal func(*call)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		c := &call{s: s, w: w, r: r, x: s.newExchange(e, r)}
		if e == TokenEndpoint {
			c.readForm()
		}
		s.record.begin(c.x)
		defer c.end()
		c.setHeaders()

		fault, healed := s.faults.next(*c.x)
		c.healed = healed
		if fault != nil && !c.applyFault(fault) {
			return
		}
		normal(c)
	}
}

// end records the end of the request, also if the connection was aborted.
func (c *call) end() {
	c.s.record.end(c.x)
	if c.x.Endpoint != TokenEndpoint {
		return
	}
	c.s.cfg.Log.Info("token request",
		slog.String("outcome", c.x.Outcome),
		slog.Int("status", c.x.Status),
		slog.String("client_id", c.x.ClientID),
		slog.String("resource", c.x.Resource),
		slog.String("subject", c.x.Subject))
}

// applyFault applies the fault. It reports whether the request gets its normal answer
// afterwards.
func (c *call) applyFault(f *Fault) (proceed bool) {
	c.s.record.update(func() { c.x.Fault = f.Name })
	if f.Delay > 0 {
		c.sleep(f.Delay)
	}
	c.edit = f.edit
	if f.answer == nil {
		return true
	}
	return f.answer(c)
}

// sleep waits for d. It aborts the request if the client leaves or the server is closed.
func (c *call) sleep(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-c.r.Context().Done():
		c.abort()
	case <-c.s.closed:
		c.abort()
	}
}

// abort closes the connection without sending another byte.
func (c *call) abort() {
	c.outcome(0, 0, OutcomeAborted)
	// net/http closes the connection for this value, and logs nothing.
	panic(http.ErrAbortHandler)
}

// reset closes the connection with a TCP reset, or as abort does if it is not TCP.
func (c *call) reset() {
	hijacker, ok := c.w.(http.Hijacker)
	if !ok {
		c.abort()
	}
	conn, _, err := hijacker.Hijack()
	if err != nil {
		c.abort()
	}
	c.outcome(0, 0, OutcomeAborted)
	if t, ok := conn.(interface{ NetConn() net.Conn }); ok {
		conn = t.NetConn() // without TLS, whose Close would send an alert first
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // makes Close send a reset
	}
	_ = conn.Close()
}

// setHeaders sets the headers that Entra sends with every answer.
func (c *call) setHeaders() {
	h := c.w.Header()
	h.Set("Cache-Control", "no-store, no-cache")
	h.Set("Pragma", "no-cache")
	h.Set("Strict-Transport-Security", "max-age=31536000; includeSubDomains")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("x-ms-request-id", c.x.TraceID)
	h.Set("x-ms-ests-server", "2.1.0 - stand-in")
	if c.r.Header.Get("return-client-request-id") == "true" {
		h.Set("client-request-id", c.x.CorrelationID)
	}
}

func (c *call) write(status int, contentType string, body []byte) {
	c.w.Header().Set("Content-Type", contentType)
	c.w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	c.w.WriteHeader(status)
	// An error means that the client has closed the connection.
	_, _ = c.w.Write(body)
}

func (c *call) outcome(status, code int, outcome string) {
	c.s.record.update(func() { c.x.Status, c.x.Code, c.x.Outcome = status, code, outcome })
}

// readForm reads the body of a token request before any check, so that the record of a
// refused request is complete too. Values that cannot be read stay empty.
func (c *call) readForm() {
	body := c.r.Body
	c.r.Body = http.MaxBytesReader(nil, body, maxBody)
	if c.r.ParseForm() != nil {
		_, _ = io.CopyN(io.Discard, body, maxDiscarded) // an error is the end of the body or of the connection
		return
	}
	x, form := c.x, c.r.PostForm
	x.ClientID, x.Scope = form.Get("client_id"), form.Get("scope")
	x.Resource, _ = resourceOf(x.Scope)
	c.readAssertion(form.Get("client_assertion"))
}

func (c *call) readAssertion(assertion string) {
	token, err := jwt.ParseSigned(assertion, []jose.SignatureAlgorithm{jose.RS256})
	if err != nil || token.UnsafeClaimsWithoutVerification(&c.claims) != nil {
		return
	}
	c.assertion, c.keyID = token, token.Headers[0].KeyID
	x, claims := c.x, c.claims
	x.Issuer, x.Subject, x.AssertionID = claims.Issuer, claims.Subject, claims.ID
	x.Audience = strings.Join(claims.Audience, " ")
	if claims.NotBefore != nil {
		x.AssertionFrom = claims.NotBefore.Time()
	}
	if claims.Expiry != nil {
		x.AssertionUntil = claims.Expiry.Time()
	}
}
