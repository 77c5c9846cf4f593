package manifest

import "bytes"

// Part is the text of one document, with its marker, and the line where it begins.
type Part struct {
	Text []byte
	Line int
}

// byteOrderMark may stand before a stream; it belongs to no document.
var byteOrderMark = []byte("\xef\xbb\xbf")

// Split cuts a stream into documents. Put together again the parts are the stream.
//
// A line that begins with --- or ... is a marker wherever it stands: YAML allows it
// within no scalar. Directives before a marker go with what follows it.
func Split(text []byte) []Part {
	var parts []Part
	start, line, startLine := 0, 1, 1
	ended, content := false, false // ended: by "...", so that what follows is of the next document
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
		if !isBlankOrNote(current) {
			content = content || !ended
		}
		pos = end
	}
	cut(len(text))
	return parts
}

// marker tells whether a line is this marker, with or without something after it.
func marker(line []byte, mark string) bool {
	rest, found := bytes.CutPrefix(line, []byte(mark))
	return found && (len(rest) == 0 || bytes.IndexByte([]byte(" \t\r\n"), rest[0]) >= 0)
}

// isBlankOrNote tells whether a line holds nothing, a comment or a directive.
func isBlankOrNote(line []byte) bool {
	trimmed := bytes.TrimLeft(line, " \t\r\n")
	return len(trimmed) == 0 || trimmed[0] == '#' || line[0] == '%'
}

// lineEnd is the position after the line break that follows pos, or the text's end.
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

// lineStart is the position where the line of pos begins.
func lineStart(text []byte, pos int) int {
	for pos > 0 && text[pos-1] != '\n' && (text[pos-1] != '\r' || pos < len(text) && text[pos] == '\n') {
		pos--
	}
	if pos == 0 && bytes.HasPrefix(text, byteOrderMark) {
		return len(byteOrderMark)
	}
	return pos
}
