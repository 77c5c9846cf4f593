package azure_test

import (
	"strings"
	"testing"

	"imds-oidc-proxy/internal/azure"
)

func TestParseTenant(t *testing.T) {
	longest := strings.Repeat("a.", 126) + "a"
	for _, in := range []string{clientID, strings.ToUpper(clientID), "tenant.example.test", "A-1.b", "1.2", longest} {
		check(t, azure.ParseTenant, in, azure.Tenant(in), "")
	}
	const reason = "must be a tenant's ID (a GUID) or its domain, such as tenant.onmicrosoft.com"
	for _, in := range []string{
		"", "contoso", "a..b.com", ".", ".a", "a.", "../x", "x?y", "a b.c", "-a.b", "a-.b", "a.-b", "a.b-", "a_b.c", "ü.example.test", clientID + "0",
		"a.b/c", "a.b%2fc", longest + "a",
	} {
		check(t, azure.ParseTenant, in, "", reason)
	}
	for in, reason := range map[string]string{
		"common":        "must be the ID or the domain of one tenant; this name stands for many",
		"Organizations": "must be the ID or the domain of one tenant; this name stands for many",
		"consumers":     "must be the ID or the domain of one tenant; this name stands for many",
		"ADFS":          "must be the ID or the domain of an Entra tenant; this name is for another protocol",
		"dstsv2":        "must be the ID or the domain of an Entra tenant; this name is for another protocol",
	} {
		check(t, azure.ParseTenant, in, "", reason)
	}
	const alnum = "09AFGZafgz"
	checkBytes(t, azure.ParseTenant, "a^b.c", alnum+"-.")
	checkBytes(t, azure.ParseTenant, "^a.b", alnum)
	checkBytes(t, azure.ParseTenant, "a^.b", alnum+"-"[1:])
	checkBytes(t, azure.ParseTenant, "a.b^", alnum)
}

func TestParseCloud(t *testing.T) {
	for in, want := range map[string]azure.AuthorityHost{
		"AzurePublicCloud": "https://login.microsoftonline.com/", "azurecloud": "https://login.microsoftonline.com/",
		"AzureUSGovernmentCloud": "https://login.microsoftonline.us/", "AZUREUSGOVERNMENT": "https://login.microsoftonline.us/",
		"AzureChinaCloud": "https://login.chinacloudapi.cn/",
	} {
		check(t, azure.ParseCloud, in, want, "")
	}
	for _, in := range []string{"", "AzureMoonCloud", "A\u017fureCloud"} {
		check(t, azure.ParseCloud, in, "", "for another cloud set the authority host")
	}
}

// wrongURLs are refused as authority hosts and as token proxies, for the given reason. No
// error quotes them: a URL may contain a password.
var wrongURLs = map[string]string{
	"":                                   "must be an https URL, such as https://login.example.test",
	"login.example.test":                 "must be an https URL, such as https://login.example.test",
	"http://login.example.test":          "must be an https URL, such as https://login.example.test",
	"https:login.example.test":           "must be an https URL, such as https://login.example.test",
	"https:///":                          "must be an https URL, such as https://login.example.test",
	"https://:443":                       "must be an https URL, such as https://login.example.test",
	"https://a b":                        "must be an https URL, such as https://login.example.test",
	"https://a/b c":                      "must be an https URL, such as https://login.example.test",
	"https://ü.example.test":             "must be an https URL, such as https://login.example.test",
	"https://a!b":                        "must be an https URL, such as https://login.example.test",
	"https://[::1":                       "must be an https URL, such as https://login.example.test",
	"https://[fe80::1%25eth0]":           "must be an https URL, such as https://login.example.test",
	"https://login.example.test:x":       "must be an https URL, such as https://login.example.test",
	"https://login.example.test/%2":      "must be an https URL, such as https://login.example.test",
	"https://login.example.test/\x7f":    "must be an https URL, such as https://login.example.test",
	"https://user@login.example.test":    "must not contain a user or password",
	"https://u:c4n4ry@login.example":     "must not contain a user or password",
	"https://login.example.test?":        "must not contain a query (?)",
	"https://login.example.test/?a=b":    "must not contain a query (?)",
	"https://login.example.test#":        "must not contain a fragment (#)",
	"https://login.example.test/#?":      "must not contain a fragment (#)",
	"https://login.example.test:0":       "must have a port between 1 and 65535",
	"https://login.example.test:":        "must have a port between 1 and 65535",
	"https://login.example.test:65536/":  "must have a port between 1 and 65535",
	"https://[::1]:65536/":               "must have a port between 1 and 65535",
	"https://login.example.test:4430000": "must have a port between 1 and 65535",
}

func TestParseAuthorityHost(t *testing.T) {
	for in, want := range map[string]azure.AuthorityHost{
		"https://login.example.test":        "https://login.example.test/",
		"https://login.example.test/":       "https://login.example.test/",
		"HTTPS://login_1.Example.test:8443": "https://login_1.Example.test:8443/",
		"https://login.example.test:65535":  "https://login.example.test:65535/",
		"https://127.0.0.1:1/":              "https://127.0.0.1:1/",
		"https://[::1]:443":                 "https://[::1]:443/",
		"https://[::1]":                     "https://[::1]/",
	} {
		check(t, azure.ParseAuthorityHost, in, want, "")
	}
	for in, reason := range wrongURLs {
		check(t, azure.ParseAuthorityHost, in, "", reason)
	}
	for _, in := range []string{"https://login.example.test/adfs", "https://login.example.test//", "https://login.example.test/tenant/"} {
		check(t, azure.ParseAuthorityHost, in, "", "must not contain a path: the tenant is set separately")
	}
	checkBytes(t, azure.ParseAuthorityHost, "https://a^b", "-.09AFGZ_afgz")
}

func TestParseTokenProxy(t *testing.T) {
	for _, in := range []string{"https://binding.example.test", "https://binding.example.test/a%2fb/@;=", "HTTPS://10.0.0.1:443/"} {
		check(t, azure.ParseTokenProxy, in, azure.TokenProxy(in), "")
	}
	for in, reason := range wrongURLs {
		check(t, azure.ParseTokenProxy, in, "", reason)
	}
	checkBytes(t, azure.ParseTokenProxy, "https://a/b^c", "!$&'()*+,-./09:;=@AFGZ[]_afgz~")
}

func TestParseMetadataURL(t *testing.T) {
	for in, want := range map[string]azure.MetadataURL{
		"http://169.254.169.254": "http://169.254.169.254", "http://192.0.2.1:80/": "http://192.0.2.1:80", "HTTP://[::1]:65535": "http://[::1]:65535",
	} {
		check(t, azure.ParseMetadataURL, in, want, "")
	}
	for _, in := range []string{
		"", "169.254.169.254", "nonsense", "http://", "https://192.0.2.1", "http://192.0.2.1/metadata/identity", "http://192.0.2.1//", "http://192.0.2.1?a",
		"http://192.0.2.1#", "http://user@192.0.2.1", "http://192.0.2.1:0", "http://192.0.2.1:65536", "http://192.0.2.1:http",
	} {
		check(t, azure.ParseMetadataURL, in, "", "must be http://HOST or http://HOST:PORT")
	}
}

// TestServes: an authority serves the URLs of its own host and port, and those of the other names
// of its cloud.
func TestServes(t *testing.T) {
	for authority, addresses := range map[azure.AuthorityHost]map[string]bool{
		"https://login.example.test/": {
			"https://login.example.test/t/oauth2/v2.0/token":       true,
			"https://LOGIN.example.test:443/token":                 true,
			"http://login.example.test/token":                      false,
			"https://login.example.test:8443/token":                false,
			"https://login.example.test./token":                    false,
			"https://x.login.example.test/token":                   false,
			"https://example.test/token":                           false,
			"https://login.example.test@evil.example.test/token":   false,
			"https://user:secret@login.example.test/token":         false,
			"https://login.example.test.evil.example.test/token":   false,
			"https://login.microsoftonline.com/token":              false,
			"//login.example.test/token":                           false,
			"https:///token":                                       false,
			"https://login.example.test%zz/":                       false,
			"":                                                     false,
			"https://evil.example.test/https://login.example.test": false,
		},
		"https://127.0.0.1:8443/": {
			"https://127.0.0.1:8443/token": true,
			"https://127.0.0.1:8444/token": false,
			"https://127.0.0.1/token":      false,
		},
		"https://login.example.test:443/": {"https://login.example.test/token": true},
		azure.PublicAuthorityHost: {
			"https://login.microsoftonline.com/token":              true,
			"https://login.windows.net/token":                      true,
			"https://westus.login.microsoft.com/token":             true,
			"https://login.microsoftonline.us/token":               false,
			"https://login.partner.microsoftonline.cn/token":       false,
			"https://login.windows.net:8443/token":                 false,
			"https://login.microsoftonline.com.example.test/token": false,
			"https://evil.example.test/login.microsoftonline.com":  false,
			"https://a.b.login.microsoft.com/token":                false,
		},
		"https://westus.login.microsoft.com/": {
			"https://westus.login.microsoft.com/token": true,
			"https://login.microsoftonline.com/token":  true,
		},
		azure.USGovernmentAuthorityHost: {
			"https://login.microsoftonline.us/token":  true,
			"https://login.usgovcloudapi.net/token":   true,
			"https://login.microsoftonline.com/token": false,
		},
		azure.ChinaAuthorityHost: {
			"https://login.chinacloudapi.cn/token":           true,
			"https://login.partner.microsoftonline.cn/token": true,
			"https://login.microsoftonline.com/token":        false,
		},
		"": {"https:///token": false, "": false},
	} {
		for address, want := range addresses {
			if got := authority.Serves(address); got != want {
				t.Errorf("%q serves %q: got %t, want %t", authority, address, got, want)
			}
		}
	}
}
