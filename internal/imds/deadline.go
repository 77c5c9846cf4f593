package imds

import (
	"errors"
	"net"
	"os"
	"sync"
	"time"
)

// lazyConn keeps the deadlines that it is given, and sets one only where a wait could
// last past it. net/http gives each request four for reading and one for writing, of
// which nearly none is ever met; to set one takes locks and timers of the runtime's.
//
// What is set may be too early by then: it ends a wait that has time left, which then
// goes on. It is never too late.
type lazyConn struct {
	net.Conn
	read, write deadline
}

func newLazyConn(inner net.Conn) *lazyConn {
	c := &lazyConn{Conn: inner}
	c.read.set, c.write.set = inner.SetReadDeadline, inner.SetWriteDeadline
	return c
}

func (c *lazyConn) Read(p []byte) (int, error) {
	for {
		if err := c.read.begin(); err != nil {
			return 0, err
		}
		n, err := c.Conn.Read(p)
		if again := c.read.end(err); n > 0 || !again {
			return n, err
		}
	}
}

func (c *lazyConn) Write(p []byte) (written int, err error) {
	for {
		if err := c.write.begin(); err != nil {
			return written, err
		}
		n, err := c.Conn.Write(p[written:])
		written += n
		if again := c.write.end(err); !again {
			return written, err
		}
	}
}

func (c *lazyConn) SetReadDeadline(t time.Time) error  { return c.read.want(t) }
func (c *lazyConn) SetWriteDeadline(t time.Time) error { return c.write.want(t) }

func (c *lazyConn) SetDeadline(t time.Time) error {
	return errors.Join(c.read.want(t), c.write.want(t))
}

// NetConn returns the connection whose deadlines are kept.
func (c *lazyConn) NetConn() net.Conn { return c.Conn }

// deadline is the one of reading or of writing. A zero time stands for none.
type deadline struct {
	set func(time.Time) error // of the connection beneath; it ends a wait at once

	mu      sync.Mutex // guards what follows
	wanted  time.Time
	armed   time.Time // what is set
	past    bool      // armed has ended a wait: nothing waits until it is set anew
	waiting int
}

// want keeps t, and sets it where somebody waits and would wait for longer.
func (d *deadline) want(t time.Time) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.wanted = t
	if d.waiting == 0 || !d.late() {
		return nil
	}
	return d.arm()
}

// late reports whether a wait would last past what is wanted. The mutex is held.
func (d *deadline) late() bool {
	return !d.wanted.IsZero() && (d.armed.IsZero() || d.wanted.Before(d.armed))
}

// over reports whether what is wanted has come. The mutex is held.
func (d *deadline) over() bool {
	return !d.wanted.IsZero() && !time.Now().Before(d.wanted)
}

// arm sets what is wanted. The mutex is held.
func (d *deadline) arm() error {
	d.armed, d.past = d.wanted, false
	return d.set(d.wanted)
}

// begin is called before a wait. Its error says that there is none.
func (d *deadline) begin() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.past || d.late() {
		// Over before it began is what net/http's reading ahead mostly is, of a
		// request that is answered at once: there is nothing to set for it.
		if d.over() {
			return os.ErrDeadlineExceeded
		}
		if err := d.arm(); err != nil {
			return err
		}
	}
	d.waiting++
	return nil
}

// end is called after a wait, with how it ended. It reports whether that was for a
// deadline which is not wanted any more, and so whether to wait again.
func (d *deadline) end(err error) (again bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.waiting--
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return false
	}
	d.past = true
	return !d.over()
}
