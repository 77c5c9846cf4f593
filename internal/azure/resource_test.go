package azure_test

import (
	"strings"
	"testing"

	"imds-oidc-proxy/internal/azure"
)

func TestParseResource(t *testing.T) {
	for _, in := range []string{
		"https://vault.azure.net", "https://vault.azure.net/", "api://app/.default", "https://a.example.test/%2f?x=[1]", "HTTPS://A.example.test",
		clientID, strings.ToUpper(clientID), clientID + "/.default", "a+b-c.1:x", "urn:x",
	} {
		check(t, azure.ParseResource, in, azure.Resource(in), "")
	}
	const reason = "must be a URI without a fragment, such as https://vault.azure.net, or a GUID"
	for _, in := range []string{
		"", "vault.azure.net", "https:", ":x", "1a:x", "+a:x", "-a:x", ".a:x", "https://a.example.test/#part", "https://a.example.test/ü",
		"https://a.example.test/%", "https://a.example.test/%2", "https://a.example.test/%2g", "https://a.example.test/%g2",
		"https://a example.test", `https://"`, clientID[1:], clientID + "/", "https://a.example.test b", "a_b:x",
	} {
		check(t, azure.ParseResource, in, "", reason)
	}
	const uri = "!$&'()*+,-./09:;=?@AFGZ[]_afgz~"
	checkBytes(t, azure.ParseResource, "https://a^b", uri)
	checkBytes(t, azure.ParseResource, "https://a^", uri)
	checkBytes(t, azure.ParseResource, "x:^", uri)
	checkBytes(t, azure.ParseResource, "^:x", "AFGZafgz")
	checkBytes(t, azure.ParseResource, "x^:x", "+-.09:AFGZafgz")
	checkBytes(t, azure.ParseResource, "x:%^0", hexDigits)
	checkBytes(t, azure.ParseResource, "x:%0^", hexDigits)
	longest := "x:" + strings.Repeat("x", 1022)
	check(t, azure.ParseResource, longest, azure.Resource(longest), "")
	check(t, azure.ParseResource, longest+"x", "", "must be at most 1024 bytes long")
}
