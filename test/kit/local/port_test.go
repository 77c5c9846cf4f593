package local_test

import (
	"fmt"
	"net"
	"os"
	"testing"

	"imds-oidc-proxy/test/kit/local"
)

// TestFreePort: no port is given twice, and none that the kernel might give to others.
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
			t.Errorf("got %d, which is not new or in the kernel's %d to %d", port, low, high)
		}
		seen[port] = true
	}
}

// TestFreePortIsNobodys: where somebody listens is not free.
func TestFreePortIsNobodys(t *testing.T) {
	taken, listener := takeNext(t)
	defer listener.Close()
	if next, err := local.FreePort(); err != nil || next == taken {
		t.Errorf("got %d, %v", next, err)
	}
}

// takeNext listens at the port that is looked at next, and returns it.
func takeNext(t *testing.T) (int, net.Listener) {
	t.Helper()
	for range 100 { // somebody else may listen there, or it be beyond the last port
		port, err := local.FreePort()
		if err != nil {
			t.Fatal(err)
		}
		if listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port+1)); err == nil {
			return port + 1, listener
		}
	}
	t.Fatal("nobody can listen behind any of 100 free ports")
	return 0, nil
}
