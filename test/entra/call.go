package entra

import (
	"errors"
	"net"
	"net/http"
	"strconv"
	"time"
)

// maxBody bounds the request bodies that are read.
const maxBody = 1 << 20

// call is one request on its way through the server.
type call struct {
	s *Server
	w http.ResponseWriter
	r *http.Request
	x *Exchange

	// edit changes the members of a good token answer. Nil: as they are.
	edit func(answer map[string]any)

	// healed is closed when the fault that the call suffers is healed.
	healed <-chan struct{}
}

// endpoint makes a handler of what an endpoint does when nothing is wrong. It
// counts the request, notes it, and lets a planned fault have its way.
func (s *Server) endpoint(e Endpoint, healthy func(*call)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		c := &call{s: s, w: w, r: r, x: s.newExchange(e, r)}
		s.record.begin(c.x)
		defer s.record.end(c.x)
		c.setHeaders()

		fault, healed := s.faults.next(*c.x)
		c.healed = healed
		if fault != nil && !c.suffer(fault) {
			return
		}
		healthy(c)
	}
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

// parseForm reads the body of a token request into the Exchange, before anything
// is judged, so that refused requests can be looked at as well.
func (s *Server) parseForm(x *Exchange, r *http.Request) {
	r.Body = http.MaxBytesReader(nil, r.Body, maxBody)
	err := r.ParseForm()
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		return
	}
	x.ClientID = r.PostForm.Get("client_id")
	x.Scope = r.PostForm.Get("scope")
	x.Resource, _ = resourceOf(x.Scope)
	x.readAssertion(r.PostForm.Get("client_assertion"))
}
