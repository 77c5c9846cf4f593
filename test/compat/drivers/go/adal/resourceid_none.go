//go:build noresourceid

package main

import (
	"errors"

	"github.com/Azure/go-autorest/autorest/adal"
)

func byResourceID(string, string, string) (*adal.ServicePrincipalToken, error) {
	return nil, errors.New("this version cannot ask by resource ID")
}
