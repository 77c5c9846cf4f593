package repo

import (
	"fmt"
	"strings"
	"testing"
)

// Kinds of identifiers, in the table of TestIdentifiers.
const (
	kindClientID   = "client ID"
	kindIdentity   = "identity"
	kindResource   = "resource"
	kindTenant     = "tenant"
	kindAuthority  = "authority host"
	kindTokenProxy = "token proxy"
	kindCloud      = "cloud"
	kindHTTPProxy  = "HTTP proxy"
	kindPort       = "port"
	kindAddress    = "address"
)

// Parts of the inputs.
const (
	idOne    = "6c0ac4e6-9b6d-4d2a-8d5a-6f1f3a1f9b10"
	idTwo    = "77777777-7777-4777-8777-777777777777"
	armStart = "/subscriptions/33333333-0000-4000-8000-000000000001/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/"
)

// Reasons for refusing a value. All programs use the same text.
const (
	notClientID  = "must be a GUID: the application (client) ID, not a name or a resource ID"
	notSelector  = "must be an object ID (a GUID) or the ARM resource ID of a user-assigned identity, before =CLIENT_ID"
	notPair      = "must be SELECTOR=CLIENT_ID"
	notResource  = "must be a URI without a fragment, such as https://vault.azure.net, or a GUID"
	notTenant    = "must be a tenant's ID (a GUID) or its domain, such as tenant.onmicrosoft.com"
	notURL       = "must be an https URL, such as https://login.example.test"
	notHTTPProxy = "must be the URL of a proxy, for example http://<HOST>:<PORT>"
	notPort      = "must be between 1 and 65535"
	notURLPort   = "must have a port between 1 and 65535"
	notAddress   = "must be HOST:PORT or :PORT, such as :8001"
)

// identifiers lists values. Every program that reads this kind of identifier accepts the value, if
// reason is empty, or refuses it for this reason.
var identifiers = []struct{ kind, value, reason string }{
	{kindClientID, idOne, ""},
	{kindClientID, strings.ToUpper(idOne), ""},
	{kindClientID, "1111", notClientID},
	{kindClientID, "app", notClientID},
	{kindClientID, "{" + idOne + "}", notClientID},
	{kindClientID, idOne + "0", notClientID},
	{kindClientID, idOne[:35] + "g", notClientID},
	{kindClientID, strings.ReplaceAll(idOne, "-", ""), notClientID},

	{kindIdentity, idTwo + "=" + idOne, ""},
	{kindIdentity, strings.ToUpper(idTwo) + "=" + strings.ToUpper(idOne), ""},
	{kindIdentity, armStart + "app=" + idOne, ""},
	{kindIdentity, strings.ToUpper(armStart) + "a!~'(b)\"=" + idOne, ""},
	{kindIdentity, strings.Replace(armStart, "/g/", "/a=b/", 1) + "app=" + idOne, ""},
	{kindIdentity, idTwo + "=" + idOne + ", " + armStart + "app=" + idOne, ""},
	{kindIdentity, armStart + strings.Repeat("a", 512-len(armStart)) + "=" + idOne, ""},
	{kindIdentity, armStart + strings.Repeat("a", 513-len(armStart)) + "=" + idOne, notSelector},
	{kindIdentity, idTwo, notPair},
	{kindIdentity, "name=" + idOne, notSelector},
	{kindIdentity, "=" + idOne, notSelector},
	{kindIdentity, armStart + "=" + idOne, notSelector},
	{kindIdentity, armStart + "a/b=" + idOne, notSelector},
	{kindIdentity, armStart + "a b=" + idOne, notSelector},
	{kindIdentity, armStart + "ü=" + idOne, notSelector},
	{kindIdentity, strings.Replace(armStart, "s", "ſ", 1) + "app=" + idOne, notSelector},
	{kindIdentity, idTwo + "=app", notClientID},
	{kindIdentity, idTwo + "=", notClientID},
	{kindIdentity, idTwo + "=" + idOne + "," + strings.ToUpper(idTwo) + "=" + idTwo, "must have one client ID, and has " + idOne + " and " + idTwo},

	{kindResource, "https://vault.azure.net", ""},
	{kindResource, "https://vault.azure.net/,api://app/.default", ""},
	{kindResource, "https://a.example.test/%2f?x=[1]", ""},
	{kindResource, "00000002-0000-0000-c000-000000000000/.default", ""},
	{kindResource, "a+b-c.1:x", ""},
	{kindResource, "x:" + strings.Repeat("x", 1022), ""},
	{kindResource, "x:" + strings.Repeat("x", 1023), "must be at most 1024 bytes long"},
	{kindResource, "vault.azure.net", notResource},
	{kindResource, "https:", notResource},
	{kindResource, "1a:x", notResource},
	{kindResource, "https://a.example.test/#part", notResource},
	{kindResource, "https://a.example.test#", notResource},
	{kindResource, "https://a.example.test/%2", notResource},
	{kindResource, "https://a.example.test/ü", notResource},
	{kindResource, "https://a example.test", notResource},
	{kindResource, `https://"`, notResource},
	{kindResource, "https://a.example.test,", notResource},
	{kindResource, "https://a.example.test\nhttps://b.example.test", "must be one line, with commas between its items"},

	{kindTenant, "11111111-2222-4333-8444-555555555555", ""},
	{kindTenant, "tenant.example.test", ""},
	{kindTenant, "A-1.b", ""},
	{kindTenant, strings.Repeat("a.", 126) + "a", ""},
	{kindTenant, strings.Repeat("a.", 126) + "aa", notTenant},
	{kindTenant, "contoso", notTenant},
	{kindTenant, "a..b.com", notTenant},
	{kindTenant, ".example.test", notTenant},
	{kindTenant, "example.test.", notTenant},
	{kindTenant, "-a.example.test", notTenant},
	{kindTenant, "a_b.example.test", notTenant},
	{kindTenant, "../x", notTenant},
	{kindTenant, "x?y", notTenant},
	{kindTenant, "a.b/c", notTenant},
	{kindTenant, "11111111-2222-4333-8444-55555555555", notTenant},
	{kindTenant, "Common", "must be the ID or the domain of one tenant; this name stands for many"},
	{kindTenant, "organizations", "must be the ID or the domain of one tenant; this name stands for many"},
	{kindTenant, "consumers", "must be the ID or the domain of one tenant; this name stands for many"},
	{kindTenant, "adfs", "must be the ID or the domain of an Entra tenant; this name is for another protocol"},
	{kindTenant, "DSTSv2", "must be the ID or the domain of an Entra tenant; this name is for another protocol"},

	{kindAuthority, "https://login.microsoftonline.com/", ""},
	{kindAuthority, "https://login.example.test", ""},
	{kindAuthority, "HTTPS://login_1.example.test:65535/", ""},
	{kindAuthority, "https://127.0.0.1:0443", ""},
	{kindAuthority, "https://[::1]:443/", ""},
	{kindAuthority, "https://login.example.test/adfs", "must not contain a path: the tenant is set separately"},
	{kindAuthority, "https://login.example.test//", "must not contain a path: the tenant is set separately"},

	{kindAuthority, "https://[1:2:3:4:5:6:7:8]", ""},
	{kindAuthority, "https://[1:2:3:4:5:6:7::]", ""},
	{kindAuthority, "https://[::2:3:4:5:6:7:8]", ""},
	{kindAuthority, "https://[1::3:4:5:6:7:8]", ""},
	{kindAuthority, "https://[2001:DB8::]:8443", ""},
	{kindAuthority, "https://[::]", ""},
	{kindAuthority, "https://[::ffff:192.0.2.1]", ""},
	{kindAuthority, "https://[1:2:3:4:5:6:192.0.2.255]", ""},

	{kindTokenProxy, "https://binding.example.test", ""},
	{kindTokenProxy, "https://[2001:db8::1]:8443/a", ""},
	{kindTokenProxy, "https://binding.example.test:8443/a%2fb/@;=", ""},
	{kindTokenProxy, "https://binding.example.test/a%2", notURL},
	{kindTokenProxy, "https://binding.example.test/a b", notURL},

	{kindHTTPProxy, "http://proxy.example.test:3128", ""},
	{kindHTTPProxy, "https://user:password@proxy.example.test/", ""},
	{kindHTTPProxy, "socks5h://[2001:db8::1]:1080", ""},
	{kindHTTPProxy, "proxy.example.test:3128", ""},
	{kindHTTPProxy, "ftp://u:c4n4ry@proxy.example.test", notHTTPProxy},
	{kindHTTPProxy, "http://", notHTTPProxy},
	{kindHTTPProxy, "http://u:c4n4ry p@proxy.example.test", notHTTPProxy},

	{kindCloud, "AzurePublicCloud", ""},
	{kindCloud, "AzureCloud", ""},
	{kindCloud, "AzureUSGovernmentCloud", ""},
	{kindCloud, "AzureUSGovernment", ""},
	{kindCloud, "AzureChinaCloud", ""},
	{kindCloud, "AzureMoonCloud", "must be AzurePublicCloud, AzureUSGovernmentCloud or AzureChinaCloud; for another cloud set the authority host"},

	{kindPort, "1", ""},
	{kindPort, "8000", ""},
	{kindPort, "010000", ""},
	{kindPort, "65535", ""},
	{kindPort, "0", notPort},
	{kindPort, "65536", notPort},
	{kindPort, "-1", notPort},
	{kindPort, "+8000", notPort},
	{kindPort, " 8000", notPort},
	{kindPort, "0x1f40", notPort},
	{kindPort, "http", notPort},

	{kindAddress, ":1", ""},
	{kindAddress, "127.0.0.1:65535", ""},
	{kindAddress, "[::1]:8001", ""},
	{kindAddress, "8001", notAddress},
	{kindAddress, "::1:8001", notAddress},
	{kindAddress, ":0", notURLPort},
	{kindAddress, "127.0.0.1:0", notURLPort},
	{kindAddress, ":65536", notURLPort},
	{kindAddress, ":http", notURLPort},
}

// urls lists values that are refused both as authority host and as token proxy.
var urls = []struct{ value, reason string }{
	{"login.example.test", notURL},
	{"http://login.example.test", notURL},
	{"https:///", notURL},
	{"https://a b", notURL},
	{"https://a!b", notURL},
	{"https://ü.example.test", notURL},
	{"https://login.example.test:x", notURL},
	{"https://[]", notURL},
	{"https://[::1", notURL},
	{"https://[:]", notURL},
	{"https://[:::::]", notURL},
	{"https://[1:2:3:4:5:6:7]", notURL},
	{"https://[1:2:3:4:5:6:7:8:9]", notURL},
	{"https://[1:2:3:4:5:6:7::8]", notURL}, // :: replaces at least one group
	{"https://[1::2::3]", notURL},
	{"https://[:1:2:3:4:5:6:7]", notURL},
	{"https://[00001::]", notURL},
	{"https://[::g]", notURL},
	{"https://[1.2.3.4]", notURL},
	{"https://[::256.0.2.1]", notURL},
	{"https://[::192.0.2.01]", notURL},
	{"https://[::192.0.2]", notURL},
	{"https://[::192.0.2.1:1]", notURL},
	{"https://[1:2:3:4:5:6:7:192.0.2.1]", notURL},
	{"https://[fe80::1%25eth0]", notURL},
	{"https://user@login.example.test", "must not contain a user or password"},
	{"https://user:c4n4ry@login.example.test", "must not contain a user or password"},
	{"https://login.example.test?", "must not contain a query (?)"},
	{"https://login.example.test/?a=b", "must not contain a query (?)"},
	{"https://login.example.test#", "must not contain a fragment (#)"},
	{"https://login.example.test/#a", "must not contain a fragment (#)"},
	{"https://login.example.test:0", notURLPort},
	{"https://login.example.test:", notURLPort},
	{"https://login.example.test:65536", notURLPort},
	{"https://login.example.test:99999/", notURLPort},
}

// TestIdentifiers: proxy, proxy-init, webhook, imds-migrate and the chart accept the same values,
// and refuse the others for the same reason. If injection accepted a value that the proxy refuses,
// the pod would not start. No error contains a password.
func TestIdentifiers(t *testing.T) {
	p := programs{dir: binaries(t), schema: readSchema(t)}
	table := identifiers
	for _, u := range urls {
		for _, kind := range []string{kindAuthority, kindTokenProxy} {
			table = append(table, struct{ kind, value, reason string }{kind, u.value, u.reason})
		}
	}
	readers := p.readers()
	for _, row := range table {
		t.Run(fmt.Sprintf("%s %.60q", row.kind, row.value), func(t *testing.T) {
			t.Parallel()
			for _, r := range readers[row.kind] {
				message := r.read(t, row.value)
				if (message == "") != (row.reason == "") || message != schemaRefuses && !strings.Contains(message, row.reason) {
					t.Errorf("%s: got the error %q, want %q", r.name, message, row.reason)
				}
				if strings.Contains(message, "c4n4ry") {
					t.Errorf("%s: the error contains a password: %s", r.name, message)
				}
			}
		})
	}
}
