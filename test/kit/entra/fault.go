package entra

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"
)

// Fault is a failure of a request. The functions below return faults; On and After change
// them.
type Fault struct {
	// Name is the value of Exchange.Fault.
	Name string
	// Endpoint is the endpoint that fails. Zero: TokenEndpoint.
	Endpoint Endpoint
	// Delay is how long the server waits first. Zero: not at all.
	Delay time.Duration

	// answer writes the answer. If it returns true or is nil, the request gets its normal
	// answer.
	answer func(*call) (proceed bool)
	// edit changes the members of a successful answer. Nil: no change.
	edit func(answer map[string]any)
}

// On returns the fault for another endpoint.
func (f Fault) On(e Endpoint) Fault { f.Endpoint = e; return f }

// After returns the fault with a delay.
func (f Fault) After(d time.Duration) Fault { f.Delay = d; return f }

// faultPlan decides which request gets which fault.
type faultPlan struct {
	mu     sync.Mutex            // guards the fields below
	script []Fault               // by FailNext
	rule   func(Exchange) *Fault // by FailWhen
	always []Fault               // by FailAlways
	healed chan struct{}         // closed and replaced by Heal
}

// FailNext applies the fault to the next n requests of its endpoint. Faults of several
// calls apply one after the other.
func (s *Server) FailNext(n int, f Fault) {
	s.faults.mu.Lock()
	defer s.faults.mu.Unlock()
	s.faults.script = append(s.faults.script, slices.Repeat([]Fault{f}, n)...)
}

// FailWhen calls rule for each request that gets no fault by FailNext. A fault for another
// endpoint than the request's is ignored.
func (s *Server) FailWhen(rule func(Exchange) *Fault) {
	s.faults.mu.Lock()
	defer s.faults.mu.Unlock()
	s.faults.rule = rule
}

// FailAlways applies the fault to every request of its endpoint that gets none by FailNext
// and FailWhen. It replaces an earlier fault for that endpoint.
func (s *Server) FailAlways(f Fault) {
	s.faults.mu.Lock()
	defer s.faults.mu.Unlock()
	s.faults.always = append(s.withoutAlways(f.Endpoint), f)
}

func (s *Server) withoutAlways(e Endpoint) []Fault {
	return slices.DeleteFunc(s.faults.always, func(f Fault) bool { return f.Endpoint == e })
}

// Heal removes all faults. Requests that hang get their normal answers.
func (s *Server) Heal() {
	p := &s.faults
	p.mu.Lock()
	defer p.mu.Unlock()
	p.script, p.rule, p.always = nil, nil, nil
	close(p.healed)
	p.healed = make(chan struct{})
}

// next returns the fault for a request, or nil, and the channel that Heal closes.
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
	rule, always := p.rule, slices.Clone(p.always)
	p.mu.Unlock()

	if rule != nil { // without the lock: rule may call methods of the Server
		if f := rule(x); f != nil && here(*f) {
			return f, healed
		}
	}
	if i := slices.IndexFunc(always, here); i >= 0 {
		return &always[i], healed
	}
	return nil, nil
}

// FaultAADSTS refuses the request with an AADSTS code and Entra's text for it.
func FaultAADSTS(code int) Fault {
	return Fault{Name: "AADSTS" + strconv.Itoa(code), answer: func(c *call) bool {
		c.refuse(code)
		return false
	}}
}

// FaultAADSTSAs refuses the request with an AADSTS code and text that the server does not
// know.
func FaultAADSTSAs(status int, errorName string, code int, text string) Fault {
	return Fault{Name: "AADSTS" + strconv.Itoa(code), answer: func(c *call) bool {
		c.refuseAs(status, errorName, code, text)
		return false
	}}
}

// faultBody answers with a status and a body. headers are pairs of name and value.
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

// FaultThrottle answers with status 429 as Entra does, with Retry-After in whole seconds,
// or without Retry-After if it is zero.
func FaultThrottle(retryAfter time.Duration) Fault {
	const name = "429"
	if retryAfter == 0 {
		return faultBody(name, http.StatusTooManyRequests, plainText, "Too Many Requests")
	}
	return faultBody(name, http.StatusTooManyRequests, plainText, "Too Many Requests",
		"Retry-After", strconv.Itoa(int(retryAfter/time.Second)))
}

// FaultThrottleUntil answers with status 429 and Retry-After as an HTTP date.
func FaultThrottleUntil(t time.Time) Fault {
	return faultBody("429 until", http.StatusTooManyRequests, plainText, "Too Many Requests",
		"Retry-After", t.UTC().Format(http.TimeFormat))
}

// FaultStatus answers with the given status and a plain text body, which may be empty.
func FaultStatus(status int, body string) Fault {
	return faultBody(strconv.Itoa(status), status, plainText, body)
}

// FaultJSON answers with the given status and JSON body.
func FaultJSON(status int, body string) Fault {
	return faultBody(strconv.Itoa(status), status, "application/json; charset=utf-8", body)
}

// FaultHTML answers with an HTML page, as gateways and captive portals do.
func FaultHTML(status int) Fault {
	return faultBody("HTML", status, "text/html; charset=utf-8",
		"<!DOCTYPE html><html><head><title>Sign in</title></head><body><h1>We'll be right back</h1></body></html>")
}

// FaultMalformedJSON answers with status 200 and truncated JSON that has a member with the
// secret, for tests that the secret is not passed on.
func FaultMalformedJSON(secret string) Fault {
	return faultBody("malformed JSON", http.StatusOK, "application/json; charset=utf-8",
		fmt.Sprintf(`{"token_type":"Bearer","access_token":%q,"expires_in":86399,"ext_expires_in`, secret))
}

// FaultRedirect answers with a redirect. Status 0 means 302.
func FaultRedirect(status int, location string) Fault {
	if status == 0 {
		status = http.StatusFound
	}
	return faultBody("redirect", status, plainText, "", "Location", location)
}

// FaultHang does not answer until Heal. Close and a client that leaves abort the request.
func FaultHang() Fault {
	return Fault{Name: "hang", answer: (*call).hang}
}

func (c *call) hang() (proceed bool) {
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

// FaultTruncated closes the connection in the middle of a successful answer's body.
func FaultTruncated() Fault {
	return Fault{Name: "truncated", answer: func(c *call) bool {
		c.w = truncating{c.w}
		return true
	}}
}

// truncating writes half of each slice. net/http closes the connection because the body is
// shorter than its Content-Length.
type truncating struct{ http.ResponseWriter }

func (t truncating) Write(b []byte) (int, error) {
	if n, err := t.ResponseWriter.Write(b[:len(b)/2]); err != nil {
		return n, err
	}
	return len(b), nil
}

// FaultSlow answers successfully after d. The token's lifetime begins when the request
// arrives, so a client that adds expires_in to the time of the answer is wrong by d.
func FaultSlow(d time.Duration) Fault { return Fault{Name: "slow", Delay: d} }

// FaultWithout answers with status 200 and without the named members.
func FaultWithout(members ...string) Fault {
	return FaultEdit("without members", func(answer map[string]any) {
		for _, name := range members {
			delete(answer, name)
		}
	})
}

// FaultEdit answers with status 200 and the members as edit changes them. encoding/json
// must be able to encode their values.
func FaultEdit(name string, edit func(answer map[string]any)) Fault {
	return Fault{Name: name, edit: edit}
}
