// Package manifest edits Kubernetes manifests as text: a JSON patch is applied to the
// tree of a YAML or JSON document, and only the bytes that it is about change.
// Comments, quotes, indentation, the order of keys, anchors, line endings and
// documents that no operation touches stay what they were, so that a diff shows the
// patch and nothing else.
//
//	for _, part := range manifest.Split(text) {
//		document, err := manifest.Parse(part)
//		…
//		err = document.Root().Apply([]manifest.Operation{{Op: "add", Path: "/spec/replicas", Value: 2}})
//		…
//		out, err := document.Text()
//	}
//
// It knows YAML and RFC 6902's add, remove and replace, and nothing of Kubernetes.
//
// A document is read twice: by a YAML parser, for what it means, and by a scan of
// this package that the parser's tree guides, for where each value begins and ends.
// Where the two disagree there is an error. What was written is read once more and
// compared with the patched tree: a text that would not mean what it should is never
// returned. Aliases, merge keys and anchors in use are left alone: an edit that would
// have to go through one is an error that names it.
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

// Error says what stands in the way, and where.
type Error struct {
	// Line counts from one, in the text that Split was given.
	Line   int
	Reason string
}

func (e *Error) Error() string { return fmt.Sprintf("line %d: %s", e.Line, e.Reason) }

// Operation is one of RFC 6902: add, remove or replace. Value is anything that
// encoding/json can write; Path is relative to the node that it is applied to.
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
	openEnd   bool  // it ends in a block scalar that lacks its last line break
	unfit     error // why it can be read and not edited
}

// Parse reads one part of a stream. A part without content has a nil Root. One that is
// YAML in a way that the scan cannot follow can be read, and Apply refuses it. So that
// aliases can be followed without end in sight, those that have none are an error.
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
	if d.root, d.unfit = s.all(tree.Content[0]); d.unfit != nil {
		d.root = d.unplaced(tree.Content[0], map[*yaml.Node]*Node{})
	}
	d.layout = s.layout
	d.layout.step = cmp.Or(d.layout.step, 2) // as kubectl does
	if err := bounded(d.root); err != nil {
		return nil, err
	}
	return d, nil
}

// unplaced is a tree of a text that the scan could not follow: good to read.
func (d *Document) unplaced(tree *yaml.Node, nodes map[*yaml.Node]*Node) *Node {
	start := d.lineOffset(tree.Line)
	n := &Node{document: d, kind: tree.Kind, tag: shortTag(tree), text: tree.Value, anchor: tree.Anchor, start: start}
	nodes[tree] = n
	if tree.Alias != nil {
		n.target = nodes[tree.Alias]
	}
	for i := 0; i < len(tree.Content); i++ {
		e := entry{from: len(n.original)}
		if tree.Kind == yaml.MappingNode {
			e.key = d.unplaced(tree.Content[i], nodes)
			i++
		}
		e.value = d.unplaced(tree.Content[i], nodes)
		e.value.parent = n
		n.original = append(n.original, e)
	}
	n.settle()
	return n
}

// lineOffset is where a line of the document begins, counted from one.
func (d *Document) lineOffset(line int) int {
	pos := 0
	for ; line > 1 && pos < len(d.text); line-- {
		pos = lineEnd(d.text, pos)
	}
	return pos
}

// parseYAML holds a parser that panics, as some have on hostile text, to an error.
func parseYAML(text []byte) (tree yaml.Node, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("yaml: not understood: %v", r)
		}
	}()
	decoder := yaml.NewDecoder(bytes.NewReader(forParser(text)))
	if err := decoder.Decode(&tree); err != nil {
		return tree, ignore(err, io.EOF)
	}
	// The parser is content with one value, and says nothing of what follows it.
	return tree, ignore(decoder.Decode(new(yaml.Node)), io.EOF)
}

func ignore(err, expected error) error {
	if errors.Is(err, expected) {
		return nil
	}
	return err
}

// Root is the document's outermost value, nil where there is none.
func (d *Document) Root() *Node { return d.root }

// Text is the document with the operations done: the very bytes that were parsed
// where none was.
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
		return nil, d.errorAt(len(d.text), "the text after | ends without a line break, and would get one from the lines that follow it: end the file with one, or write |-")
	}
	return nil, d.errorAt(d.root.start, "the layout of this document is beyond what can be edited in place; write it in plain block style")
}

func (d *Document) errorAt(pos int, format string, args ...any) error {
	return &Error{Line: d.line(pos), Reason: fmt.Sprintf(format, args...)}
}

func (d *Document) line(pos int) int {
	return d.firstLine + bytes.Count(d.text[:min(pos, len(d.text))], []byte("\n"))
}

// lineBelow is for errors of which the parser names the line above: its grammar counts
// from zero, its scanner from one.
var lineBelow = regexp.MustCompile(`^did not find expected (',' or|key|'-' indicator|node content|<)`)

var yamlLine = regexp.MustCompile(`^line (\d+): `)

// yamlError puts the parser's line number where ours go.
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
		return &Error{Line: line, Reason: "something follows the first value, such as a second JSON object: write a line of --- before each of them"}
	}
	return &Error{Line: line, Reason: "not YAML: " + reason}
}

func errorText(err error) string {
	if typed, ok := errors.AsType[*yaml.TypeError](err); ok && len(typed.Errors) > 0 {
		return typed.Errors[0]
	}
	return strings.TrimPrefix(err.Error(), "yaml: ")
}
