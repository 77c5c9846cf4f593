package main

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"
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

// TestProveRedirect: only a connection that arrives at the proxy's port proves the redirect. The
// address stands for that of the redirect, which test/e2e has.
func TestProveRedirect(t *testing.T) {
	ports := map[string]uint16{}
	for _, name := range []string{"the proxy", "another", "closed"} {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close()
		ports[name] = uint16(listener.Addr().(*net.TCPAddr).Port)
		if name == "closed" {
			listener.Close()
		}
	}
	prove := func(where string) error {
		return proveRedirect(t.Context(), fmt.Sprintf("127.0.0.1:%d", ports[where]), ports["the proxy"])
	}
	if err := prove("the proxy"); err != nil {
		t.Errorf("a connection that arrives: %v", err)
	}
	if err := prove("another"); !errors.Is(err, errNoRedirect) || !strings.Contains(err.Error(), "another process answered") {
		t.Errorf("a connection to another process: %v", err)
	}
	if err := prove("closed"); !errors.Is(err, errNoRedirect) || !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a refused connection: %v", err)
	}
}
