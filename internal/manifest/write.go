package manifest

import (
	"bytes"
	"encoding/json"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"
)

// blockLines returns the lines of an entry of a block collection, with its key or dash.
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

// below returns the lines of a block collection that is the value of a key at this column.
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

// item returns the lines of an item of a block sequence. The first line begins with the dash.
func (l layout) item(n *Node, column int) []string {
	margin := strings.Repeat(" ", column)
	if n.isInline() {
		return []string{margin + "- " + inline(n)}
	}
	lines := l.block(n, column+2)
	lines[0] = margin + "- " + lines[0][column+2:]
	return lines
}

// isInline reports whether a value is written on the line of its key.
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

// plainSafe matches strings that need no quotes: they begin like a word or a path and have no
// characters with a meaning in YAML.
var plainSafe = regexp.MustCompile(`^[A-Za-z/][A-Za-z0-9_./:@%+,=-]*( [A-Za-z0-9_./@%+,=-]+)*$`)

// reserved matches words of YAML 1.1 and 1.2 that are not strings, and a colon at the end or a hyphen
// at the start.
var reserved = regexp.MustCompile(`(?i)^(y|n|yes|no|on|off|true|false|null|nan|inf)$|:$|^-`)

func scalarText(tag, text string) string {
	if tag != "!!str" || plainSafe.MatchString(text) && !reserved.MatchString(text) {
		return text
	}
	return quote(text)
}

// quote returns a string in double quotes as in JSON, which is valid in YAML too.
func quote(text string) string {
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(text); err != nil {
		return `""`
	}
	return strings.ReplaceAll(strings.TrimSuffix(b.String(), "\n"), "\x7f", `\u007f`)
}

// brackets is a flow style. If lines is set, each entry is on its own line. If strict is set, the
// style is JSON.
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

// flowScalar returns a string for a flow collection, in quotes if it contains a comma or a colon.
func flowScalar(text string) string {
	if strings.ContainsAny(text, ",:") {
		return quote(text)
	}
	return scalarText("!!str", text)
}
