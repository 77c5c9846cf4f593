package azure_test

import (
	"testing"

	"imds-oidc-proxy/internal/azure"
)

func TestParsePort(t *testing.T) {
	for in, want := range map[string]uint16{"1": 1, "8000": 8000, "010000": 10000, "65535": 65535} {
		check(t, azure.ParsePort, in, want, "")
	}
	for _, in := range []string{"", "0", "65536", "4294967297", "-1", "+8000", " 8000", "8000\n", "8_000", "0x10", "http", "8000 -j ACCEPT", "８０"} {
		check(t, azure.ParsePort, in, 0, "must be between 1 and 65535")
	}
}

func TestParseAddress(t *testing.T) {
	for address, valid := range map[string]bool{
		":8001": true, "127.0.0.1:8001": true, "[::]:8001": true, "0.0.0.0:65535": true,
		"": false, "8001": false, ":": false, ":0": false, ":65536": false, ":http": false, "127.0.0.1": false, "::1:8001": false,
	} {
		if valid {
			check(t, azure.ParseAddress, address, address, "")
		} else {
			check(t, azure.ParseAddress, address, "", "must be HOST:PORT or :PORT, such as :8001")
		}
	}
}
