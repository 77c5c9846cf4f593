package manifest

import (
	"fmt"
	"iter"
	"maps"
	"slices"
	"strconv"

	"go.yaml.in/yaml/v3"
)

// Node is a value of the text, or a value of an operation.
type Node struct {
	document *Document
	kind     yaml.Kind
	tag      string // short: !!str, !!int, …
	text     string // the value of a scalar, or the name of an alias
	anchor   string
	target   *Node // the value that an alias refers to
	aliased  bool  // there are aliases of this value
	parent   *Node

	// Positions in the text: outer is before the anchor and the tag, head after them, and start
	// at the value itself. A block collection begins in a line after head.
	outer, head, start, end int
	column                  int  // of the dashes or keys of a block collection
	flow                    bool // in flow style
	bare                    bool // a mapping of one pair without braces, in a flow sequence

	original []entry // in the text
	entries  []entry // after the operations
}

// entry is an item of a sequence or a pair of a mapping.
type entry struct {
	name  string // the key of an added entry
	key   *Node
	value *Node
	start int // position of the key or the dash
	colon int // position after the colon or the dash; 0: there is none
	from  int // index in original, or added
}

// added is the value of entry.from for an entry that is not in the text.
const added = -1

func (e entry) keyName() string {
	if e.key == nil {
		return e.name
	}
	return e.key.resolve().text
}

func (e entry) isMerge() bool {
	return e.key != nil && e.key.kind == yaml.ScalarNode && e.key.tag == "!!merge"
}

// finish ends the scan of a collection.
func (n *Node) finish() { n.entries = slices.Clone(n.original) }

// isNew reports whether the value comes from an operation.
func (n *Node) isNew() bool { return n.document == nil }

// Line returns the line at which the value begins, or zero for a value of an operation.
func (n *Node) Line() int {
	if n.isNew() {
		return 0
	}
	return n.document.line(n.start)
}

func (n *Node) errorf(format string, args ...any) error {
	for n.isNew() && n.parent != nil {
		n = n.parent
	}
	if n.isNew() {
		return fmt.Errorf(format, args...)
	}
	return n.document.errorAt(n.start, format, args...)
}

// IsMapping reports whether the value, or the value that it is an alias of, is a mapping.
func (n *Node) IsMapping() bool { return n != nil && n.resolve().kind == yaml.MappingNode }

// Len returns the number of a collection's entries without merged ones, or 0 for other values.
func (n *Node) Len() int {
	if n == nil {
		return 0
	}
	return len(n.resolve().entries)
}

// HasOddKey reports whether a key is not a scalar, as in a template that is not rendered: in YAML,
// {{ .Values.image }} is a mapping as the key of a mapping.
func (n *Node) HasOddKey() bool {
	return slices.ContainsFunc(n.entries, func(e entry) bool {
		odd := e.key != nil && (e.key.kind != yaml.ScalarNode && e.key.kind != yaml.AliasNode || e.key.HasOddKey())
		return odd || e.value.HasOddKey()
	})
}

// Scalar returns the text of a scalar, and reports whether it is a string: 8000 without quotes is
// not.
func (n *Node) Scalar() (text string, isString bool) {
	if n = n.resolve(); n == nil || n.kind != yaml.ScalarNode {
		return "", false
	}
	return n.text, n.tag == "!!str" || n.tag == "!!timestamp" || n.tag == "!!binary"
}

// IsNull reports whether the value is missing or null.
func (n *Node) IsNull() bool { return n == nil || n.resolve().tag == "!!null" }

// IsEmpty reports whether the value is missing, null, or a list or mapping without entries.
func (n *Node) IsEmpty() bool {
	return n.IsNull() || n.resolve().kind != yaml.ScalarNode && n.Len() == 0
}

// All returns the keys and values of a mapping, followed by those of its merge keys.
func (n *Node) All() iter.Seq2[string, *Node] {
	return func(yield func(string, *Node) bool) { n.all(yield) }
}

func (n *Node) all(yield func(string, *Node) bool) bool {
	if n = n.resolve(); n == nil || n.kind != yaml.MappingNode {
		return true
	}
	for _, e := range n.entries {
		if !e.isMerge() && !yield(e.keyName(), e.value) {
			return false
		}
	}
	for _, e := range n.entries {
		for _, source := range e.merged() {
			if !source.all(yield) {
				return false
			}
		}
	}
	return true
}

// Items returns the items of a sequence.
func (n *Node) Items() []*Node {
	if n = n.resolve(); n == nil || n.kind != yaml.SequenceNode {
		return nil
	}
	var items []*Node
	for _, e := range n.entries {
		items = append(items, e.value)
	}
	return items
}

// Item returns an item of a sequence, or nil if there is none.
func (n *Node) Item(i int) *Node {
	if n = n.resolve(); n == nil || n.kind != yaml.SequenceNode || i < 0 || i >= len(n.entries) {
		return nil
	}
	return n.entries[i].value
}

// Get returns the value at a path of keys, or nil. It follows aliases and merge keys. Parsers
// disagree about duplicate keys: call Once first.
func (n *Node) Get(keys ...string) *Node {
	for _, key := range keys {
		n = n.get(key)
	}
	return n
}

func (n *Node) get(key string) *Node {
	if n = n.resolve(); n == nil || n.kind != yaml.MappingNode {
		return nil
	}
	for _, e := range n.entries {
		if !e.isMerge() && e.keyName() == key {
			return e.value
		}
	}
	for _, e := range n.entries {
		for _, source := range e.merged() {
			if found := source.get(key); found != nil {
				return found
			}
		}
	}
	return nil
}

// merged returns the mappings of a merge key. The first takes precedence.
func (e entry) merged() []*Node {
	if !e.isMerge() {
		return nil
	}
	if e.value.resolve().kind == yaml.SequenceNode {
		return e.value.Items()
	}
	return []*Node{e.value}
}

func (n *Node) resolve() *Node {
	if n != nil && n.kind == yaml.AliasNode && n.target != nil {
		return n.target
	}
	return n
}

// Value returns the value in the types of encoding/json, except for integers. It follows aliases and
// merge keys. A duplicate key is an error.
func (n *Node) Value() (any, error) {
	n = n.resolve()
	switch n.kind {
	case yaml.MappingNode:
		return n.mapping()
	case yaml.SequenceNode:
		list := make([]any, 0, len(n.entries))
		for _, e := range n.entries {
			item, err := e.value.Value()
			if err != nil {
				return nil, err
			}
			list = append(list, item)
		}
		return list, nil
	}
	return n.scalar(), nil
}

func (n *Node) mapping() (any, error) {
	pairs, err := n.pairs(nil)
	if err != nil {
		return nil, err
	}
	m := make(map[string]any, len(pairs))
	for _, name := range slices.Sorted(maps.Keys(pairs)) { // sorted, so that the first error is always the same
		if m[name], err = pairs[name].Value(); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// scalar returns a scalar in the type of its tag.
func (n *Node) scalar() any {
	switch n.tag {
	case "!!null":
		return nil
	case "!!bool":
		if b, known := booleans[n.text]; known {
			return b
		}
	case "!!int":
		var i int64
		if (&yaml.Node{Kind: yaml.ScalarNode, Tag: n.tag, Value: n.text}).Decode(&i) == nil {
			return i
		}
	case "!!float":
		if f, err := strconv.ParseFloat(n.text, 64); err == nil && f-f == 0 { // neither infinite nor NaN
			return f
		}
	}
	return n.text
}

// same reports whether two trees have the same values in the same order.
func same(a, b *Node) bool {
	if a == nil || b == nil {
		return a == b
	}
	if a.kind != b.kind || a.anchor != b.anchor || len(a.entries) != len(b.entries) {
		return false
	}
	if (a.kind == yaml.ScalarNode || a.kind == yaml.AliasNode) && (a.text != b.text || a.tag != b.tag) {
		return false
	}
	for i, e := range a.entries {
		if a.kind == yaml.MappingNode && (e.keyName() != b.entries[i].keyName() || e.isMerge() != b.entries[i].isMerge()) {
			return false
		}
		if !same(e.value, b.entries[i].value) {
			return false
		}
	}
	return true
}
