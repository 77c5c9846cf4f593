package main

import (
	"net"
	"testing"
)

// TestOwnerIsExempt: the redirect exempts the user that listens at the proxy's port, whatever its UID.
func TestOwnerIsExempt(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	if !exempt(uint16(listener.Addr().(*net.TCPAddr).Port)) {
		t.Error("exempt: got false for the owner of a listening socket, want true")
	}
}
