// Command goazuresdk gets tokens with HashiCorp's go-azure-sdk, as the Terraform provider azurerm does.
package main

import (
	"context"

	"github.com/hashicorp/go-azure-sdk/sdk/auth"
	"github.com/hashicorp/go-azure-sdk/sdk/environments"

	"imds-oidc-proxy/test/compat/drivers/go/protocol"
)

func main() {
	request := protocol.ReadArguments()
	api := environments.NewApiEndpoint("compat", request.Resource, nil).WithResourceIdentifier(request.Resource)
	authorizer, err := auth.NewManagedIdentityAuthorizer(context.Background(), auth.ManagedIdentityAuthorizerOptions{Api: api, ClientId: request.ClientID})
	if err != nil {
		protocol.Fail(err)
		return
	}
	request.Run(func(ctx context.Context) (protocol.Token, error) {
		token, err := authorizer.Token(ctx, nil)
		if err != nil {
			return protocol.Token{}, err
		}
		return protocol.Token{Token: token.AccessToken, ExpiresOn: token.Expiry.Unix()}, nil
	})
}
