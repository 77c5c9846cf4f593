package azure

import (
	"net"
	"strconv"
)

const (
	portReason        = "must be between 1 and 65535"
	addressReason     = "must be HOST:PORT or :PORT, such as :8001"
	addressPortReason = "must have a port between 1 and 65535"
)

// ParsePort parses a decimal port, with or without leading zeros.
func ParsePort(s string) (uint16, error) {
	port, err := strconv.ParseUint(s, 10, 16)
	if err != nil || port == 0 {
		return 0, Invalid(s, portReason)
	}
	return uint16(port), nil
}

// ParseAddress checks that s is HOST:PORT or :PORT, and returns it. It refuses port 0, with
// which the kernel chooses a free port: a Service, a probe and a NetworkPolicy each name the
// port of the address.
func ParseAddress(s string) (string, error) {
	_, port, err := net.SplitHostPort(s)
	if err != nil {
		return "", Invalid(s, addressReason)
	}
	if _, err := ParsePort(port); err != nil {
		return "", Invalid(s, addressPortReason)
	}
	return s, nil
}
