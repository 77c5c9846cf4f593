// Command azidentity gets tokens as an application with the Go SDK does: with no
// setting that points at the proxy. It prints what it got as one JSON line, so
// that a test can check whose token it is.
//
// The same source is built against several versions of the SDK, one mod file each.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
)

// timeout is long enough for a client's own retries, and ends a test that hangs.
const timeout = 30 * time.Second

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	chain := flag.Bool("default-chain", false, "use DefaultAzureCredential")
	clientID := flag.String("client-id", "", "user-assigned identity to ask for")
	scope := flag.String("scope", "https://vault.azure.net/.default", "scope to ask for")
	flag.Parse()

	credential, err := newCredential(*chain, *clientID)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	token, err := credential.GetToken(ctx, policy.TokenRequestOptions{Scopes: []string{*scope}})
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(map[string]any{"token": token.Token, "expires_on": token.ExpiresOn.Unix()})
}

func newCredential(chain bool, clientID string) (azcore.TokenCredential, error) {
	if chain {
		return azidentity.NewDefaultAzureCredential(nil)
	}
	var options azidentity.ManagedIdentityCredentialOptions
	if clientID != "" {
		options.ID = azidentity.ClientID(clientID)
	}
	return azidentity.NewManagedIdentityCredential(&options)
}
