package entra

import (
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// maxBody bounds the request bodies that are read.
const maxBody = 1 << 20

// call is one request on its way through the server.
type call struct {
	s *Server
	w http.ResponseWriter
	r *http.Request
	x *Exchange

	// assertion and claims are the client assertion's, unverified, where it could
	// be parsed, and keyID names the key that it says it is signed with.
	assertion *jwt.JSONWebToken
	claims    jwt.Claims
	keyID     string

	// app is the application that asks, once it is known.
	app Application

	// missing is the parameter that the form lacks.
	missing string

	// edit changes the members of a good answer. Nil: as they are.
	edit func(answer map[string]any)

	// healed is closed when the fault that the call suffers is healed.
	healed <-chan struct{}
}

// endpoint makes a handler of what an endpoint does when nothing is wrong. It
// counts the request, notes it, and lets a planned fault have its way.
func (s *Server) endpoint(e Endpoint, healthy func(*call)) http.HandlerFunc {
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
		if fault != nil && !c.suffer(fault) {
			return
		}
		healthy(c)
	}
}

// end notes, also when the connection was ended, that the request is over.
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

// suffer lets the fault have its way. It reports whether the request goes on to
// its ordinary answer.
func (c *call) suffer(f *Fault) (goOn bool) {
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

// sleep waits, and gives the request up where nobody waits for its answer.
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

// abort ends the connection without a further byte.
func (c *call) abort() {
	c.outcome(0, 0, OutcomeAborted)
	// The way that net/http gives a handler to do this.
	panic(http.ErrAbortHandler)
}

// reset ends the connection with a TCP reset, where there is a TCP connection.
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
		conn = t.NetConn() // past TLS, whose Close would say goodbye first
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // turns Close into a reset
	}
	_ = conn.Close()
}

// setHeaders sets what Entra sends with every answer.
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
	// An error here is a client that has left.
	_, _ = c.w.Write(body)
}

func (c *call) outcome(status, code int, outcome string) {
	c.s.record.update(func() { c.x.Status, c.x.Code, c.x.Outcome = status, code, outcome })
}

// readForm reads the body of a token request, before anything is judged, so that
// refused requests can be looked at as well. What cannot be read is left empty.
func (c *call) readForm() {
	c.r.Body = http.MaxBytesReader(nil, c.r.Body, maxBody)
	if c.r.ParseForm() != nil {
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
