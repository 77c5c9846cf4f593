package plan_test

import (
	"fmt"
	"strings"
	"testing"

	"imds-oidc-proxy/internal/plan"
)

// TestDeclared checks that credentials which objects of the cluster describe are not created again.
func TestDeclared(t *testing.T) {
	aso := func(owner, subject string) string {
		return object("managedidentity.azure.com/v1api20230131", "FederatedIdentityCredential", "f", fmt.Sprintf("spec: {owner: {%s}, issuer: '%s', subject: 'system:serviceaccount:ns:%s'}", owner, issuer, subject))
	}
	uai := func(n int) string {
		return object("managedidentity.azure.com/v1api20230131", "UserAssignedIdentity", "uai", "spec: {}, status: {clientId: "+client(n)+"}")
	}
	upjet := func(group, parent string) string {
		return object(group+"/v1beta1", "FederatedIdentityCredential", "f", fmt.Sprintf("spec: {forProvider: {parentId: %s, issuer: '%s', subject: 'system:serviceaccount:ns:sa'}}", parent, issuer))
	}
	for name, c := range map[string]struct {
		objects []string
		created int
	}{
		"none":                      {nil, 1},
		"ASO by resource ID":        {docs(aso("armId: "+strings.ToUpper(resource("app-identity")), "sa")), 0},
		"ASO by name":               {docs(aso("name: uai", "sa"), uai(1)), 0},
		"ASO by another name":       {docs(aso("name: uai", "sa"), uai(2)), 1},
		"ASO without its owner":     {docs(aso("name: gone", "sa")), 1},
		"ASO for another account":   {docs(aso("armId: "+resource("app-identity"), "other")), 1},
		"Crossplane":                {docs(upjet("managedidentity.azure.upbound.io", resource("app-identity"))), 0},
		"Crossplane in a namespace": {docs(upjet("managedidentity.azure.m.upbound.io", resource("app-identity"))), 0},
		"Crossplane, another":       {docs(upjet("managedidentity.azure.upbound.io", resource("web-identity"))), 1},
		"Crossplane by reference":   {docs(upjet("managedidentity.azure.upbound.io", "''")), 1},
	} {
		p := planOf(t, plan.Options{}, docs(labelled(app{}), c.objects)...)
		if len(p.Credentials) != c.created {
			t.Errorf("%s: got %v", name, p.Credentials)
		}
	}
}
