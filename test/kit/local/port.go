// Package local helps tests of servers: it finds ports that stay free until they are used, binds ports,
// and provides connections in memory.
package local

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"testing"
)

// The ports that FreePort tries. Well-known services have lower ones.
const (
	firstPort = 10_000
	portCount = 1<<16 - firstPort
)

// A process begins at a random port, because other test processes run at the same time,
// and tries each port once.
var (
	first = rand.Uint32N(portCount)
	tried atomic.Uint32
)

// FreePort returns a port of 127.0.0.1 at which no process listens. It avoids the ports
// that the kernel assigns to outgoing connections, if others are free: test suites open
// thousands of connections, and one of them could get the port before the program under
// test listens at it.
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
		port := firstPort + int((first+tried.Add(1))%portCount)
		if low <= port && port <= high {
			continue
		}
		if listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			return port, listener.Close()
		}
	}
	return anyPort() // the kernel assigns all ports to connections, or all others are in use
}

// anyPort returns a free port that the kernel chooses.
func anyPort() (int, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	return listener.Addr().(*net.TCPAddr).Port, listener.Close()
}

// BoundPort returns a TCP port of 127.0.0.1 that a socket is bound to without listening, until the
// test ends.
func BoundPort(t testing.TB) uint16 {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	bound, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return uint16(bound.(*syscall.SockaddrInet4).Port)
}
