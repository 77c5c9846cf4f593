package main

import (
	"bufio"
	"encoding/json"
	"strings"
	"time"

	"imds-oidc-proxy/test/kit/entra"
)

// answer is a line that a driver printed.
type answer struct {
	Token     string  `json:"token"`
	ExpiresOn int64   `json:"expires_on"`
	Error     string  `json:"error"`
	Message   string  `json:"message"`
	MS        float64 `json:"ms"`

	claims  entra.AccessToken // of Token, when it is Entra's and valid
	problem string            // why there are none
}

// observed is what a scenario did.
type observed struct {
	resource  string
	answers   []answer
	exchanges []entra.Exchange
	// requests to the token path, and those of them without the Metadata header.
	requests, probes int
	// node counts what reached the node's IMDS.
	node int
	// failure is of the driver itself, which then did not speak the protocol.
	failure error
}

// readAnswers reads a driver's output.
func readAnswers(out string, verify func(string) (entra.AccessToken, error)) ([]answer, error) {
	var answers []answer
	lines := bufio.NewScanner(strings.NewReader(out))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if !strings.HasPrefix(lines.Text(), "{") {
			continue // old libraries print warnings
		}
		var a answer
		if err := json.Unmarshal(lines.Bytes(), &a); err != nil {
			return nil, err
		}
		if a.Token != "" {
			claims, err := verify(a.Token)
			if a.claims = claims; err != nil {
				a.problem = err.Error()
			}
		}
		answers = append(answers, a)
	}
	return answers, lines.Err()
}

func (o observed) slowest() time.Duration {
	slowest := 0.0
	for _, a := range o.answers {
		slowest = max(slowest, a.MS)
	}
	return time.Duration(slowest * float64(time.Millisecond))
}

// problem is the first error that the client reported.
func (o observed) problem() string {
	for _, a := range o.answers {
		if a.Error != "" {
			return a.Error + ": " + a.Message
		}
	}
	return ""
}

// entry is what is read of a line of the proxy's log.
type entry struct {
	Message  string `json:"msg"`
	Path     string `json:"path"`
	Resource string `json:"resource"`
	Status   int    `json:"status"`
	Error    string `json:"error"`
}

// countRequests counts the requests for tokens in the proxy's log, those for other
// resources apart: az asks for one of its own when it logs in.
func (o *observed) countRequests(log string) {
	for line := range strings.Lines(log) {
		var e entry
		if json.Unmarshal([]byte(line), &e) != nil || e.Status == 0 || !strings.Contains(strings.ToLower(e.Path), "/identity/oauth2/token") {
			continue
		}
		switch e.Resource {
		case o.resource:
			o.requests++
		case "":
			o.requests++
			o.probes++
		}
	}
}
