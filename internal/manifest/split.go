package manifest

import (
	"bufio"
	"bytes"
	"io"
)

// Part is the text of one document with its marker, and its first line in the stream.
type Part struct {
	Text []byte
	Line int
}

// byteOrderMark is allowed at the start of a stream. It is not part of a document.
var byteOrderMark = []byte("\xef\xbb\xbf")

// Reader splits a stream into documents. It holds one document in memory, not the stream.
type Reader struct {
	in   *bufio.Reader
	line int    // the number of lines before next
	next []byte // the first line of the next part, which ended the part before it
}

// NewReader returns a Reader of a stream.
func NewReader(in io.Reader) *Reader { return &Reader{in: bufio.NewReader(in)} }

// Next returns the next part. The concatenated parts are the stream. After the last part, the error
// is io.EOF.
//
// A line that begins with --- or ... is always a marker, since YAML does not allow such a line in a
// scalar. Directives belong to the document after them.
func (r *Reader) Next() (Part, error) {
	part := Part{Line: r.line + 1}
	ended, content := false, false // ended: after "...", which ends a document
	for {
		start := len(part.Text)
		var err error
		if part.Text, err = r.appendLine(part.Text); err != nil {
			return part, err
		}
		current := part.Text[start:]
		if len(current) == 0 {
			break
		}
		if r.line == 0 {
			current = bytes.TrimPrefix(current, byteOrderMark)
		}
		isStart, isEnd := marker(current, "---"), marker(current, "...")
		if isStart && content || ended && !isStart && !isEnd {
			part.Text, r.next = part.Text[:start:start], bytes.Clone(current)
			break
		}
		r.line++
		ended = ended || isEnd
		content = content || isStart || !ended && !isBlankOrComment(current)
	}
	if len(part.Text) == 0 {
		return part, io.EOF
	}
	return part, nil
}

// appendLine appends the next line with its line break. At the end of the stream it appends nothing.
func (r *Reader) appendLine(text []byte) ([]byte, error) {
	if r.next != nil {
		text, r.next = append(text, r.next...), nil
		return text, nil
	}
	for {
		b, err := r.in.ReadByte()
		if err != nil {
			return text, ignore(err, io.EOF)
		}
		text = append(text, b)
		if b == '\n' {
			return text, nil
		}
		if b != '\r' {
			continue
		}
		if next, err := r.in.Peek(1); err != nil || next[0] != '\n' {
			return text, ignore(err, io.EOF)
		}
	}
}

// marker reports whether a line begins with this marker.
func marker(line []byte, mark string) bool {
	rest, found := bytes.CutPrefix(line, []byte(mark))
	return found && (len(rest) == 0 || bytes.IndexByte([]byte(" \t\r\n"), rest[0]) >= 0)
}

// isBlankOrComment reports whether a line is blank, a comment or a directive.
func isBlankOrComment(line []byte) bool {
	trimmed := bytes.TrimLeft(line, " \t\r\n")
	return len(trimmed) == 0 || trimmed[0] == '#' || line[0] == '%'
}

// lineEnd returns the position after the next line break, or the end of the text.
func lineEnd(text []byte, pos int) int {
	for ; pos < len(text); pos++ {
		switch {
		case text[pos] == '\n':
			return pos + 1
		case text[pos] == '\r' && (pos+1 == len(text) || text[pos+1] != '\n'):
			return pos + 1
		}
	}
	return len(text)
}

// lineStart returns the start of the line that contains pos.
func lineStart(text []byte, pos int) int {
	for pos > 0 && !atLineStart(text, pos) {
		pos--
	}
	if pos == 0 && bytes.HasPrefix(text, byteOrderMark) {
		return len(byteOrderMark)
	}
	return pos
}

// atLineStart reports whether a line starts at pos.
func atLineStart(text []byte, pos int) bool {
	switch {
	case pos == 0:
		return !bytes.HasPrefix(text, byteOrderMark)
	case pos == len(byteOrderMark) && bytes.HasPrefix(text, byteOrderMark):
		return true
	}
	return text[pos-1] == '\n' || text[pos-1] == '\r' && (pos == len(text) || text[pos] != '\n')
}
