package manifest

import (
	"fmt"
	"maps"
	"slices"
	"strconv"

	"go.yaml.in/yaml/v3"
)

// Node is a value: one of the text, or one that an operation brought.
type Node struct {
	document *Document
	kind     yaml.Kind
	tag      string // short: !!str, !!int, …
	text     string // a scalar's value, an alias's name
	anchor   string
	target   *Node // what an alias stands for
	aliased  bool  // there are aliases of this
	parent   *Node

	// Where it is in the text: outer is before anchor and tag, start after them; head is
	// where the line ends that a block collection begins below of.
	outer, head, start, end int
	column                  int  // of a block collection's dashes or keys
	flow                    bool // in brackets
	bare                    bool // a mapping of one pair without brackets, in a flow sequence

	original []entry // as the text has it
	entries  []entry // with the operations done
}

// entry is an item of a sequence or a pair of a mapping.
type entry struct {
	name  string // of an entry that an operation brought
	key   *Node
	value *Node
	start int // of the key or the dash
	colon int // after the colon or the dash; 0 where there is none
	from  int // its place among the original ones, or added
}

// added marks an entry that is not in the text.
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

// settle ends the scan of a collection.
func (n *Node) settle() { n.entries = slices.Clone(n.original) }

func (n *Node) fresh() bool { return n.document == nil }

// Line is where the value begins. Of a value that an operation brought it is zero.
func (n *Node) Line() int {
	if n.fresh() {
		return 0
	}
	return n.document.line(n.start)
}

func (n *Node) errorf(format string, args ...any) error {
	for n.fresh() && n.parent != nil {
		n = n.parent
	}
	if n.fresh() {
		return fmt.Errorf(format, args...)
	}
	return n.document.errorAt(n.start, format, args...)
}

// IsMapping tells whether the value, or what it is an alias of, is a mapping.
func (n *Node) IsMapping() bool { return n != nil && n.resolve().kind == yaml.MappingNode }

// Len is the number of a collection's own entries, 0 for other values.
func (n *Node) Len() int {
	if n == nil {
		return 0
	}
	return len(n.resolve().entries)
}

// HasOddKey tells whether some key is not a scalar, as in an unrendered template:
// {{ .Values.image }} reads as a mapping in a mapping.
func (n *Node) HasOddKey() bool {
	return slices.ContainsFunc(n.entries, func(e entry) bool {
		odd := e.key != nil && (e.key.kind != yaml.ScalarNode && e.key.kind != yaml.AliasNode || e.key.HasOddKey())
		return odd || e.value.HasOddKey()
	})
}

// Scalar is the value's text, and whether it is a string: an unquoted 8000 is not.
func (n *Node) Scalar() (text string, isString bool) {
	if n = n.resolve(); n == nil || n.kind != yaml.ScalarNode {
		return "", false
	}
	return n.text, n.tag == "!!str" || n.tag == "!!timestamp" || n.tag == "!!binary"
}

// IsNull tells whether there is nothing, or null.
func (n *Node) IsNull() bool { return n == nil || n.resolve().tag == "!!null" }

// Items are the items of a sequence.
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

// Get follows keys, aliases and merges; it is nil where there is nothing. Of a key that
// is given twice it may not take what others do: Once tells.
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

// merged are the mappings whose pairs << brings, the first of which wins.
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

// Value is the value as encoding/json would have decoded it, numbers aside: aliases
// and merges are followed. A key that is given twice is an error.
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
	for _, name := range slices.Sorted(maps.Keys(pairs)) { // the same error each time
		if m[name], err = pairs[name].Value(); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// scalar gives a scalar the type that the parser resolved.
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
		if f, err := strconv.ParseFloat(n.text, 64); err == nil && f-f == 0 { // neither infinite nor not a number
			return f
		}
	}
	return n.text
}

// same tells whether two trees have the same values in the same order.
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
