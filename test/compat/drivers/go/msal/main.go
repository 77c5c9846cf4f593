// Command msal gets tokens with MSAL Go's managedidentity.
package main

import (
	"context"

	"github.com/AzureAD/microsoft-authentication-library-for-go/apps/managedidentity"

	"imds-oidc-proxy/test/compat/drivers/go/protocol"
)

func main() {
	request := protocol.ReadArguments()
	client, err := managedidentity.New(identity(request))
	if err != nil {
		protocol.Fail(err)
		return
	}
	request.Run(func(ctx context.Context) (protocol.Token, error) {
		token, err := client.AcquireToken(ctx, request.Resource)
		if err != nil {
			return protocol.Token{}, err
		}
		return protocol.Token{Token: token.AccessToken, ExpiresOn: token.ExpiresOn.Unix()}, nil
	})
}

func identity(request protocol.Request) managedidentity.ID {
	switch {
	case request.ClientID != "":
		return managedidentity.UserAssignedClientID(request.ClientID)
	case request.ObjectID != "":
		return managedidentity.UserAssignedObjectID(request.ObjectID)
	case request.ResourceID != "":
		return managedidentity.UserAssignedResourceID(request.ResourceID)
	}
	return managedidentity.SystemAssigned()
}
