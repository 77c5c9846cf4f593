package imds

import (
	"net/netip"
	"strings"
)

// localHost reports whether a Host header can be that of a client which means
// this proxy: absent (HTTP/1.0), an IP address, or a name without a dot such as
// localhost.
//
// It stops DNS rebinding: a page from attacker.example, shown by a browser in
// the pod (a headless one that renders PDFs, say), may point that name at the
// metadata address and then set any header it likes, Metadata too, since it
// talks to its own origin. It cannot choose the Host header. IMDS's clients
// send the address that they dial.
func localHost(host string) bool {
	if host == "" {
		return true
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return true
	}
	if _, err := netip.ParseAddrPort(host); err == nil {
		return true
	}
	if inner, ok := strings.CutPrefix(host, "["); ok {
		_, err := netip.ParseAddr(strings.TrimSuffix(inner, "]"))
		return err == nil
	}
	name, _, _ := strings.Cut(host, ":")
	return !strings.Contains(name, ".")
}
