package server

import (
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// CloseWrite shuts the writing side. net/http calls it after it has refused a request, and
// then waits until the client has read the answer.
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

// Close closes the connection when the client's kernel has received the answer. Until then
// the connection counts against the limit, because this kernel holds the bytes.
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
	_ = c.closeWriting() // it fails if the client has closed the connection
	for end := now.Add(c.server.times.write); c.unsent() && time.Now().Before(end); {
		time.Sleep(sentPollInterval)
	}
	_ = c.closeNow(c.unsent())
}

// closeNow closes the connection, which no longer counts against the limit. If reset is true,
// bytes that the kernel has not sent are discarded.
func (c *conn) closeNow(reset bool) error {
	c.update(func() { c.server.remove(c) })
	if reset {
		return c.reset()
	}
	return c.Conn.Close()
}

// reset closes the connection and discards bytes that the kernel has not sent.
func (c *conn) reset() error {
	if tcp, ok := c.Conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // it fails if the connection is closed
	}
	return c.Conn.Close()
}

// unsent reports whether the kernel holds bytes that it cannot send because the client does
// not read. For a closed connection it holds none.
func (c *conn) unsent() bool {
	unsent := 0
	_ = control(c.Conn, func(fd int) (err error) {
		unsent, err = unix.IoctlGetInt(fd, unix.SIOCOUTQNSD)
		return err
	})
	return unsent > 0
}
