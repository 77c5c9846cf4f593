package main

import (
	"bufio"
	"encoding/json"
	"strings"
	"time"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/test/kit/entra"
)

// answer is a line of a driver's output.
type answer struct {
	Token     string  `json:"token"`
	ExpiresOn int64   `json:"expires_on"`
	Error     string  `json:"error"`
	Message   string  `json:"message"`
	MS        float64 `json:"ms"`

	claims  entra.AccessToken // claims of Token, if it is a valid token from Entra
	problem string            // why there are no claims
}

// observed is what happened in a scenario.
type observed struct {
	resource  string
	answers   []answer
	exchanges []entra.Exchange
	// requests is the number of requests to the token path, and probes the number of those
	// without the Metadata header.
	requests, probes int
	// node is the number of requests that reached the node's IMDS.
	node int
	// began is the time before the first call. hidesExpiry is that of the job.
	began       time.Time
	hidesExpiry bool
	// failure is an error of the driver itself, such as invalid output.
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

// problem returns the first error that the client reported.
func (o observed) problem() string {
	for _, a := range o.answers {
		if a.Error != "" {
			return a.Error + ": " + a.Message
		}
	}
	return ""
}

// entry has the fields that are read of a line in the proxy's log.
type entry struct {
	Message  string `json:"msg"`
	Path     string `json:"path"`
	Resource string `json:"resource"`
	Status   int    `json:"status"`
	Error    string `json:"error"`
}

// countRequests counts the token requests in the proxy's log. It ignores requests for other
// resources, such as the one that az sends at login.
func (o *observed) countRequests(log string) {
	for line := range strings.Lines(log) {
		var e entry
		if json.Unmarshal([]byte(line), &e) != nil || e.Status == 0 || e.Path != azure.AppServicePath && !strings.Contains(strings.ToLower(e.Path), "/identity/oauth2/token") {
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
