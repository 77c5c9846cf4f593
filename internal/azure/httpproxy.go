package azure

import (
	"net/url"
	"slices"
	"strings"
)

// ParseHTTPProxy checks that s is the URL of an HTTP or SOCKS proxy, as HTTPS_PROXY has it, and
// returns it. The scheme is optional. Package httpproxy ignores another value, and the client
// assertion would not go through the proxy. The error does not contain the value, which may
// contain a password.
func ParseHTTPProxy(s string) (string, error) {
	address := s
	if !strings.Contains(address, "://") {
		address = "http://" + address // as package httpproxy does
	}
	u, err := url.Parse(address)
	if err != nil || u.Hostname() == "" || !slices.Contains([]string{"http", "https", "socks5", "socks5h"}, u.Scheme) {
		return "", Secret("must be the URL of a proxy, for example http://<HOST>:<PORT>; percent-encode special characters in a user name or password")
	}
	if port := u.Port(); port != "" {
		if _, err := ParsePort(port); err != nil {
			return "", Secret(addressPortReason)
		}
	}
	return s, nil
}
