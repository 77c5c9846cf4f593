// Command hamilton gets tokens with hamilton, as older versions of the Terraform provider azuread do.
package main

import (
	"context"

	"github.com/manicminer/hamilton/auth"

	"imds-oidc-proxy/test/compat/drivers/go/protocol"
)

func main() {
	request := protocol.ReadArguments()
	config, err := auth.NewMsiConfig(request.Resource, "", request.ClientID)
	if err != nil {
		protocol.Fail(err)
		return
	}
	authorizer := config.TokenSource(context.Background())
	request.Run(func(context.Context) (protocol.Token, error) {
		token, err := authorizer.Token()
		if err != nil {
			return protocol.Token{}, err
		}
		return protocol.Token{Token: token.AccessToken, ExpiresOn: token.Expiry.Unix()}, nil
	})
}
