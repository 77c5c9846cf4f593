package local_test

import (
	"fmt"
	"net"
	"os"
	"testing"

	"imds-oidc-proxy/test/kit/local"
)

// TestFreePort: FreePort returns no port twice, and no port that the kernel assigns to
// outgoing connections.
func TestFreePort(t *testing.T) {
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		t.Fatal(err)
	}
	var low, high int
	if _, err := fmt.Sscan(string(text), &low, &high); err != nil {
		t.Fatal(err)
	}
	seen := map[int]bool{}
	for range 1000 {
		port, err := local.FreePort()
		if err != nil {
			t.Fatal(err)
		}
		if seen[port] || low <= port && port <= high {
			t.Errorf("got %d, which was returned before or is one of the kernel's ports %d to %d", port, low, high)
		}
		seen[port] = true
	}
}

// TestFreePortIsNotInUse: a port at which a process listens is not free.
func TestFreePortIsNotInUse(t *testing.T) {
	taken, listener := takeNext(t)
	defer listener.Close()
	if next, err := local.FreePort(); err != nil || next == taken {
		t.Errorf("got %d, %v", next, err)
	}
}

// takeNext listens at the port that FreePort tries next, and returns it.
func takeNext(t *testing.T) (int, net.Listener) {
	t.Helper()
	for range 100 { // another process may listen at the next port, or there is no higher port
		port, err := local.FreePort()
		if err != nil {
			t.Fatal(err)
		}
		if listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port+1)); err == nil {
			return port + 1, listener
		}
	}
	t.Fatal("cannot listen at the next port of any of 100 free ports")
	return 0, nil
}
