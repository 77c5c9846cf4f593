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
	// maxHeaderBytes is four times the size of the largest header that clients send, which
	// has a resource, an ARM resource ID and claims of some hundred bytes.
	maxHeaderBytes = 16 << 10

	// maxHeaderLines includes the request line. Clients send fewer than 20 lines, and HTTP
	// proxies may add some. For a header of many short lines, net/http allocates 16 times the
	// size of the header.
	maxHeaderLines = 64
)

// state is the state of a connection.
type state int

const (
	silent   state = iota // no byte was received since the connection was accepted
	reading               // a part of a request was received, or a pipelined request is waiting
	serving               // the handler runs
	idle                  // the last request is answered, and no byte was received since
	ended                 // the drain has shut the reading side of a silent or idle connection
	finished              // the last answer is written, and the connection is about to be closed
)

// place is the server's record of a connection. Server.mu guards it.
type place struct {
	state   state
	since   time.Time // when the connection was accepted, or when it last became idle
	writing time.Time // when the present write began; zero if there is none
	failed  bool      // a write failed
	large   bool      // the connection is in Server.large
	closing bool      // net/http has closed the connection
}

// conn is a connection, from when it is accepted until the kernel has sent its last byte.
//
// It keeps its place up to date from the bytes that net/http reads and writes, and from the
// ConnState that net/http reports. When net/http sets deadlines does not matter.
type conn struct {
	net.Conn
	server *Server

	// Only the goroutine that reads uses these fields. net/http reads in one goroutine at a
	// time. It does not write at the same time, except that it reads one byte ahead while the
	// handler of a request without a body runs.
	header  header // of the request that is being received
	rest    []byte // received bytes that follow the header that was passed to net/http
	hasBody bool   // the bytes that follow are a request's body
	refused bool   // this package has answered the request in net/http's place

	place // guarded by Server.mu
}

// update calls change with the server's lock held.
func (c *conn) update(change func()) {
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	change()
}

// Read returns at most one request's header, and no byte of the next request, so that this
// package always knows the state of the connection. It refuses a header that is too large
// before net/http gets the excess bytes, and one with a folded line.
func (c *conn) Read(p []byte) (int, error) {
	if c.hasBody {
		// net/http reads a body only after the answer is written, to discard it.
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
	case c.header.folded:
		return 0, c.refuse(foldedLine, p)
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
//
// A folded line continues the line before it, which net/http joins to one value and other
// servers do not: a header that a proxy in front has checked could have another value here.
// RFC 9112, section 5.2, lets a server refuse it. No client sends it.
const (
	tooLarge = "HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Type: text/plain; charset=utf-8\r\n" +
		"Connection: close\r\n\r\n431 Request Header Fields Too Large"
	tooMany = "HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\n" +
		"Retry-After: 1\r\nConnection: close\r\n\r\n503 Service Unavailable: too many large requests"
	foldedLine = "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\n" +
		"Connection: close\r\n\r\n400 Bad Request: folded header line"
)

var errRefused = errors.New("the request is refused: its header is too large, or has a folded line")

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

// SetWriteDeadline does nothing: net/http would clear the deadlines that Write sets.
func (c *conn) SetWriteDeadline(time.Time) error { return nil }

// received updates the state after a part of a request was read; last is true for the last
// part. It returns false if the request is large and too many others are large.
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
	case http.StateActive: // net/http has read the header of a request, or has failed to
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
			runtime.Gosched() // a pipelined request is served after those of other connections
		}
	}
}

// header finds the end of a request's header, which is an empty line, and counts its bytes
// and lines. As for net/http, a line ends with a line feed, which a carriage return may
// precede.
type header struct {
	bytes, lines int
	line         lineState // of the present line
	begun        bool      // at least one line that is not empty is complete
	folded       bool      // a line continues the one before it: it starts with white space
}

type lineState int

const (
	lineEmpty lineState = iota
	lineCR              // a carriage return and nothing else
	lineText
)

// take adds received bytes. It returns how many of them belong to the header, and whether the
// header is complete.
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
		if h.line == lineEmpty && h.begun && (text[0] == ' ' || text[0] == '\t') {
			h.folded = true
		}
		h.line = lineText
	}
}

// endLine reports whether the line that ends completes the header. Empty lines before the
// request line do not: net/http accepts them, since some clients send them after a POST.
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
