package imds_test

import (
	"net/http"
	"strings"
	"testing"

	"imds-oidc-proxy/internal/imds"
)

const (
	ambiguous = "Multiple user assigned identities exist, please specify the clientId / resourceId of the identity in the token request"
	notFound  = "Identity not found"
)

// What a request means depends on which identities there are. No line of this
// table may answer with an identity that the request did not mean.
func TestWhoseToken(t *testing.T) {
	one := map[string]string{objectID: mappedID}
	two := map[string]string{objectID: mappedID, resourceID: otherID}
	for _, test := range []struct {
		name       string
		defaultID  string
		identities map[string]string
		allowed    []string
		selector   string
		want       string // a client ID, or an error's description
	}{
		{"default", defaultID, two, nil, "", defaultID},
		{"no default, none known", "", nil, nil, "", notFound},
		{"no default, one known", "", one, nil, "", mappedID},
		{"no default, one allowed", "", nil, []string{otherID}, "", otherID},
		{"no default, two known", "", two, nil, "", ambiguous},
		{"no default, two allowed", "", nil, []string{otherID, defaultID}, "", ambiguous},
		{"two selectors of one identity", "", map[string]string{objectID: mappedID, resourceID: mappedID}, nil, "", mappedID},
		{"any client_id", defaultID, nil, nil, "client_id=" + otherID, otherID},
		{"client_id without a default", "", nil, nil, "client_id=" + otherID, otherID},
		{"client_id allowed", defaultID, nil, []string{defaultID, otherID}, "client_id=" + otherID, otherID},
		{"client_id not allowed", defaultID, nil, []string{defaultID}, "client_id=" + otherID, notFound},
		{"client_id allowed in another case", "", nil, []string{"ABCDEF00-0000-0000-0000-000000000000"}, "client_id=abcdef00-0000-0000-0000-000000000000", "abcdef00-0000-0000-0000-000000000000"},
		{"object_id known", defaultID, two, nil, "object_id=" + objectID, mappedID},
		{"object_id unknown", defaultID, two, nil, "object_id=" + defaultID, notFound},
		{"object_id where none is known", defaultID, nil, nil, "object_id=" + objectID, notFound},
		{"the client_id given as object_id", defaultID, two, nil, "object_id=" + mappedID, notFound},
		{"the object_id given as client_id", defaultID, two, []string{defaultID, mappedID, otherID}, "client_id=" + objectID, notFound},
		{"the object_id given as msi_res_id", defaultID, two, nil, "msi_res_id=" + objectID, notFound},
		{"the resource ID given as object_id", defaultID, two, nil, "object_id=" + resourceID, notFound},
		{"msi_res_id", defaultID, two, nil, "msi_res_id=" + resourceID, otherID},
		{"mi_res_id in upper case", defaultID, two, nil, "mi_res_id=" + strings.ToUpper(resourceID), otherID},
		{"mi_res_id with a trailing slash", defaultID, two, nil, "mi_res_id=" + resourceID + "/", notFound},
	} {
		t.Run(test.name, func(t *testing.T) {
			tokens := &tokenSource{}
			h := newHandler(t, imds.Config{
				Tokens: tokens, TenantID: tenantID, Now: config(nil).Now,
				DefaultClientID: test.defaultID, Identities: test.identities, AllowedClientIDs: test.allowed,
			})
			w := get(h, tokenPath+"?resource="+vault+"&"+test.selector)
			if w.Code == http.StatusOK {
				if got := tokens.seen(); len(got) != 1 || got[0].ClientID != test.want {
					t.Errorf("asked for %+v, want %s", got, test.want)
				}
				return
			}
			if got := decodeError(t, w).Description; got != test.want || w.Code != http.StatusBadRequest {
				t.Errorf("got %d %q, want %q", w.Code, got, test.want)
			}
		})
	}
}

func TestNewRefuses(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*imds.Config)
		want   string
	}{
		{"no tokens", func(c *imds.Config) { c.Tokens = nil }, "no token source"},
		{"no tenant", func(c *imds.Config) { c.TenantID = "" }, "no tenant ID"},
		{"default", func(c *imds.Config) { c.DefaultClientID = "app" }, `AZURE_CLIENT_ID "app" is not a GUID`},
		{"default not allowed", func(c *imds.Config) { c.Identities, c.AllowedClientIDs = nil, []string{otherID} }, `AZURE_CLIENT_ID "` + defaultID + `" is not among --allowed-client-ids`},
		{"allowed", func(c *imds.Config) { c.AllowedClientIDs = []string{"x"} }, `--allowed-client-ids: "x" is not a GUID`},
		{"selector", func(c *imds.Config) { c.Identities = map[string]string{"id1": mappedID} }, `--identity id1=` + mappedID},
		{"client ID of a selector", func(c *imds.Config) { c.Identities = map[string]string{objectID: "y"} }, `=y: client ID is not a GUID`},
		{"mapped to what is not allowed", func(c *imds.Config) { c.AllowedClientIDs = []string{defaultID} }, "the client ID is not among --allowed-client-ids"},
		{"a selector twice", func(c *imds.Config) {
			c.Identities = map[string]string{resourceID: mappedID, strings.ToUpper(resourceID): otherID}
		}, "the selector also stands for client ID"},
		{"passthrough with a path", func(c *imds.Config) { c.Passthrough.Address = "http://192.0.2.1/metadata/identity" }, "must be http://HOST"},
		{"passthrough with a query", func(c *imds.Config) { c.Passthrough.Address = "http://192.0.2.1?a" }, "must be http://HOST"},
		{"passthrough over https", func(c *imds.Config) { c.Passthrough.Address = "https://192.0.2.1" }, "must be http://HOST"},
		{"passthrough to nowhere", func(c *imds.Config) { c.Passthrough.Address = "http://" }, "must be http://HOST"},
		{"passthrough without limits", func(c *imds.Config) { c.Passthrough = imds.Passthrough{Address: "http://192.0.2.1", Timeout: -1} }, "must not be negative"},
	} {
		t.Run(test.name, func(t *testing.T) {
			cfg := config(&tokenSource{})
			test.change(&cfg)
			if _, err := imds.New(cfg); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

func TestParseIdentity(t *testing.T) {
	for _, test := range []struct{ in, selector, clientID, err string }{
		{objectID + "=" + mappedID, objectID, mappedID, ""},
		{strings.ToUpper(resourceID) + "=" + strings.ToUpper(mappedID), strings.ToLower(resourceID), mappedID, ""},
		{"/subscriptions/s/resourceGroups/a=b/providers/Microsoft.ManagedIdentity/userAssignedIdentities/n=" + mappedID,
			"/subscriptions/s/resourcegroups/a=b/providers/microsoft.managedidentity/userassignedidentities/n", mappedID, ""},
		{objectID, "", "", "is not of the form SELECTOR=CLIENT_ID"},
		{"=" + mappedID, "", "", "selector is neither"},
		{objectID + "=", "", "", "client ID is not a GUID"},
		{objectID + "=app", "", "", "client ID is not a GUID"},
		{"/subscriptions/s/resourceGroups/rg=" + mappedID, "", "", "selector is neither"},
		{"/subscriptions//resourceGroups/rg/providers/Microsoft.ManagedIdentity/userAssignedIdentities/n=" + mappedID, "", "", "selector is neither"},
		{"/subscriptions/s/resourceGroups/rg/providers/Microsoft.Compute/virtualMachines/n=" + mappedID, "", "", "selector is neither"},
		{strings.Replace(resourceID, "rg", strings.Repeat("g", 512), 1) + "=" + mappedID, "", "", "selector is neither"},
		{"/\u017fubscriptions/s/resourceGroups/rg/providers/Microsoft.ManagedIdentity/userAssignedIdentities/n=" + mappedID, "", "", "selector is neither"},
	} {
		selector, clientID, err := imds.ParseIdentity(test.in)
		if test.err == "" && err == nil && selector == test.selector && clientID == test.clientID {
			continue
		}
		if test.err == "" || err == nil || !strings.Contains(err.Error(), test.err) {
			t.Errorf("ParseIdentity(%q): got %q, %q, %v, want %q, %q, %q", test.in, selector, clientID, err, test.selector, test.clientID, test.err)
		}
	}
}
