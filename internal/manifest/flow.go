package manifest

import "strings"

// flow collects the edits of a collection in flow style, which has brackets.
func (e *editor) flow(n *Node) error {
	if n.changedEntries() {
		if n.bare {
			return n.errorf("cannot edit a pair without braces: write it in braces")
		}
		kept := e.flowKept(n)
		if len(kept) == 0 {
			return e.rewriteFlow(n)
		}
		e.flowAdditions(n)
		e.flowRemovals(n, kept)
	}
	for _, x := range n.entries {
		if x.from == added {
			continue
		}
		old := n.original[x.from].value
		if old != x.value {
			if x.colon == 0 {
				return n.errorf("%s has no value to replace", x.keyName())
			}
			e.cut(x.colon, old.end)
			b, margin := e.brackets(n)
			e.insert(x.colon, " "+b.value(x.value, margin))
			continue
		}
		if err := e.node(old, &x); err != nil {
			return err
		}
	}
	return nil
}

func (e *editor) flowKept(n *Node) []int {
	var kept []int
	for _, x := range n.entries {
		if x.from != added {
			kept = append(kept, x.from)
		}
	}
	return kept
}

// brackets returns the style for entries that are added to a collection: JSON in a JSON document,
// and several lines if the existing entries are on separate lines, with the same margin.
func (e *editor) brackets(n *Node) (b brackets, margin string) {
	b = brackets{strict: e.document.isJSON(), eol: e.document.eol, step: e.document.flowStep()}
	if len(n.original) == 0 && b.strict && n.parent != nil {
		n = n.parent // it is empty: use the style of its parent
	}
	column, ok := e.document.ownLine(n)
	if !ok {
		return b, ""
	}
	b.lines = true
	return b, strings.Repeat(e.document.flowBlank(), column)
}

// ownLine returns the column of the first entry, and reports whether the entry is the first text in
// its line.
func (d *Document) ownLine(n *Node) (int, bool) {
	if !n.flow || len(n.original) == 0 {
		return 0, false
	}
	return d.blankBefore(n.original[0].start)
}

// blankBefore returns the column of pos, and reports whether there are only blanks before it in its
// line. It reads no further back than necessary: a JSON document may have only one line.
func (d *Document) blankBefore(pos int) (column int, ok bool) {
	start := pos
	for start > 0 && (d.text[start-1] == ' ' || d.text[start-1] == '\t') {
		start--
	}
	return pos - start, atLineStart(d.text, start)
}

// isJSON distinguishes JSON from YAML in flow style by the quotes of the first key.
func (d *Document) isJSON() bool {
	r := d.root
	return r.flow && len(r.original) > 0 && r.original[0].key != nil && d.text[r.original[0].key.start] == '"'
}

// flowStep returns the indentation of JSON, which is the column of its first key.
func (d *Document) flowStep() int {
	if column, ok := d.ownLine(d.root); ok && column > 0 {
		return column
	}
	return 2
}

func (d *Document) flowBlank() string {
	if column, ok := d.ownLine(d.root); ok && column > 0 && d.text[d.root.original[0].start-1] == '\t' {
		return "\t"
	}
	return " "
}

// flowAdditions inserts new entries after the existing entry before them, or before the first one.
func (e *editor) flowAdditions(n *Node) {
	b, margin := e.brackets(n)
	gap := " "
	if b.lines {
		gap = b.eol + margin
	}
	after := added
	for _, x := range n.entries {
		switch {
		case x.from != added:
			after = x.from
		case after == added:
			e.insert(n.original[0].start, b.entry(x, n.kind, margin)+","+gap)
		default:
			e.insert(n.original[after].last(), ","+gap+b.entry(x, n.kind, margin))
		}
	}
}

// flowRemovals removes entries with the comma after them, or for the last entries, before them.
func (e *editor) flowRemovals(n *Node, kept []int) {
	next := 0 // the first entry that has not been processed
	for _, k := range kept {
		if k > next {
			e.cut(n.original[next].start, n.original[k].start)
		}
		next = k + 1
	}
	if last := len(n.original); next < last {
		e.cut(n.original[next-1].last(), n.original[last-1].last())
	}
}

// rewriteFlow replaces a collection without keeping any of its entries.
func (e *editor) rewriteFlow(n *Node) error {
	b, margin := e.brackets(n)
	if b.lines && len(n.original) > 0 {
		margin = strings.TrimSuffix(margin, strings.Repeat(e.document.flowBlank(), b.step))
	}
	e.cut(n.start, n.end)
	e.insert(n.start, b.value(&Node{kind: n.kind, tag: n.tag, entries: n.entries}, margin))
	return nil
}
