// Command azidentity gets a token with the Go SDK, like an application that has no settings for
// the proxy. It prints the token and its expiry as one line of JSON.
//
// The same source is built with several versions of the SDK, each with its own mod file.
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

// timeout is long enough for the retries of the SDK.
const timeout = 30 * time.Second

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	chain := flag.Bool("default-chain", false, "use DefaultAzureCredential")
	clientID := flag.String("client-id", "", "client ID of the user-assigned identity")
	scope := flag.String("scope", "https://vault.azure.net/.default", "scope of the token")
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
