package manifest

import (
	"bytes"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// scanner finds the positions of values in the text. It follows the parser's tree, which has the
// values in order, but not where they end.
type scanner struct {
	document *Document
	text     []byte
	pos      int
	nodes    map[*yaml.Node]*Node
	layout   layout
}

// all scans a whole document.
func (s *scanner) all(tree *yaml.Node) (*Node, error) {
	s.pos = len(s.text) - len(bytes.TrimPrefix(s.text, byteOrderMark))
	s.prologue()
	root, err := s.node(tree, -1)
	if err != nil {
		return nil, err
	}
	s.skip()
	if s.pos < len(s.text) && !marker(s.text[s.pos:], "...") {
		return nil, s.unsupported()
	}
	return root, nil
}

// prologue skips comments, directives and the marker.
func (s *scanner) prologue() {
	for {
		s.skip()
		switch {
		case s.pos < len(s.text) && s.text[s.pos] == '%' && s.pos == lineStart(s.text, s.pos):
			s.pos = lineEnd(s.text, s.pos)
		case marker(s.text[s.pos:], "---") && s.pos == lineStart(s.text, s.pos):
			s.pos += len("---")
			return
		default:
			return
		}
	}
}

// unsupported returns the error for a text that the scanner cannot match with the tree.
func (s *scanner) unsupported() error {
	return s.document.errorAt(s.pos, "cannot edit this YAML syntax in place: write it in block style")
}

// skip skips blanks, line breaks and comments.
func (s *scanner) skip() {
	for s.pos < len(s.text) {
		switch s.text[s.pos] {
		case ' ', '\t', '\r', '\n':
			s.pos++
		case '#':
			s.pos = lineEnd(s.text, s.pos)
		default:
			return
		}
	}
}

// take skips one indicator.
func (s *scanner) take(indicator byte) error {
	if s.pos >= len(s.text) || s.text[s.pos] != indicator {
		return s.unsupported()
	}
	s.pos++
	return nil
}

func (s *scanner) at(indicator byte) bool {
	return s.pos < len(s.text) && s.text[s.pos] == indicator
}

// isEmpty reports whether a value has no text, as in "key:".
func isEmpty(tree *yaml.Node) bool {
	const quoted = yaml.DoubleQuotedStyle | yaml.SingleQuotedStyle | yaml.LiteralStyle | yaml.FoldedStyle
	return tree.Kind == yaml.ScalarNode && tree.Value == "" && tree.Style&quoted == 0
}

// node scans one value. The argument indent is the column of the block that contains it.
func (s *scanner) node(tree *yaml.Node, indent int) (*Node, error) {
	n := &Node{document: s.document, kind: tree.Kind, tag: shortTag(tree), text: tree.Value, anchor: tree.Anchor}
	s.nodes[tree] = n
	n.outer, n.head, n.start, n.end = s.pos, s.pos, s.pos, s.pos
	if isEmpty(tree) && tree.Anchor == "" && tree.Style&yaml.TaggedStyle == 0 {
		return n, nil
	}
	s.skip()
	n.outer = s.pos
	if s.properties(tree); s.pos > n.outer {
		n.head = s.pos
	}
	n.start, n.end = s.pos, s.pos
	if isEmpty(tree) {
		return n, nil
	}
	s.skip()
	n.start = s.pos
	err := s.content(tree, n, indent)
	n.end = s.pos
	return n, err
}

// properties skips the anchor and the tag, in either order.
func (s *scanner) properties(tree *yaml.Node) {
	anchor, tag := tree.Anchor != "" && tree.Kind != yaml.AliasNode, tree.Style&yaml.TaggedStyle != 0
	for end := s.pos; ; s.skip() {
		switch {
		case anchor && s.at('&'):
			anchor = false
		case tag && s.at('!'):
			tag = false
		default:
			s.pos = end // the blanks after the properties belong to the value
			return
		}
		s.word()
		end = s.pos
	}
}

// word skips an anchor, an alias or a tag.
func (s *scanner) word() {
	for s.pos++; s.pos < len(s.text) && !strings.ContainsRune(" \t\r\n,[]{}", rune(s.text[s.pos])); s.pos++ {
	}
}

func (s *scanner) content(tree *yaml.Node, n *Node, indent int) error {
	n.flow = tree.Style&yaml.FlowStyle != 0
	switch {
	case tree.Kind == yaml.AliasNode:
		n.target = s.nodes[tree.Alias]
		if n.target == nil || !s.at('*') {
			return s.unsupported()
		}
		n.target.aliased = true
		s.word()
		return nil
	case tree.Kind == yaml.MappingNode && n.flow:
		return s.flowMapping(tree, n)
	case tree.Kind == yaml.MappingNode:
		return s.blockMapping(tree, n)
	case tree.Kind == yaml.SequenceNode && n.flow:
		return s.flowSequence(tree, n)
	case tree.Kind == yaml.SequenceNode:
		return s.blockSequence(tree, n)
	}
	return s.scalar(tree, indent)
}

func (s *scanner) scalar(tree *yaml.Node, indent int) error {
	switch {
	case tree.Style&yaml.DoubleQuotedStyle != 0:
		return s.quoted('"')
	case tree.Style&yaml.SingleQuotedStyle != 0:
		return s.quoted('\'')
	case tree.Style&(yaml.LiteralStyle|yaml.FoldedStyle) != 0:
		return s.block(indent)
	}
	return s.plain(tree.Value)
}

// quoted skips a scalar in quotes. In double quotes, a backslash escapes a quote. In single quotes, a
// quote is doubled.
func (s *scanner) quoted(quote byte) error {
	if err := s.take(quote); err != nil {
		return err
	}
	for ; s.pos < len(s.text); s.pos++ {
		switch {
		case s.text[s.pos] == '\\' && quote == '"':
			s.pos++
		case s.text[s.pos] != quote:
		case quote == '\'' && s.pos+1 < len(s.text) && s.text[s.pos+1] == quote:
			s.pos++
		default:
			s.pos++
			return nil
		}
	}
	return s.unsupported()
}

// plain skips a scalar without quotes. The parser has folded its lines.
func (s *scanner) plain(value string) error {
	const blanks = " \t\r\n"
	for len(value) > 0 {
		if rest := strings.TrimLeft(value, blanks); len(rest) < len(value) {
			value = rest
			length := len(s.text[s.pos:]) - len(bytes.TrimLeft(s.text[s.pos:], blanks))
			if length == 0 {
				return s.unsupported()
			}
			s.pos += length
			continue
		}
		_, size := utf8.DecodeRuneInString(value)
		if !bytes.HasPrefix(s.text[s.pos:], []byte(value[:size])) {
			return s.unsupported()
		}
		s.pos, value = s.pos+size, value[size:]
	}
	return nil
}

// block skips a literal or folded scalar: its header, and each line that is blank or indented enough.
// It stops before the last line break.
func (s *scanner) block(indent int) error {
	header := lineEnd(s.text, s.pos)
	options, _, _ := strings.Cut(string(s.text[s.pos:header]), "#")
	least := 0
	if i := strings.IndexAny(options, "123456789"); i >= 0 {
		least = max(indent, 0) + int(options[i]-'0')
	}
	end := s.pos + len(strings.TrimRight(string(s.text[s.pos:header]), "\r\n"))
	for pos := header; pos < len(s.text); {
		next := lineEnd(s.text, pos)
		line := bytes.TrimRight(s.text[pos:next], "\r\n")
		spaces := len(line) - len(bytes.TrimLeft(line, " "))
		blank := spaces == len(line)
		if least == 0 && !blank {
			least = max(spaces, indent+1)
		}
		if !blank && spaces < least {
			break
		}
		if !blank || strings.Contains(options, "+") || least > 0 && spaces > least {
			end = pos + len(line)
		}
		pos = next
	}
	s.pos = end
	s.document.openEnd = end == len(s.text) && !strings.Contains(options, "-")
	return nil
}
