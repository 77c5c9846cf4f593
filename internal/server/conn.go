package server

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"runtime"
	"time"
)

const (
	// maxHeaderBytes is four times what clients send at the most: a resource, an ARM
	// resource ID and claims of some hundred bytes.
	maxHeaderBytes = 16 << 10

	// maxHeaderLines includes the request line. Clients send fewer than 20, and proxies on
	// the way add some. net/http makes 16 times as much memory of a header of many short
	// lines as their bytes are.
	maxHeaderLines = 64
)

// state is what a connection is in the middle of.
type state int

const (
	silent   state = iota // nothing has ever come
	reading               // a part of a request has come, or a whole one behind another
	serving               // net/http works on a request
	idle                  // the last request is answered, and nothing has come since
	ended                 // it was silent or idle when it was drained, and no more is read
	finished              // the last answer is written, and nobody waits for anything more
)

// place is what the server knows of one of its connections. Server.mu guards it.
type place struct {
	state   state
	since   time.Time // when the connection was accepted, or was idle first
	writing time.Time // when the present write began; zero: there is none
	failed  bool      // a write failed
	large   bool      // the connection is in Server.large
	closing bool      // net/http has closed the connection
}

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
	switch {
	case n == 0:
		return 0, err
	case c.header.tooLarge():
		return 0, c.refuse(tooLarge, p)
	case !c.received(ended):
		return 0, c.refuse(tooMany, p)
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

// Answers to requests that net/http does not get to see. The first is net/http's own.
const (
	tooLarge = "HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Type: text/plain; charset=utf-8\r\n" +
		"Connection: close\r\n\r\n431 Request Header Fields Too Large"
	tooMany = "HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\n" +
		"Retry-After: 1\r\nConnection: close\r\n\r\n503 Service Unavailable: too many large requests"
)

var errRefused = errors.New("the request is refused: its header is too large")

// refuse answers a request in net/http's place. For a moment it discards what else the client
// sends: a connection that is closed with unread bytes is reset, and the client may miss
// the answer.
func (c *conn) refuse(answer string, scratch []byte) error {
	_, err := io.WriteString(c, answer)
	c.refused = true
	if err == nil && c.CloseWrite() == nil && c.SetReadDeadline(time.Now().Add(c.server.times.refusal)) == nil {
		for err == nil {
			_, err = c.Conn.Read(scratch)
		}
	}
	return errRefused
}

// writeSize is how many bytes a client must read in time ([times.unread] at the connection
// limit, [times.write] below it) to keep its connection.
const writeSize = 16 << 10

// Write gives each part of an answer a deadline of its own. The kernel's buffers take all of
// a small answer at once, whether or not the client reads it.
func (c *conn) Write(p []byte) (n int, err error) {
	if c.refused {
		return 0, errRefused
	}
	for err == nil && n < len(p) {
		var written int
		written, err = c.writePart(p[n:min(n+writeSize, len(p))])
		n += written
	}
	return n, err
}

func (c *conn) writePart(p []byte) (n int, err error) {
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

// received notes that a part of a request was read, or the last part. It returns false if
// the request is large and there is no room for that.
func (c *conn) received(last bool) bool {
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	if last {
		c.state = serving
	} else if c.state != serving {
		c.state = reading
	}
	return c.large || c.header.bytes <= smallHeader || c.server.grow(c)
}

// setState is net/http's ConnState hook.
func (c *conn) setState(to http.ConnState) {
	switch to {
	case http.StateActive: // net/http has the header of a request, or has given it up
		c.header = header{}
		c.update(func() { c.state = serving })
	case http.StateIdle: // net/http has written the answer
		next := idle
		if c.header.bytes > 0 || len(c.rest) > 0 {
			next = reading
		}
		now := time.Now()
		c.update(func() {
			c.state, c.since = next, now
			c.server.shrink(c)
		})
		if next == reading {
			runtime.Gosched() // pipelined requests queue behind those of other connections
		}
	}
}

// header follows a request's header while it comes in: lines, up to an empty one. A line
// ends as net/http has it, with a line feed that may follow a carriage return.
type header struct {
	bytes, lines int
	line         lineState // of the line that has yet to end
	begun        bool      // a line that is not empty has ended
}

type lineState int

const (
	lineEmpty lineState = iota
	lineCR              // a carriage return and nothing else
	lineText
)

// take follows the bytes that came next. It returns how many of them are the header's, and
// whether that was its end.
func (h *header) take(p []byte) (n int, ended bool) {
	for n < len(p) && !ended {
		rest := p[n:]
		if i := bytes.IndexByte(rest, '\n'); i >= 0 {
			h.add(rest[:i])
			n += i + 1
			ended = h.endLine()
		} else {
			h.add(rest)
			n = len(p)
		}
	}
	h.bytes += n
	return n, ended
}

func (h *header) add(text []byte) {
	switch {
	case len(text) == 0:
	case h.line == lineEmpty && len(text) == 1 && text[0] == '\r':
		h.line = lineCR
	default:
		h.line = lineText
	}
}

// endLine reports whether the line that ends is the last one. Empty lines before the first
// one are not: net/http lets some clients send them after a POST.
func (h *header) endLine() bool {
	text := h.line == lineText
	h.line = lineEmpty
	h.lines++
	if !text {
		return h.begun
	}
	h.begun = true
	return false
}

func (h *header) tooLarge() bool { return h.bytes > maxHeaderBytes || h.lines > maxHeaderLines }
