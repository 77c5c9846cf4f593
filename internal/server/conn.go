package server

import (
	"errors"
	"io"
	"net"
	"net/http"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// conn is a connection, from when it is accepted until the kernel has its last byte.
//
// It tells the server what it is in the middle of, from what net/http reads and writes and
// from the ConnState that net/http reports; never from when net/http sets a deadline.
type conn struct {
	net.Conn
	server *Server

	// net/http reads in one goroutine at a time, to which these belong. It does not write
	// meanwhile, unless what it reads is the one byte ahead of the present request.
	header  header // of the request that comes in
	rest    []byte // what came behind the header that net/http was given
	hasBody bool   // what comes now is no request
	refused bool   // the answer is written, and net/http does not know

	place // guarded by Server.mu
}

// update changes what the server knows of the connection.
func (c *conn) update(change func()) {
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	change()
}

// Read returns no byte behind the end of one request's header, so that net/http knows no
// more of the next request than this package does. It refuses a header that is too large
// before net/http sees the bytes that are too many.
func (c *conn) Read(p []byte) (int, error) {
	if c.hasBody {
		// net/http reads a body after the answer, and nobody wants it.
		c.update(func() { c.state = finished })
		if len(c.rest) == 0 {
			return c.Conn.Read(p)
		}
		n := copy(p, c.rest)
		c.rest = c.rest[n:]
		return n, nil
	}
	n, ended, err := c.readHeader(p)
	if n > 0 && (c.header.tooLarge() || !c.server.received(c, ended)) {
		return 0, c.refuse(p)
	}
	return n, err
}

func (c *conn) readHeader(p []byte) (n int, ended bool, err error) {
	if len(c.rest) > 0 {
		n, ended = c.header.take(c.rest[:min(len(p), len(c.rest))])
		copy(p, c.rest[:n])
		c.rest = c.rest[n:]
		return n, ended, nil
	}
	got, err := c.Conn.Read(p)
	n, ended = c.header.take(p[:got])
	if n < got {
		c.rest = append([]byte(nil), p[n:got]...)
	}
	return n, ended, err
}

// tooLarge is what net/http answers.
const tooLarge = "HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Type: text/plain; charset=utf-8\r\n" +
	"Connection: close\r\n\r\n431 Request Header Fields Too Large"

var errHeaderTooLarge = errors.New("the header is too large")

// refuse answers a request whose header is too large, and for a moment drops what else
// comes: a connection that is closed with unread bytes is reset, and the client may miss
// the answer.
func (c *conn) refuse(scratch []byte) error {
	_, err := io.WriteString(c, tooLarge)
	c.refused = true
	if err == nil && c.CloseWrite() == nil && c.SetReadDeadline(time.Now().Add(c.server.times.refusal)) == nil {
		for err == nil {
			_, err = c.Conn.Read(scratch)
		}
	}
	return errHeaderTooLarge
}

// Write gives each write a deadline of its own. The kernel's buffers take an answer at
// once, unless the client does not read.
func (c *conn) Write(p []byte) (n int, err error) {
	if c.refused {
		return 0, errHeaderTooLarge
	}
	now := time.Now()
	c.update(func() { c.writing = now })
	if err = c.Conn.SetWriteDeadline(now.Add(c.server.times.write)); err == nil {
		n, err = c.Conn.Write(p)
	}
	c.update(func() { c.writing, c.failed = time.Time{}, c.failed || err != nil })
	return n, err
}

// SetWriteDeadline does nothing: net/http takes back deadlines that it has not set.
func (c *conn) SetWriteDeadline(time.Time) error { return nil }

// CloseWrite ends the writing side. net/http calls it where it has given a client up and
// waits until the client has read why.
func (c *conn) CloseWrite() error {
	c.update(func() { c.state = finished })
	return c.closeWriting()
}

func (c *conn) closeWriting() error {
	if tcp, ok := c.Conn.(*net.TCPConn); ok {
		return tcp.CloseWrite()
	}
	return nil
}

// setState is net/http's ConnState hook.
func (c *conn) setState(to http.ConnState) {
	switch to {
	case http.StateActive: // net/http has the header of a request, or has given it up
		c.header = header{}
		c.update(func() { c.state = serving })
	case http.StateIdle: // net/http has written the answer
		if c.header.bytes == 0 && len(c.rest) == 0 {
			c.server.answered(c, idle)
			return
		}
		c.server.answered(c, reading)
		runtime.Gosched() // pipelined requests queue behind those of other connections
	}
}

// Close closes the connection once the client's kernel has taken the answer. Until then
// the connection keeps its place, since the kernel keeps the bytes.
func (c *conn) Close() error {
	var again, failed bool
	c.update(func() {
		again, failed = c.closing, c.failed
		c.closing = true
		c.server.shrink(c)
	})
	if again {
		return nil
	}
	if !failed && c.unsent() {
		go c.closeWhenSent()
		return nil
	}
	return c.closeNow(failed)
}

// sentPollInterval is how often the kernel is asked whether it has sent the answer.
const sentPollInterval = 20 * time.Millisecond

func (c *conn) closeWhenSent() {
	now := time.Now()
	c.update(func() { c.writing = now })
	_ = c.closeWriting() // it fails where the client has closed the connection
	for end := now.Add(c.server.times.write); c.unsent() && time.Now().Before(end); {
		time.Sleep(sentPollInterval)
	}
	_ = c.closeNow(c.unsent())
}

// closeNow frees the place, and drops what the kernel has not sent if reset is true.
func (c *conn) closeNow(reset bool) error {
	c.update(func() { c.server.remove(c) })
	if reset {
		return c.reset()
	}
	return c.Conn.Close()
}

// reset closes the connection and drops what the kernel has not sent.
func (c *conn) reset() error {
	if tcp, ok := c.Conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // it fails where the connection is closed
	}
	return c.Conn.Close()
}

// unsent reports whether the kernel holds bytes that it cannot send, since the client does
// not read. It holds none of a closed connection.
func (c *conn) unsent() bool {
	unsent := 0
	_ = control(c.Conn, func(fd int) (err error) {
		unsent, err = unix.IoctlGetInt(fd, unix.SIOCOUTQNSD)
		return err
	})
	return unsent > 0
}
