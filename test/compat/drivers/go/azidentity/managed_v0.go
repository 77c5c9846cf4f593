//go:build v0

package main

import (
	"context"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"

	"imds-oidc-proxy/test/compat/drivers/go/protocol"
)

func newManaged(request protocol.Request) (azcore.TokenCredential, error) {
	if request.ResourceID != "" {
		options := azidentity.ManagedIdentityCredentialOptions{ID: azidentity.ResourceID}
		return azidentity.NewManagedIdentityCredential(request.ResourceID, &options)
	}
	return azidentity.NewManagedIdentityCredential(request.ClientID, nil)
}

func newChain(sources ...azcore.TokenCredential) (azcore.TokenCredential, error) {
	return azidentity.NewChainedTokenCredential(sources...)
}

// fixed is a credential that always returns the same token.
type fixed struct{}

func (fixed) GetToken(context.Context, policy.TokenRequestOptions) (*azcore.AccessToken, error) {
	return &azcore.AccessToken{Token: protocol.FixedToken, ExpiresOn: time.Now().Add(time.Hour)}, nil
}

// NewAuthenticationPolicy is part of the interface. The driver does not call it, because it
// sends no requests to services.
func (fixed) NewAuthenticationPolicy(runtime.AuthenticationOptions) policy.Policy { return nil }
