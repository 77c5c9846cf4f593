// Package protocol is how every driver is told what to do and how it tells what
// happened, in Go; test/compat says what each word means.
package protocol

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// FixedToken is what the last credential of a chain returns, so that a chain that
// fell through is seen.
const FixedToken = "fell-through"

// timeout ends a client that hangs.
const timeout = 50 * time.Second

// Request is the arguments, each given as name=value.
type Request struct {
	Credential, Resource           string
	ClientID, ObjectID, ResourceID string
	calls                          int
	pause                          time.Duration
}

// Token is what a library returned.
type Token struct {
	Token     string `json:"token"`
	ExpiresOn int64  `json:"expires_on"`
	// MS is how long the call took; Run sets it.
	MS float64 `json:"ms"`
}

type failure struct {
	Error   string  `json:"error"`
	Message string  `json:"message"`
	MS      float64 `json:"ms"`
}

// ReadArguments reads the command line.
func ReadArguments() Request {
	given := map[string]string{}
	for _, argument := range os.Args[1:] {
		name, value, _ := strings.Cut(argument, "=")
		given[name] = value
	}
	calls, _ := strconv.Atoi(given["calls"])
	pause, _ := strconv.ParseFloat(given["pause"], 64)
	return Request{
		Credential: given["credential"], Resource: given["resource"],
		ClientID: given["client_id"], ObjectID: given["object_id"], ResourceID: given["resource_id"],
		calls: max(calls, 1), pause: time.Duration(pause * float64(time.Second)),
	}
}

// Run asks as often as it was told and prints one line for each answer.
func (r Request) Run(ask func(context.Context) (Token, error)) {
	for n := range r.calls {
		if n > 0 {
			time.Sleep(r.pause)
		}
		ctx, cancel := context.WithTimeout(context.Background(), timeout)
		began := time.Now()
		token, err := ask(ctx)
		token.MS = float64(time.Since(began).Microseconds()) / 1000
		cancel()
		if err != nil {
			print(failure{Error: fmt.Sprintf("%T", err), Message: err.Error(), MS: token.MS})
			continue
		}
		print(token)
	}
}

// Fail prints the error of a credential that could not be made.
func Fail(err error) { print(failure{Error: fmt.Sprintf("%T", err), Message: err.Error()}) }

// print writes one line of JSON.
func print(v any) { _ = json.NewEncoder(os.Stdout).Encode(v) } // nobody to tell
