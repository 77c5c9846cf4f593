package main

import (
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// sendTimeout bounds the sending of one payload, which fits into the kernel's buffers
	// unless the proxy does not read.
	sendTimeout = 10 * time.Second

	// reconnectPause keeps an attacker whom the proxy refuses at once from doing nothing
	// but making connections: each of the 1,100 makes up to 100 a second.
	reconnectPause = 200 * time.Millisecond

	// pipelined is how many requests are sent at once on a connection whose answers are
	// never read.
	pipelined = 60

	// smallBuffer is SO_RCVBUF of a connection whose answers are never read.
	smallBuffer = 1024
)

// attack keeps connections open that all do the same. A connection that the proxy ends
// is opened again.
type attack struct {
	address string
	payload string
	reads   bool // it reads what is answered, and sends its payload again

	opened, answered atomic.Int64
}

func newAttack(kind, address string) (*attack, error) {
	a := &attack{address: address}
	kind, path, _ := strings.Cut(kind, "=")
	switch kind {
	case "silent": // nothing
	case "lines": // 19,001 bytes of a header that does not end, in 3,147 lines
		const lines = 3147
		line := "GET " + padded("/", 19_001-6*lines-len("GET  HTTP/1.1\r\n")) + " HTTP/1.1\r\n"
		a.payload = line + strings.Repeat("aaa:\r\n", lines)
	case "line": // one line of 15 KiB
		a.payload = "GET / HTTP/1.1\r\nHost: 169.254.169.254\r\nX: " + strings.Repeat("a", 15<<10)
	case "params": // a request line of 1,000 query parameters, some 15 KiB, and no end
		a.payload = "GET " + path + "?" + params() + " HTTP/1.1\r\nHost: 169.254.169.254\r\n"
	case "finished-params": // the same with an end
		a.payload = "GET " + path + "?" + params() + " HTTP/1.1\r\nHost: 169.254.169.254\r\nMetadata: true\r\n\r\n"
	case "pipeline":
		a.payload = strings.Repeat(request(path), pipelined)
	case "call":
		a.payload = request(path)
		a.reads = true
	default:
		return nil, fmt.Errorf("unknown kind of attack %q", kind)
	}
	return a, nil
}

func request(target string) string {
	return "GET " + target + " HTTP/1.1\r\nHost: 169.254.169.254\r\nMetadata: true\r\n\r\n"
}

func params() string {
	var b strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&b, "parameter-%04d&", i)
	}
	return b.String()
}

func padded(s string, length int) string { return s + strings.Repeat("a", length-len(s)) }

func (a *attack) start(connections int) {
	for range connections {
		go func() {
			for {
				a.connect()
				time.Sleep(reconnectPause)
			}
		}()
	}
}

func (a *attack) result() any {
	return map[string]int64{"opened": a.opened.Load(), "answered": a.answered.Load()}
}

// connect holds one connection until the proxy ends it.
func (a *attack) connect() {
	dialer := net.Dialer{Timeout: sendTimeout}
	if !a.reads {
		dialer.Control = func(_, _ string, c syscall.RawConn) error {
			return c.Control(func(fd uintptr) {
				_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, smallBuffer)
			})
		}
	}
	conn, err := dialer.Dial("tcp", a.address)
	if err != nil {
		return
	}
	defer conn.Close()
	a.opened.Add(1)
	if a.reads {
		a.call(conn)
		return
	}
	conn.SetWriteDeadline(time.Now().Add(sendTimeout))
	if _, err := io.WriteString(conn, a.payload); err != nil {
		return
	}
	waitForEnd(conn.(*net.TCPConn))
}

// call sends one request and reads its answer, whatever it is. The proxy's answer says how
// long it is; the connection is used once.
func (a *attack) call(conn net.Conn) {
	if _, err := io.WriteString(conn, a.payload); err != nil {
		return
	}
	if _, err := conn.Read(make([]byte, 16<<10)); err == nil {
		a.answered.Add(1)
	}
}

// waitForEnd waits until the peer has closed or reset the connection, and reads nothing.
// The kernel tells of each byte that comes, and of the end.
func waitForEnd(conn *net.TCPConn) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Read(func(fd uintptr) (done bool) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		return err != nil || info.State != tcpEstablished
	})
}

// tcpEstablished is TCP_ESTABLISHED of the kernel's tcp_states.h.
const tcpEstablished = 1
