// Command azidentity gets tokens with the Go SDK's azidentity, 0.11.0 and later.
package main

import (
	"context"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"

	"imds-oidc-proxy/test/compat/drivers/go/protocol"
)

func main() {
	request := protocol.ReadArguments()
	credential, err := newCredential(request)
	if err != nil {
		protocol.Fail(err)
		return
	}
	request.Run(func(ctx context.Context) (protocol.Token, error) {
		token, err := credential.GetToken(ctx, policy.TokenRequestOptions{Scopes: []string{request.Resource + "/.default"}})
		if err != nil {
			return protocol.Token{}, err
		}
		return protocol.Token{Token: token.Token, ExpiresOn: token.ExpiresOn.Unix()}, nil
	})
}

func newCredential(request protocol.Request) (azcore.TokenCredential, error) {
	if request.Credential == "default" {
		return azidentity.NewDefaultAzureCredential(nil)
	}
	managed, err := newManaged(request)
	if err != nil || request.Credential != "fallthrough" {
		return managed, err
	}
	return newChain(managed, fixed{})
}
