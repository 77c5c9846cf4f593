package azure_test

import (
	"strings"
	"testing"

	"imds-oidc-proxy/internal/azure"
)

func TestParseAppServiceHeader(t *testing.T) {
	const reason = "for example a random GUID"
	for _, test := range []struct {
		in     string
		reason string
	}{
		{"6f1d2c3b-4a59-4e68-9f70-8a9bacbdcedf", ""},
		{strings.Repeat("x", 16), ""},
		{strings.Repeat("x", 15), reason},
		{strings.Repeat("x", 256), ""},
		{strings.Repeat("x", 257), reason},
		{"", reason},
		{"$(POD_UID)", reason},
		{"c4n4ry c4n4ry c4n4ry", reason},
		{"c4n4ry-c4n4ry-c4n4ry\n", reason},
		{"c4n4ry-c4n4ry-\u212aelvin", reason},
	} {
		want := azure.AppServiceHeader(test.in)
		if test.reason != "" {
			want = ""
		}
		check(t, azure.ParseAppServiceHeader, test.in, want, test.reason)
		if _, err := azure.ParseAppServiceHeader(test.in); err != nil && strings.Contains(err.Error(), "c4n4ry") {
			t.Errorf("the error has the value: %v", err)
		}
	}
	checkBytes(t, azure.ParseAppServiceHeader, "0123456789abcde^", "!\"#$%&'()*+,-./09:;<=>?@AFGZ[\\]^_`afgz{|}~")
}
