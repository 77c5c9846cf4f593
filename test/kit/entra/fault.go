package entra

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"
)

// Fault is something that goes wrong with a request. The constructors below make
// them; On and After adapt them.
type Fault struct {
	// Name stands in Exchange.Fault.
	Name string
	// Endpoint is where it happens. Zero: TokenEndpoint.
	Endpoint Endpoint
	// Delay is waited first. Zero: none.
	Delay time.Duration

	// answer takes the place of the ordinary answer, unless it returns true. Nil:
	// the ordinary answer.
	answer func(*call) (goOn bool)
	// edit changes the members of the ordinary good answer. Nil: none.
	edit func(answer map[string]any)
}

// On is the same fault at another endpoint.
func (f Fault) On(e Endpoint) Fault { f.Endpoint = e; return f }

// After is the same fault after a delay.
func (f Fault) After(d time.Duration) Fault { f.Delay = d; return f }

// faultPlan says which request suffers what.
type faultPlan struct {
	mu       sync.Mutex // guards all below
	script   []Fault
	rule     func(Exchange) *Fault
	standing []Fault
	healed   chan struct{} // closed and replaced by Heal
}

// FailNext has the next n requests of the fault's endpoint suffer it. Further
// calls line up behind.
func (s *Server) FailNext(n int, f Fault) {
	s.faults.mu.Lock()
	defer s.faults.mu.Unlock()
	s.faults.script = append(s.faults.script, slices.Repeat([]Fault{f}, n)...)
}

// FailWhen has the rule decide on each request that FailNext leaves alone. A
// fault of another endpoint than the request's does not happen.
func (s *Server) FailWhen(rule func(Exchange) *Fault) {
	s.faults.mu.Lock()
	defer s.faults.mu.Unlock()
	s.faults.rule = rule
}

// FailAlways has every request of the fault's endpoint suffer it that FailNext
// and FailWhen leave alone. It replaces an earlier one of that endpoint.
func (s *Server) FailAlways(f Fault) {
	s.faults.mu.Lock()
	defer s.faults.mu.Unlock()
	s.faults.standing = append(s.withoutStanding(f.Endpoint), f)
}

func (s *Server) withoutStanding(e Endpoint) []Fault {
	return slices.DeleteFunc(s.faults.standing, func(f Fault) bool { return f.Endpoint == e })
}

// Heal drops all faults. Requests that hang go on to their ordinary answers.
func (s *Server) Heal() {
	p := &s.faults
	p.mu.Lock()
	defer p.mu.Unlock()
	p.script, p.rule, p.standing = nil, nil, nil
	close(p.healed)
	p.healed = make(chan struct{})
}

// next is the fault for a request, nil for none, and the channel that ends it.
func (p *faultPlan) next(x Exchange) (*Fault, <-chan struct{}) {
	here := func(f Fault) bool { return f.Endpoint == x.Endpoint }
	p.mu.Lock()
	healed := p.healed
	if i := slices.IndexFunc(p.script, here); i >= 0 {
		f := p.script[i]
		p.script = slices.Delete(p.script, i, i+1)
		p.mu.Unlock()
		return &f, healed
	}
	rule, standing := p.rule, slices.Clone(p.standing)
	p.mu.Unlock()

	if rule != nil { // unlocked: it may ask the server things
		if f := rule(x); f != nil && here(*f) {
			return f, healed
		}
	}
	if i := slices.IndexFunc(standing, here); i >= 0 {
		return &standing[i], healed
	}
	return nil, nil
}

// FaultAADSTS refuses with a code, as Entra words it.
func FaultAADSTS(code int) Fault {
	return Fault{Name: "AADSTS" + strconv.Itoa(code), answer: func(c *call) bool {
		c.refuse(code)
		return false
	}}
}

// FaultAADSTSAs refuses with a code that the server has no words for.
func FaultAADSTSAs(status int, errorName string, code int, text string) Fault {
	return Fault{Name: "AADSTS" + strconv.Itoa(code), answer: func(c *call) bool {
		c.refuseAs(status, errorName, code, text)
		return false
	}}
}

// faultBody answers with a status and a body, and headers as name, value pairs.
func faultBody(name string, status int, contentType, body string, headers ...string) Fault {
	return Fault{Name: name, answer: func(c *call) bool {
		for pair := range slices.Chunk(headers, 2) {
			c.w.Header().Set(pair[0], pair[1])
		}
		c.write(status, contentType, []byte(body))
		c.outcome(status, 0, name)
		return false
	}}
}

const plainText = "text/plain; charset=utf-8"

// FaultThrottle answers 429 as Entra does, with Retry-After in whole seconds.
// Zero: without Retry-After.
func FaultThrottle(retryAfter time.Duration) Fault {
	const name = "429"
	if retryAfter == 0 {
		return faultBody(name, http.StatusTooManyRequests, plainText, "Too Many Requests")
	}
	return faultBody(name, http.StatusTooManyRequests, plainText, "Too Many Requests",
		"Retry-After", strconv.Itoa(int(retryAfter/time.Second)))
}

// FaultThrottleUntil answers 429 with Retry-After as an HTTP date.
func FaultThrottleUntil(t time.Time) Fault {
	return faultBody("429 until", http.StatusTooManyRequests, plainText, "Too Many Requests",
		"Retry-After", t.UTC().Format(http.TimeFormat))
}

// FaultStatus answers with any status and a plain body, which may be empty.
func FaultStatus(status int, body string) Fault {
	return faultBody(strconv.Itoa(status), status, plainText, body)
}

// FaultHTML answers with a web page, as gateways and captive portals do.
func FaultHTML(status int) Fault {
	return faultBody("HTML", status, "text/html; charset=utf-8",
		"<!DOCTYPE html><html><head><title>Sign in</title></head><body><h1>We'll be right back</h1></body></html>")
}

// FaultMalformedJSON answers 200 with JSON that breaks off after a member that
// holds the secret, for tests that nothing of it is passed on.
func FaultMalformedJSON(secret string) Fault {
	return faultBody("malformed JSON", http.StatusOK, "application/json; charset=utf-8",
		fmt.Sprintf(`{"token_type":"Bearer","access_token":%q,"expires_in":86399,"ext_expires_in`, secret))
}

// FaultRedirect answers with a redirect. Zero status: 302.
func FaultRedirect(status int, location string) Fault {
	if status == 0 {
		status = http.StatusFound
	}
	return faultBody("redirect", status, plainText, "", "Location", location)
}

// FaultHang answers nothing until Heal, Close, or until the client leaves.
func FaultHang() Fault {
	return Fault{Name: "hang", answer: (*call).hang}
}

func (c *call) hang() (goOn bool) {
	select {
	case <-c.healed:
		return true
	case <-c.r.Context().Done():
	case <-c.s.closed:
	}
	c.abort()
	return false
}

// FaultReset resets the connection.
func FaultReset() Fault {
	return Fault{Name: "reset", answer: func(c *call) bool {
		c.reset()
		return false
	}}
}

// FaultTruncated ends the connection in the middle of a good answer's body.
func FaultTruncated() Fault {
	return Fault{Name: "truncated", answer: func(c *call) bool {
		c.w = truncating{c.w}
		return true
	}}
}

// truncating writes half of what it is given. The Content-Length, which was for
// all of it, has net/http end the connection.
type truncating struct{ http.ResponseWriter }

func (t truncating) Write(b []byte) (int, error) {
	if n, err := t.ResponseWriter.Write(b[:len(b)/2]); err != nil {
		return n, err
	}
	return len(b), nil
}

// FaultSlow answers well, but late. The token's life began when the request came,
// so a client that counts expires_in from the answer's arrival is wrong by d.
func FaultSlow(d time.Duration) Fault { return Fault{Name: "slow", Delay: d} }

// FaultWithout answers 200 without the named members.
func FaultWithout(members ...string) Fault {
	return FaultEdit("without members", func(answer map[string]any) {
		for _, name := range members {
			delete(answer, name)
		}
	})
}

// FaultEdit answers 200 with the members as edit leaves them, whose values have to
// be such as encoding/json takes.
func FaultEdit(name string, edit func(answer map[string]any)) Fault {
	return Fault{Name: name, edit: edit}
}
