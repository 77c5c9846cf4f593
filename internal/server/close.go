package server

import (
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// CloseWrite ends the writing side. net/http calls it where it has given a client up and
// waits until the client has read why.
func (c *conn) CloseWrite() error {
	c.update(func() {
		c.state = finished
		c.server.shrink(c)
	})
	return c.closeWriting()
}

func (c *conn) closeWriting() error {
	if tcp, ok := c.Conn.(*net.TCPConn); ok {
		return tcp.CloseWrite()
	}
	return nil
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
