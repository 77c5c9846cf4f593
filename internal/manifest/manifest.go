// Package manifest edits Kubernetes manifests in place. It applies a JSON patch to a YAML or JSON
// document and changes only the bytes of the patched values. Comments, quotes, indentation, the
// order of keys, anchors, line endings and other documents stay unchanged, so that a diff shows
// only the patch.
//
//	reader := manifest.NewReader(file)
//	for {
//		part, err := reader.Next() // io.EOF at the end
//		…
//		document, err := manifest.Parse(part)
//		…
//		err = document.Root().Apply([]manifest.Operation{{Op: "add", Path: "/spec/replicas", Value: 2}})
//		…
//		out, err := document.Text()
//	}
//
// The package implements YAML and the operations add, remove and replace of RFC 6902. It does not
// depend on Kubernetes.
//
// A document is read twice: by a YAML parser, which returns the values, and by a scanner of this
// package, which follows the parser's tree and finds where each value begins and ends. If the
// two disagree, there is an error. The edited text is parsed again and compared with the patched
// tree, so that a text with other values is never returned. Aliases, merge keys and anchors with
// aliases are not changed: an edit that would need this is an error that names them.
package manifest

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Error is an error at a line of the text.
type Error struct {
	// Line is the line number in the stream. The first line is 1.
	Line   int
	Reason string
}

func (e *Error) Error() string { return fmt.Sprintf("line %d: %s", e.Line, e.Reason) }

// Operation is an operation of RFC 6902: add, remove or replace. Value is any value that
// encoding/json can encode. Path is relative to the node that the operation is applied to.
type Operation struct {
	Op, Path string
	Value    any
}

// Document is one document of a stream.
type Document struct {
	text      []byte
	firstLine int
	root      *Node
	eol       string
	layout    layout
	changed   bool
	openEnd   bool // it ends in a block scalar without a final line break
	// notEditable is the error of the scanner, for a document that can be read but not edited.
	notEditable error
}

// Parse parses one part of a stream. The Root of a part without content is nil. If the scanner
// does not support the syntax of a document, the document can be read, but Apply returns an
// error. Parse refuses recursive aliases and aliases that expand to too many values, so that
// callers can follow aliases without a limit.
func Parse(part Part) (*Document, error) {
	d := &Document{text: part.Text, firstLine: part.Line, eol: "\n"}
	if i := bytes.IndexByte(part.Text, '\n'); i > 0 && part.Text[i-1] == '\r' {
		d.eol = "\r\n"
	}
	tree, err := parseYAML(part.Text)
	if err != nil {
		return nil, d.yamlError(err)
	}
	if len(tree.Content) == 0 {
		return d, nil
	}
	s := &scanner{document: d, text: part.Text, nodes: map[*yaml.Node]*Node{}}
	if d.root, d.notEditable = s.all(tree.Content[0]); d.notEditable != nil {
		d.root = d.withoutPositions(tree.Content[0], map[*yaml.Node]*Node{})
	}
	d.layout = s.layout
	d.layout.step = cmp.Or(d.layout.step, 2) // the indentation of kubectl
	if err := checkAliases(d.root); err != nil {
		return nil, err
	}
	return d, nil
}

// withoutPositions returns a tree that can be read, for a text that the scanner does not support.
func (d *Document) withoutPositions(tree *yaml.Node, nodes map[*yaml.Node]*Node) *Node {
	start := d.lineOffset(tree.Line)
	n := &Node{document: d, kind: tree.Kind, tag: shortTag(tree), text: tree.Value, anchor: tree.Anchor, start: start}
	nodes[tree] = n
	if tree.Alias != nil {
		n.target = nodes[tree.Alias]
	}
	for i := 0; i < len(tree.Content); i++ {
		e := entry{from: len(n.original)}
		if tree.Kind == yaml.MappingNode {
			e.key = d.withoutPositions(tree.Content[i], nodes)
			i++
		}
		e.value = d.withoutPositions(tree.Content[i], nodes)
		e.value.parent = n
		n.original = append(n.original, e)
	}
	n.finish()
	return n
}

// lineOffset returns the position of the start of a line. The first line is 1.
func (d *Document) lineOffset(line int) int {
	pos := 0
	for ; line > 1 && pos < len(d.text); line-- {
		pos = lineEnd(d.text, pos)
	}
	return pos
}

// parseYAML parses a text. It returns an error if the parser panics, which hostile texts have
// caused in some parsers.
func parseYAML(text []byte) (tree yaml.Node, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("yaml: the parser failed: %v", r)
		}
	}()
	decoder := yaml.NewDecoder(bytes.NewReader(forParser(text)))
	if err := decoder.Decode(&tree); err != nil {
		return tree, ignore(err, io.EOF)
	}
	// The parser stops after one value. Decode again to find out whether anything follows.
	return tree, ignore(decoder.Decode(new(yaml.Node)), io.EOF)
}

func ignore(err, expected error) error {
	if errors.Is(err, expected) {
		return nil
	}
	return err
}

// Root returns the document's outermost value, or nil for an empty document.
func (d *Document) Root() *Node { return d.root }

// Text returns the text of the document after all operations. Without operations these are the
// bytes that were parsed.
func (d *Document) Text() ([]byte, error) {
	if !d.changed {
		return d.text, nil
	}
	e := &editor{document: d}
	if err := e.node(d.root, nil); err != nil {
		return nil, err
	}
	e.lastBreak()
	text := splice(d.text, e.edits)
	again, err := Parse(Part{Text: text, Line: d.firstLine})
	switch {
	case err == nil && same(d.root, again.root):
		return text, nil
	case d.openEnd:
		return nil, d.errorAt(len(d.text), "the block scalar (|) at the end has no final line break, and an edit would add one: end the file with a line break, or write |-")
	}
	return nil, d.errorAt(d.root.start, "cannot edit this document in place: write it in block style")
}

func (d *Document) errorAt(pos int, format string, args ...any) error {
	return &Error{Line: d.line(pos), Reason: fmt.Sprintf(format, args...)}
}

func (d *Document) line(pos int) int {
	return d.firstLine + bytes.Count(d.text[:min(pos, len(d.text))], []byte("\n"))
}

// lineBelow matches errors for which the parser reports the line before: its grammar counts lines
// from zero, its scanner from one.
var lineBelow = regexp.MustCompile(`^did not find expected (',' or|key|'-' indicator|node content|<)`)

var yamlLine = regexp.MustCompile(`^line (\d+): `)

// yamlError returns an error of the parser as an [*Error] with its line number.
func (d *Document) yamlError(err error) error {
	reason := errorText(err)
	line := d.firstLine
	if m := yamlLine.FindStringSubmatch(reason); m != nil {
		if n, err := strconv.Atoi(m[1]); err == nil {
			line, reason = d.firstLine+n-1, reason[len(m[0]):]
			if lineBelow.MatchString(reason) {
				line++
			}
		}
	}
	if strings.HasSuffix(reason, "did not find expected <document start>") {
		return &Error{Line: line, Reason: "there is more than one value, such as a second JSON object: write a line --- before each value"}
	}
	return &Error{Line: line, Reason: "invalid YAML: " + reason}
}

func errorText(err error) string {
	if typed, ok := errors.AsType[*yaml.TypeError](err); ok && len(typed.Errors) > 0 {
		return typed.Errors[0]
	}
	return strings.TrimPrefix(err.Error(), "yaml: ")
}
