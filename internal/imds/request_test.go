package imds

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

// TestAmbiguousQueries: a query that two parsers could read differently is rejected.
func TestAmbiguousQueries(t *testing.T) {
	var most []string
	for i := range maxParams {
		most = append(most, fmt.Sprintf("p%d=%d", i, i))
	}
	for query, want := range map[string]error{
		"a=b&c=d":                           nil,
		"&a=b&&":                            nil,
		"a":                                 nil,
		";a=b":                              errMalformedQuery,
		"a=b;c=d":                           errMalformedQuery,
		"a=b;":                              errMalformedQuery,
		"a=%zz":                             errMalformedQuery,
		"%zz=b":                             errMalformedQuery,
		"a=b&A=c":                           errDuplicateParam,
		"a=b&%61=c":                         errDuplicateParam,
		strings.Join(most, "&"):             nil,
		strings.Join(most, "&") + "&last=1": errMalformedQuery,
	} {
		if _, err := appendParams(nil, query); !errors.Is(err, want) {
			t.Errorf("%s: got %v, want %v", query, err, want)
		}
	}
}

// TestLocalHost: a Host header is accepted in the forms in which clients send it.
func TestLocalHost(t *testing.T) {
	for want, hosts := range map[bool][]string{
		true: {
			"169.254.169.254", "169.254.169.254:80", "127.0.0.1:8000", "127.0.0.1:65535", "127.0.0.1:0",
			"[::1]", "[::1]:8000", "[fd00::1]", "[::ffff:169.254.169.254]:80",
			"localhost", "LOCALHOST:8000", "proxy", "imds-proxy:80", "my_host", "a", "Z9:1", "a0-_z",
		},
		false: {
			"", ":", ":80", "rebound.example.test", "rebound.example.test:80", "rebound.", "localhost.", ".localhost", "169.254.169.254.",
			"localhost:", "localhost:80.example.test", "localhost:80:80", "localhost:65536", "localhost:-1", "localhost:+80", "localhost:http", "localhost: 80",
			"2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "169.254.43518", "169.254.169.254.80", "0169.254.169.254", "1a",
			"::1", "::1:8000", "fe80::1%eth0", "[fe80::1%eth0]", "[::1%.example.test]", "[::1", "::1]", "[]", "[127.0.0.1]", "[localhost]", "[[::1]]", "[::1]x", "[::1].example.test", "[::1]:", "x[::1]",
			"user@localhost", "localhost/", "localhost#", "localhost?", "local%68ost", "rebound%2eexample", "rebound%2Eexample", "localhost\\x", "local host", " localhost", "localhost\t",
			"-localhost", "_localhost", "lo\x00calhost", "rebound\u3002example", "localhos\u017f", "\u212aelvin", "loc\xffalhost", "a`", "a{", "a@", "a[", "a/", "a:", "a^",
			"localhost,localhost", "localhost;a", "a,b:80",
		},
	} {
		for _, host := range hosts {
			if got := localHost(host); got != want {
				t.Errorf("%q: got %t, want %t", host, got, want)
			}
		}
	}
}

// TestUnknownParameters: a parameter that could name an identity is refused, however it is
// spelled. The parameters that clients send for other purposes are ignored.
func TestUnknownParameters(t *testing.T) {
	const arm = "/subscriptions/s/resourcegroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/i"
	for want, queries := range map[error][]string{
		nil: {
			"bypass_cache=true", "token_sha256_to_refresh=ab12", "xms_cc=cp1", "claims=%7B%22xms_az_nwperimid%22:%5B%5D%7D",
			"authority=https://login.microsoftonline.com/t", "cred-api-version=2.0", "format=json", "scope=s", "resources=r",
			"tenant_id=t", "subscription_id=s", "request_id=1", "timestamp=1", "foo=bar", "foo", "=v", "d=1", "ix=1", "im=1", "cliend=x",
			"foo=" + strings.TrimSuffix(arm, "/i"), // a resource, but no identity
		},
		errParamCase: {
			"clientId=x", "CLIENTID=x", "Client_Id=x", "Principal_Id=x", "RESOURCE_ID=" + arm, "Msi-Res-Id=" + arm, "Mi_Res_Id=", "Api-Version=2018-02-01",
		},
		errUnknownSelector: {
			"client-id=x", "client.id=x", "client%20id=x", "client+id=x", "client=x", "clientid%5B%5D=x", "amp%3Bclient_id=x", "%00client_id=x", "client_id%3Dx", "client_id_=x",
			"mi_client_id=x", "azure_client_id=x", "uami=x", "managed_id=x", "object-id=x", "objectid=x", "objectId=x", "object=x",
			"principalid=x", "principal-id=x", "msi_object_id=x", "oid=x", "appid=x", "application_id=x",
			"resourceid=x", "resource-id=x", "resourceId=x", "msiresid=x", "msi-res_id=x", "mi-res-id=x", "miresid=x", "msi_resource_id=x", "res_id=x", "xms_mirid=x",
			"identity=x", "identity_id=x", "user_assigned=x", "msi=x", "mi=x", "MI_ID=x", "id=x", "ID=x", "_id=x",
			"cl%C4%B1ent_id=x", "%D1%81lient_id=x", "client\u200b_id=x", "%ff=x", "\u00e9=x",
			"foo=" + arm, "foo=" + strings.ToUpper(arm),
			"client-id=", // the name never works, so a missing value is no excuse
		},
	} {
		for _, query := range queries {
			got, err := parseTokenRequest("resource=https://vault.azure.net&"+query, false)
			if err != want || want == nil && got.selector.kind != byNothing {
				t.Errorf("%q: got %+v, %v, want %v", query, got.selector, err, want)
			}
		}
	}
}

// TestSelectorWords: each word is refused at each place in a name, in each case, also with
// separators between its letters. Without its last letter it is not refused, unless another
// rule applies.
func TestSelectorWords(t *testing.T) {
	for _, word := range selectorWords {
		spread := strings.Join(strings.Split(word, ""), "_")
		for _, name := range []string{word, "x" + word, word + "x", "x-" + word + "-x", spread, strings.ToUpper(word), "7" + word + "7"} {
			if !looksLikeSelector(param{name: name}) {
				t.Errorf("%q is not refused", name)
			}
		}
		if short := "x" + word[:len(word)-1]; looksLikeSelector(param{name: short}) {
			t.Errorf("%q is refused", short)
		}
	}
}
