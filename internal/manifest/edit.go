package manifest

import (
	"bytes"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// edit replaces text[start:end].
type edit struct {
	start, end int
	text       string
}

// splice applies the edits. Edits at the same position stay in their order. Removals may overlap.
func splice(text []byte, edits []edit) []byte {
	slices.SortStableFunc(edits, func(a, b edit) int { return a.start - b.start })
	var out bytes.Buffer
	done := 0
	for _, e := range edits {
		out.Write(text[done:max(done, e.start)])
		out.WriteString(e.text)
		done = max(done, e.end)
	}
	out.Write(text[done:])
	return out.Bytes()
}

// editor compares the original and the patched entries of a tree, and collects the edits.
type editor struct {
	document *Document
	edits    []edit
}

func (e *editor) cut(start, end int) { e.edits = append(e.edits, edit{start: start, end: end}) }

func (e *editor) insert(at int, text string) {
	e.edits = append(e.edits, edit{start: at, end: at, text: text})
}

// insertLines inserts whole lines at the start of a line. At the end of a text without a final line
// break, the new text has none either.
func (e *editor) insertLines(at int, lines []string) {
	eol, text := e.document.eol, e.document.text
	block := strings.Join(lines, eol)
	if at == len(text) && at > 0 && text[at-1] != '\n' && text[at-1] != '\r' {
		e.insert(at, eol+block)
		return
	}
	e.insert(at, block+eol)
}

// cutLines removes whole lines.
func (e *editor) cutLines(from, to int) {
	e.cut(lineStart(e.document.text, from), lineEnd(e.document.text, to))
}

// lastBreak removes the line break before removed last lines, if the text has no final line break,
// so that the new text has none either.
func (e *editor) lastBreak() {
	text := e.document.text
	if bytes.HasSuffix(text, []byte("\n")) {
		return
	}
	end := len(text)
	for i := 0; i < len(e.edits); i++ {
		if c := e.edits[i]; c.text == "" && c.start < end && c.end >= end {
			end, i = c.start, -1
		}
	}
	if end < len(text) && end > 0 {
		e.cut(end-len(e.document.breakBefore(end)), end)
	}
}

func (d *Document) breakBefore(pos int) string {
	switch {
	case bytes.HasSuffix(d.text[:pos], []byte("\r\n")):
		return "\r\n"
	case bytes.HasSuffix(d.text[:pos], []byte("\n")):
		return "\n"
	}
	return ""
}

// node collects the edits of a value that is kept. The argument holder is the entry with the value,
// or nil for the root.
func (e *editor) node(n *Node, holder *entry) error {
	switch {
	case n.kind != yaml.MappingNode && n.kind != yaml.SequenceNode:
		return nil
	case n.flow:
		return e.flow(n)
	}
	return e.block(n, holder)
}

// changedEntries reports whether entries were added or removed.
func (n *Node) changedEntries() bool {
	return len(n.entries) != len(n.original) || slices.ContainsFunc(n.entries, func(x entry) bool { return x.from == added })
}

func (e *editor) block(n *Node, holder *entry) error {
	if len(n.entries) == 0 {
		return e.empty(n, holder)
	}
	// The values first: additions to a value come before additions after it, at the same position.
	for _, x := range n.entries {
		if x.from == added {
			continue
		}
		if err := e.kept(n, x); err != nil {
			return err
		}
	}
	e.blockAdditions(n, holder)
	return e.blockRemovals(n)
}

// kept edits an entry that is kept: inside its value, or by replacing the value.
func (e *editor) kept(n *Node, x entry) error {
	old := n.original[x.from].value
	if old == x.value {
		return e.node(old, &x)
	}
	return e.replace(n, x, old)
}

// blockAdditions inserts the new entries after the last line of the existing entry before them, or
// before the first entry and its comments.
func (e *editor) blockAdditions(n *Node, holder *entry) {
	after := added // the existing entry before the next addition
	for i := 0; i < len(n.entries); i++ {
		if n.entries[i].from != added {
			after = n.entries[i].from
			continue
		}
		var lines []string
		for ; i < len(n.entries) && n.entries[i].from == added; i++ {
			lines = append(lines, e.layoutFor(n).blockLines(n.entries[i], n.kind, n.column)...)
		}
		if i == len(n.entries) && after != added {
			after = len(n.original) - 1
		}
		i--
		e.addAfter(n, holder, after, lines)
	}
}

func (e *editor) layoutFor(n *Node) layout { return e.document.layout.near(n) }

func (e *editor) addAfter(n *Node, holder *entry, after int, lines []string) {
	text := e.document.text
	if after != added {
		at := lineEnd(text, n.original[after].last())
		if after == len(n.original)-1 {
			at = e.document.trailing(at, n.leastComment(holder))
		}
		e.insertLines(at, lines)
		return
	}
	first := n.original[0].start
	if at := lineEnd(text, n.head); at <= lineStart(text, first) {
		e.insertLines(at, lines)
		return
	}
	// The first entry is in the line of a dash, a key or the marker. It moves down.
	margin := strings.Repeat(" ", n.column)
	e.insert(first, strings.TrimPrefix(strings.Join(lines, e.document.eol), margin)+e.document.eol+margin)
}

// last returns the last position of an entry.
func (x entry) last() int {
	end := max(x.colon, x.value.end)
	if x.key != nil {
		end = max(end, x.key.end)
	}
	return end
}

// leastComment returns the smallest column of a comment after the last entry that belongs to the
// collection. The dashes of a list may be in the column of its key. A comment in that column is
// more likely about the next key.
func (n *Node) leastComment(holder *entry) int {
	if n.kind == yaml.SequenceNode && holder != nil && n.parent != nil && n.parent.kind == yaml.MappingNode {
		return n.parent.column + 1
	}
	return n.column
}

// trailing returns the position after the comments that are indented enough, with blank lines between
// them.
func (d *Document) trailing(at, column int) int {
	for pos := at; pos < len(d.text); {
		next := lineEnd(d.text, pos)
		line := bytes.TrimRight(d.text[pos:next], " \t\r\n")
		content := bytes.TrimLeft(line, " ")
		switch {
		case len(content) == 0:
		case content[0] == '#' && len(line)-len(content) >= column:
			at = next
		default:
			return at
		}
		pos = next
	}
	return at
}

// blockRemovals removes the lines of removed entries. Comments before them stay.
func (e *editor) blockRemovals(n *Node) error {
	kept := make([]bool, len(n.original))
	firstKept := len(n.original)
	for _, x := range n.entries {
		if x.from != added {
			kept[x.from] = true
			firstKept = min(firstKept, x.from)
		}
	}
	for i, x := range n.original {
		if kept[i] {
			continue
		}
		if i == 0 && !e.document.leadsLine(x.start) {
			if firstKept == len(n.original) {
				return n.sharesLine()
			}
			e.cut(x.start, n.original[firstKept].start)
			continue
		}
		e.cutLines(x.start, x.last())
	}
	return nil
}

// leadsLine reports whether there are only blanks before pos in its line.
func (d *Document) leadsLine(pos int) bool {
	return len(bytes.Trim(d.text[lineStart(d.text, pos):pos], " ")) == 0
}

// empty replaces a block whose entries were all removed by [] or {}.
func (e *editor) empty(n *Node, holder *entry) error {
	if holder == nil || holder.colon == 0 || lineEnd(e.document.text, n.head) > lineStart(e.document.text, n.start) {
		return n.sharesLine()
	}
	e.insert(n.head, " "+inline(n))
	for _, x := range n.original {
		e.cutLines(x.start, x.last())
	}
	return nil
}

// sharesLine returns the error for a block that cannot be removed.
func (n *Node) sharesLine() error {
	if n.parent == nil {
		return n.errorf("cannot remove all of the document")
	}
	return n.errorf("cannot remove all of %s: it starts in the line of its key or dash; put it on lines of its own", n.path())
}

// path returns the keys and indexes of a value below the root, such as spec.volumes.
func (n *Node) path() string {
	i := slices.IndexFunc(n.parent.entries, func(x entry) bool { return x.value == n })
	step := strconv.Itoa(i)
	if n.parent.kind == yaml.MappingNode {
		step = n.parent.entries[i].keyName()
	}
	if n.parent.parent == nil {
		return step
	}
	return n.parent.path() + "." + step
}

// replace writes another value after a key of a block mapping.
func (e *editor) replace(n *Node, x entry, old *Node) error {
	text := e.document.text
	if x.colon == 0 {
		return n.errorf("%s has no colon", x.keyName())
	}
	isBlock := !old.flow && len(old.original) > 0
	switch {
	case isBlock:
		e.cut(lineEnd(text, x.colon), lineEnd(text, old.end))
	case old.outer > x.colon || old.end > x.colon:
		e.cut(x.colon, old.end)
	}
	if x.value.isInline() {
		e.insert(x.colon, " "+inline(x.value))
		return nil
	}
	e.insertLines(lineEnd(text, old.end), e.layoutFor(n).below(x.value, n.column))
	return nil
}
