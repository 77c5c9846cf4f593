// Package local is for tests of servers: ports that stay free until they are used,
// and connections in memory.
package local

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"sync/atomic"
)

// Ports that are looked at. Below are those of well-known services.
const (
	firstPort = 10_000
	portCount = 1<<16 - firstPort
)

// A process begins anywhere, since others test at the same time, and looks at each port
// once.
var (
	first  = rand.Uint32N(portCount)
	looked atomic.Uint32
)

// FreePort finds a port where nobody listens. If it can be, it is none of those that the
// kernel gives to outgoing connections, of which suites open thousands: one that was
// given back, so as to be opened by the program under test, would be taken meanwhile.
func FreePort() (int, error) {
	const setting = "/proc/sys/net/ipv4/ip_local_port_range"
	text, err := os.ReadFile(setting)
	if err != nil {
		return 0, err
	}
	var low, high int
	if _, err := fmt.Sscan(string(text), &low, &high); err != nil {
		return 0, fmt.Errorf("%s: %w", setting, err)
	}
	for range portCount {
		port := firstPort + int((first+looked.Add(1))%portCount)
		if low <= port && port <= high {
			continue
		}
		if listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			return port, listener.Close()
		}
	}
	return anyPort() // the kernel gives them all to others
}

func anyPort() (int, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	return listener.Addr().(*net.TCPAddr).Port, listener.Close()
}
