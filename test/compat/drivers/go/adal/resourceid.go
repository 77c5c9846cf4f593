//go:build !noresourceid

package main

import "github.com/Azure/go-autorest/autorest/adal"

func byResourceID(endpoint, resource, id string) (*adal.ServicePrincipalToken, error) {
	return adal.NewServicePrincipalTokenFromMSIWithIdentityResourceID(endpoint, resource, id)
}
