package manifest

import (
	"bytes"
	"encoding/json"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"
)

// blockLines writes an entry of a block collection, the key or dash included.
func (l layout) blockLines(e entry, in yaml.Kind, column int) []string {
	if in == yaml.SequenceNode {
		return l.item(e.value, column)
	}
	margin := strings.Repeat(" ", column)
	key := margin + scalarText("!!str", e.name) + ":"
	if e.value.isInline() {
		return []string{key + " " + inline(e.value)}
	}
	return append([]string{key}, l.below(e.value, column)...)
}

// below writes a block collection that belongs to a key at this column.
func (l layout) below(n *Node, column int) []string {
	inner := column + l.step
	if n.kind == yaml.SequenceNode {
		inner = column + l.dash
	}
	return l.block(n, inner)
}

func (l layout) block(n *Node, column int) []string {
	var lines []string
	for _, e := range n.entries {
		lines = append(lines, l.blockLines(e, n.kind, column)...)
	}
	return lines
}

// item writes an item of a block sequence, its first line behind the dash.
func (l layout) item(n *Node, column int) []string {
	margin := strings.Repeat(" ", column)
	if n.isInline() {
		return []string{margin + "- " + inline(n)}
	}
	lines := l.block(n, column+2)
	lines[0] = margin + "- " + lines[0][column+2:]
	return lines
}

// isInline tells whether a value goes on the line of its key.
func (n *Node) isInline() bool { return len(n.entries) == 0 }

func inline(n *Node) string {
	switch {
	case n.kind == yaml.MappingNode:
		return "{}"
	case n.kind == yaml.SequenceNode:
		return "[]"
	}
	return scalarText(n.tag, n.text)
}

// harmless strings start like a word or a path and go on without what YAML might take
// for something else. The rest are put in quotes.
var harmless = regexp.MustCompile(`^[A-Za-z/][A-Za-z0-9_./:@%+,=-]*( [A-Za-z0-9_./@%+,=-]+)*$`)

// words of YAML 1.1 and 1.2 that are no strings, and the marks of numbers.
var reserved = regexp.MustCompile(`(?i)^(y|n|yes|no|on|off|true|false|null|nan|inf)$|:$|^-`)

func scalarText(tag, text string) string {
	if tag != "!!str" || harmless.MatchString(text) && !reserved.MatchString(text) {
		return text
	}
	return quote(text)
}

// quote writes a string in double quotes, in JSON's manner, which YAML shares.
func quote(text string) string {
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(text); err != nil {
		return `""`
	}
	return strings.ReplaceAll(strings.TrimSuffix(b.String(), "\n"), "\x7f", `\u007f`)
}

// brackets writes a value in flow style. With a margin it goes over several lines,
// each entry on its own; strict is JSON.
type brackets struct {
	strict, lines bool
	step          int
	eol           string
}

func (b brackets) value(n *Node, margin string) string {
	if n.isInline() {
		if b.strict && n.tag == "!!str" {
			return quote(n.text)
		}
		if n.tag == "!!str" {
			return flowScalar(n.text)
		}
		return inline(n)
	}
	opening, closing := "{", "}"
	if n.kind == yaml.SequenceNode {
		opening, closing = "[", "]"
	}
	inner := margin + strings.Repeat(" ", b.step)
	var entries []string
	for _, e := range n.entries {
		entries = append(entries, b.entry(e, n.kind, inner))
	}
	if !b.lines {
		return opening + strings.Join(entries, ", ") + closing
	}
	return opening + b.eol + inner + strings.Join(entries, ","+b.eol+inner) + b.eol + margin + closing
}

func (b brackets) entry(e entry, in yaml.Kind, margin string) string {
	if in == yaml.SequenceNode {
		return b.value(e.value, margin)
	}
	key := scalarText("!!str", e.name)
	if b.strict {
		key = quote(e.name)
	}
	return key + ": " + b.value(e.value, margin)
}

// flowScalar has no comma or colon outside of quotes.
func flowScalar(text string) string {
	if strings.ContainsAny(text, ",:") {
		return quote(text)
	}
	return scalarText("!!str", text)
}
