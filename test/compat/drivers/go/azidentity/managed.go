//go:build !v0

package main

import (
	"context"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"

	"imds-oidc-proxy/test/compat/drivers/go/protocol"
)

func newManaged(request protocol.Request) (azcore.TokenCredential, error) {
	var options azidentity.ManagedIdentityCredentialOptions
	switch {
	case request.ClientID != "":
		options.ID = azidentity.ClientID(request.ClientID)
	case request.ResourceID != "":
		options.ID = azidentity.ResourceID(request.ResourceID)
	case request.ObjectID != "":
		options.ID = objectID(request.ObjectID)
	}
	return azidentity.NewManagedIdentityCredential(&options)
}

func newChain(sources ...azcore.TokenCredential) (azcore.TokenCredential, error) {
	return azidentity.NewChainedTokenCredential(sources, nil)
}

// fixed is a credential that always returns the same token.
type fixed struct{}

func (fixed) GetToken(context.Context, policy.TokenRequestOptions) (azcore.AccessToken, error) {
	return azcore.AccessToken{Token: protocol.FixedToken, ExpiresOn: time.Now().Add(time.Hour)}, nil
}
