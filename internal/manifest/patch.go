package manifest

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Apply applies operations in order to the tree. Document.Text returns the edited text. Apply stops
// at the first error, after which the document must not be used.
func (n *Node) Apply(operations []Operation) error {
	if n.document.notEditable != nil && len(operations) > 0 {
		return n.document.notEditable
	}
	for _, op := range operations {
		if err := n.apply(op); err != nil {
			return err
		}
		n.document.changed = true
	}
	return nil
}

func (n *Node) apply(op Operation) error {
	tokens := strings.Split(op.Path, "/")
	if len(tokens) < 2 || tokens[0] != "" {
		return n.errorf("cannot %s %q: invalid path", op.Op, op.Path)
	}
	for i := range tokens {
		tokens[i] = strings.NewReplacer("~1", "/", "~0", "~").Replace(tokens[i])
	}
	holder := n
	for _, token := range tokens[1 : len(tokens)-1] {
		next, err := holder.step(token)
		if err != nil {
			return err
		}
		holder = next
	}
	if err := holder.editable(); err != nil {
		return err
	}
	return holder.change(op, tokens[len(tokens)-1])
}

// step returns the value at one token of a path. It refuses a value that comes from a merge key.
func (n *Node) step(token string) (*Node, error) {
	i, err := n.index(token)
	if err != nil {
		return nil, err
	}
	if i == len(n.entries) {
		return nil, n.missing(token)
	}
	return n.entries[i].value, nil
}

// missing returns the error for a value that does not exist, or that comes from a merge key.
func (n *Node) missing(token string) error {
	if n.Get(token) != nil {
		return n.errorf("%s comes from a merge (<<): write it out here", token)
	}
	return n.errorf("%s does not exist", token)
}

// index returns the index of an entry, or the number of entries if there is none of that name.
func (n *Node) index(token string) (int, error) {
	switch n.kind {
	case yaml.AliasNode:
		return 0, n.errorf("*%s is an alias of a value elsewhere: write the value out here", n.text)
	case yaml.MappingNode:
		if err := n.Once(token); err != nil {
			return 0, err
		}
		i := slices.IndexFunc(n.entries, func(e entry) bool { return !e.isMerge() && e.keyName() == token })
		if i < 0 {
			i = len(n.entries)
		}
		return i, nil
	case yaml.SequenceNode:
		if token == "-" {
			return len(n.entries), nil
		}
		i, err := strconv.Atoi(token)
		if err != nil || i < 0 || i > len(n.entries) {
			return 0, n.errorf("item %s does not exist", token)
		}
		return i, nil
	}
	return 0, n.errorf("%s does not exist: the value is not a mapping or a list", token)
}

// editable returns an error if a change of the value would also change aliases of it elsewhere.
func (n *Node) editable() error {
	for ; n != nil; n = n.parent {
		if n.aliased {
			return n.errorf("&%s has aliases elsewhere, and an edit would change them too: write their values out", n.anchor)
		}
	}
	return nil
}

func (n *Node) change(op Operation, token string) error {
	i, err := n.index(token)
	if err != nil {
		// An add to null creates the list or mapping.
		if n.kind != yaml.ScalarNode || n.tag != "!!null" || op.Op != "add" {
			return err
		}
		if n, err = n.toCollection(token); err != nil {
			return err
		}
		i = 0
	}
	exists := i < len(n.entries)
	if !exists && n.kind == yaml.MappingNode && n.Get(token) != nil {
		return n.missing(token)
	}
	if exists && (op.Op != "add" || n.kind == yaml.MappingNode) {
		if err := n.entries[i].value.unreferenced(); err != nil {
			return err
		}
	}
	switch {
	case op.Op == "remove" && exists && n.mergesHave(token):
		return n.missing(token) // after the removal, the merged value would apply
	case op.Op == "remove" && exists:
		n.entries = slices.Delete(n.entries, i, i+1)
		return nil
	case op.Op == "add", op.Op == "replace" && exists:
		return n.put(op, i, token)
	case op.Op == "replace", op.Op == "remove":
		return n.missing(token)
	}
	return n.errorf("unknown operation %q", op.Op)
}

// mergesHave reports whether a merge key also has this key.
func (n *Node) mergesHave(token string) bool {
	return slices.ContainsFunc(n.entries, func(e entry) bool {
		return slices.ContainsFunc(e.merged(), func(source *Node) bool { return source.Get(token) != nil })
	})
}

// put sets the entry i, or inserts one there.
func (n *Node) put(op Operation, i int, token string) error {
	value, err := newNode(op.Value)
	if err != nil {
		return err
	}
	value.parent = n
	switch {
	case n.kind == yaml.SequenceNode && op.Op == "add":
		n.entries = slices.Insert(n.entries, i, entry{value: value, from: added})
	case n.kind == yaml.SequenceNode:
		n.entries[i] = entry{value: value, from: added}
	case i < len(n.entries):
		n.entries[i].value = value
	default:
		n.entries = append(n.entries, entry{name: token, value: value, from: added})
	}
	return nil
}

// toCollection replaces a null by an empty collection.
func (n *Node) toCollection(token string) (*Node, error) {
	kind := yaml.MappingNode
	if _, err := strconv.Atoi(token); err == nil || token == "-" {
		kind = yaml.SequenceNode
	}
	if n.parent == nil {
		return nil, n.errorf("null has no %s", token)
	}
	i := slices.IndexFunc(n.parent.entries, func(e entry) bool { return e.value == n })
	collection := &Node{kind: kind, tag: tagOf(kind), parent: n.parent}
	n.parent.entries[i].value = collection
	return collection, nil
}

// unreferenced returns an error if there are aliases of the value or of a value in it.
func (n *Node) unreferenced() error {
	if n.aliased {
		return n.errorf("&%s has aliases elsewhere: write their values out", n.anchor)
	}
	for _, e := range n.entries {
		if err := e.value.unreferenced(); err != nil {
			return err
		}
	}
	return nil
}

// newNode returns the tree of a value. The order of keys is that of encoding/json.
func newNode(value any) (*Node, error) {
	text, err := json.Marshal(value)
	if err != nil {
		return nil, fmt.Errorf("value of an operation: %w", err)
	}
	tree, err := parseYAML(plainEscapes(text))
	if err != nil {
		return nil, fmt.Errorf("value of an operation: %w", err)
	}
	return newTree(tree.Content[0]), nil
}

func newTree(tree *yaml.Node) *Node {
	n := &Node{kind: tree.Kind, tag: shortTag(tree), text: tree.Value}
	for i := 0; i < len(tree.Content); i++ {
		e := entry{from: added}
		if tree.Kind == yaml.MappingNode {
			e.name = tree.Content[i].Value
			i++
		}
		e.value = newTree(tree.Content[i])
		e.value.parent = n
		n.entries = append(n.entries, e)
	}
	return n
}

func tagOf(kind yaml.Kind) string {
	if kind == yaml.MappingNode {
		return "!!map"
	}
	return "!!seq"
}
