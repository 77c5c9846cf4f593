package exchange_test

import (
	"encoding/base64"
	"strings"
	"testing"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/exchange"
)

const (
	someObjectID   = "0d0d0d0d-1111-4222-8333-444444444444"
	otherObjectID  = "0e0e0e0e-1111-4222-8333-444444444444"
	someResourceID = "/subscriptions/s/resourcegroups/g/providers/microsoft.managedidentity/userassignedidentities/cart"
)

// accessToken returns an access token with this payload.
func accessToken(payload string) exchange.Token {
	return exchange.Token{AccessToken: "eyJhbGciOiJSUzI1NiJ9." + base64.RawURLEncoding.EncodeToString([]byte(payload)) + ".c2ln"}
}

func TestNames(t *testing.T) {
	for _, test := range []struct {
		name  string
		token exchange.Token
		want  exchange.Names
	}{
		{"object ID", accessToken(`{"aud":"x","oid":"` + someObjectID + `","sub":"y"}`), exchange.Names{ObjectID: someObjectID}},
		{"in upper case", accessToken(`{"oid":"` + strings.ToUpper(someObjectID) + `"}`), exchange.Names{ObjectID: someObjectID}},
		{"both", accessToken(`{"xms_mirid":"` + strings.ToUpper(someResourceID) + `","oid":"` + someObjectID + `"}`), exchange.Names{ObjectID: someObjectID, ResourceID: someResourceID}},
		{"other claims of all types", accessToken(`{"a":[1,{"oid":"x"}],"b":{"oid":"` + otherObjectID + `"},"c":null,"d":1e3,"oid":"` + someObjectID + `"}`), exchange.Names{ObjectID: someObjectID}},
		{"resource ID of a virtual machine", accessToken(`{"xms_mirid":"/subscriptions/s/resourcegroups/g/providers/Microsoft.Compute/virtualMachines/vm","oid":"` + someObjectID + `"}`), exchange.Names{ObjectID: someObjectID}},
		{"not a GUID", accessToken(`{"oid":"cart"}`), exchange.Names{}},
		{"another spelling of the claim", accessToken(`{"OID":"` + someObjectID + `"}`), exchange.Names{}},
		{"twice", accessToken(`{"oid":"` + someObjectID + `","oid":"` + otherObjectID + `"}`), exchange.Names{}},
		{"twice the same", accessToken(`{"oid":"` + someObjectID + `","oid":"` + someObjectID + `"}`), exchange.Names{}},
		{"twice, once escaped", accessToken(`{"oid":"` + someObjectID + `","\u006fid":"` + otherObjectID + `"}`), exchange.Names{}},
		{"a list", accessToken(`{"oid":["` + someObjectID + `"]}`), exchange.Names{}},
		{"an object", accessToken(`{"oid":{"oid":"` + someObjectID + `"}}`), exchange.Names{}},
		{"null", accessToken(`{"oid":null}`), exchange.Names{}},
		{"no claims", accessToken(`{}`), exchange.Names{}},
		{"no object", accessToken(`["oid","` + someObjectID + `"]`), exchange.Names{}},
		{"truncated", accessToken(`{"oid":"` + someObjectID + `"`), exchange.Names{}},
		{"two objects", accessToken(`{"oid":"` + someObjectID + `"}{"oid":"` + someObjectID + `"}`), exchange.Names{}},
		{"a brace after the object", accessToken(`{"oid":"` + someObjectID + `"}}`), exchange.Names{}},
		{"text after the object", accessToken(`{"oid":"` + someObjectID + `"} x`), exchange.Names{}},
		{"opaque", exchange.Token{AccessToken: "EwBwA8l6BAAU"}, exchange.Names{}},
		{"opaque, with dots", exchange.Token{AccessToken: "a.b%.c"}, exchange.Names{}},
		{"encrypted", exchange.Token{AccessToken: "eyJhbGciOiJkaXIifQ..aXY.Y2lwaGVy.dGFn"}, exchange.Names{}},
		{"four parts", exchange.Token{AccessToken: accessToken(`{"oid":"`+someObjectID+`"}`).AccessToken + ".x"}, exchange.Names{}},
		{"empty", exchange.Token{}, exchange.Names{}},
		{"deeply nested", accessToken(strings.Repeat(`{"a":`, 20_000)), exchange.Names{}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := test.token.Names(); got != test.want {
				t.Errorf("got %+v, want %+v", got, test.want)
			}
		})
	}
}

func TestNamesOfSelector(t *testing.T) {
	both := exchange.Names{ObjectID: someObjectID, ResourceID: someResourceID}
	onlyObject := exchange.Names{ObjectID: someObjectID}
	for _, test := range []struct {
		names            exchange.Names
		selector         azure.Selector
		has, contradicts bool
	}{
		{both, someObjectID, true, false},
		{both, someResourceID, true, false},
		{both, otherObjectID, false, true},
		{both, someResourceID + "x", false, true},
		{onlyObject, someResourceID, false, false},
		{exchange.Names{}, someObjectID, false, false},
		{exchange.Names{}, "", false, false},
		{onlyObject, "", false, true},
	} {
		if has, contradicts := test.names.Has(test.selector), test.names.Contradicts(test.selector); has != test.has || contradicts != test.contradicts {
			t.Errorf("%+v, %q: has %t, contradicts %t; want %t, %t", test.names, test.selector, has, contradicts, test.has, test.contradicts)
		}
	}
}

// FuzzNames: whatever a token contains, its names are valid identifiers.
func FuzzNames(f *testing.F) {
	f.Add([]byte(`{"oid":"`+someObjectID+`","xms_mirid":"`+someResourceID+`"}`), "c")
	f.Add([]byte(`{"oid":1}`), "")
	f.Add([]byte(`[`), ".")
	f.Fuzz(func(t *testing.T, payload []byte, rest string) {
		token := accessToken(string(payload))
		token.AccessToken += rest
		n := token.Names()
		if id, err := azure.ParseObjectID(string(n.ObjectID)); n.ObjectID != "" && (err != nil || id != n.ObjectID) {
			t.Errorf("object ID %q", n.ObjectID)
		}
		if id, err := azure.ParseResourceID(string(n.ResourceID)); n.ResourceID != "" && (err != nil || id != n.ResourceID) {
			t.Errorf("resource ID %q", n.ResourceID)
		}
		if strings.Contains(rest, ".") && n != (exchange.Names{}) {
			t.Errorf("names %+v of a token with more than three parts", n)
		}
	})
}
