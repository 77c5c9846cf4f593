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
	for _, valid := range []string{":1", ":8001", "127.0.0.1:8001", "[::]:8001", "0.0.0.0:65535"} {
		check(t, azure.ParseAddress, valid, valid, "")
	}
	for _, address := range []string{"", "8001", "127.0.0.1", "::1:8001"} {
		check(t, azure.ParseAddress, address, "", "must be HOST:PORT or :PORT, such as :8001")
	}
	for _, address := range []string{":", ":0", "127.0.0.1:0", ":65536", ":http"} {
		check(t, azure.ParseAddress, address, "", "must have a port between 1 and 65535")
	}
}
