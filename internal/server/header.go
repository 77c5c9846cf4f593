package server

import "bytes"

const (
	// maxHeaderBytes is four times what clients send at the most: a resource, an ARM
	// resource ID and claims of some hundred bytes.
	maxHeaderBytes = 16 << 10

	// maxHeaderLines includes the request line. Clients send fewer than 20, and proxies on
	// the way add some. net/http makes 16 times as much memory of a header of many short
	// lines as their bytes are.
	maxHeaderLines = 64
)

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
