// Package protocol implements the arguments and the output of the Go drivers. The package
// documentation of test/compat describes them.
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

// FixedToken is the token of the last credential of a chain. It shows that the credentials
// before it returned no token.
const FixedToken = "fell-through"

// timeout bounds a call of the client.
const timeout = 50 * time.Second

// Request has the arguments of a driver, which have the form name=value.
type Request struct {
	Credential, Resource           string
	ClientID, ObjectID, ResourceID string
	calls                          int
	pause                          time.Duration
}

// Token is a token from a library.
type Token struct {
	Token     string `json:"token"`
	ExpiresOn int64  `json:"expires_on"`
	// MS is the duration of the call in milliseconds; Run sets it.
	MS float64 `json:"ms"`
}

type failure struct {
	Error   string  `json:"error"`
	Message string  `json:"message"`
	MS      float64 `json:"ms"`
}

// ReadArguments parses the command line.
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

// Run calls the library as often as requested and prints one line for each result.
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

// Fail prints the error of a credential that could not be created.
func Fail(err error) { print(failure{Error: fmt.Sprintf("%T", err), Message: err.Error()}) }

// print writes one line of JSON.
func print(v any) { _ = json.NewEncoder(os.Stdout).Encode(v) } // the driver has no other output for an error
