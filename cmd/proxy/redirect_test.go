package main

import (
	"net"
	"testing"
)

// TestOwnerIsExempt: the user who listens at the port, whichever that is.
func TestOwnerIsExempt(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	if !exempt(uint16(listener.Addr().(*net.TCPAddr).Port)) {
		t.Error("the owner of a real listener is not found")
	}
}
