// Command adal gets tokens with go-autorest's adal, as the track 1 SDK does.
package main

import (
	"context"
	"strconv"

	"github.com/Azure/go-autorest/autorest/adal"

	"imds-oidc-proxy/test/compat/drivers/go/protocol"
)

func main() {
	request := protocol.ReadArguments()
	token, err := newToken(request)
	if err != nil {
		protocol.Fail(err)
		return
	}
	request.Run(func(ctx context.Context) (protocol.Token, error) {
		// The SDK's authorizers do the same before each request to a service.
		if err := token.EnsureFreshWithContext(ctx); err != nil {
			return protocol.Token{}, err
		}
		expires, err := strconv.ParseInt(string(token.Token().ExpiresOn), 10, 64)
		return protocol.Token{Token: token.OAuthToken(), ExpiresOn: expires}, err
	})
}

func newToken(request protocol.Request) (*adal.ServicePrincipalToken, error) {
	endpoint, err := adal.GetMSIEndpoint()
	switch {
	case err != nil:
		return nil, err
	case request.ClientID != "":
		return adal.NewServicePrincipalTokenFromMSIWithUserAssignedID(endpoint, request.Resource, request.ClientID)
	case request.ResourceID != "":
		return byResourceID(endpoint, request.Resource, request.ResourceID)
	}
	return adal.NewServicePrincipalTokenFromMSI(endpoint, request.Resource)
}
