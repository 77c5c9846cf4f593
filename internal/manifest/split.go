package manifest

import "bytes"

// Part is the text of one document with its marker, and its first line in the stream.
type Part struct {
	Text []byte
	Line int
}

// byteOrderMark is allowed at the start of a stream. It is not part of a document.
var byteOrderMark = []byte("\xef\xbb\xbf")

// Split splits a stream into documents. The concatenated parts are the stream.
//
// A line that begins with --- or ... is always a marker, since YAML does not allow such a line in a
// scalar. Directives belong to the document after them.
func Split(text []byte) []Part {
	var parts []Part
	start, line, startLine := 0, 1, 1
	ended, content := false, false // ended: after "...", which ends a document
	cut := func(at int) {
		if at > start {
			parts = append(parts, Part{Text: text[start:at], Line: startLine})
		}
		start, startLine, ended, content = at, line, false, false
	}
	for pos := 0; pos < len(text); line++ {
		end := lineEnd(text, pos)
		current := text[pos:end]
		if pos == 0 {
			current = bytes.TrimPrefix(current, byteOrderMark)
		}
		switch {
		case marker(current, "---"):
			if content {
				cut(pos)
			}
			content = true
		case marker(current, "..."):
			ended = true
		case ended:
			cut(pos)
		}
		if !isBlankOrComment(current) {
			content = content || !ended
		}
		pos = end
	}
	cut(len(text))
	return parts
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
	for pos > 0 && text[pos-1] != '\n' && (text[pos-1] != '\r' || pos < len(text) && text[pos] == '\n') {
		pos--
	}
	if pos == 0 && bytes.HasPrefix(text, byteOrderMark) {
		return len(byteOrderMark)
	}
	return pos
}
