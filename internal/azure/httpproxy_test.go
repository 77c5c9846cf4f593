package azure

import (
	"strings"
	"testing"
)

func TestParseHTTPProxy(t *testing.T) {
	for value, want := range map[string]string{
		"http://proxy.example.test:3128":              "",
		"proxy.example.test:3128":                     "",
		"proxy.example.test":                          "",
		"https://user:c4n4ry@proxy.example.test":      "",
		"socks5h://[2001:db8::1]:1080":                "",
		"":                                            "must be the URL of a proxy",
		"ftp://user:c4n4ry@proxy.example.test":        "must be the URL of a proxy",
		"http://user:c4n4ry#@proxy.example.test":      "must be the URL of a proxy",
		"http://user:c4n4ry@proxy.example.test:0":     "must have a port between 1 and 65535",
		"http://user:c4n4ry@proxy.example.test:70000": "must have a port between 1 and 65535",
	} {
		got, err := ParseHTTPProxy(value)
		if want == "" && (err != nil || got != value) {
			t.Errorf("%s: %q, %v", value, got, err)
		}
		if want != "" && (err == nil || !strings.HasPrefix(err.Error(), want) || strings.Contains(err.Error(), "c4n4ry")) {
			t.Errorf("%s: %v, want %s", value, err, want)
		}
	}
}
