package manifest

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Apply does operations in order, on the tree; Document.Text writes them. It stops at
// the first that cannot be done, and leaves the document unfit for use then.
func (n *Node) Apply(operations []Operation) error {
	if n.document.unfit != nil && len(operations) > 0 {
		return n.document.unfit
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
		return n.errorf("cannot %s at %q", op.Op, op.Path)
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

// step follows one token of a path, and refuses what is not there in its own right.
func (n *Node) step(token string) (*Node, error) {
	i, err := n.place(token)
	if err != nil {
		return nil, err
	}
	if i == len(n.entries) {
		return nil, n.missing(token)
	}
	return n.entries[i].value, nil
}

// missing tells apart what is not there from what a merge brings.
func (n *Node) missing(token string) error {
	if n.Get(token) != nil {
		return n.errorf("%s comes out of a merge (<<): write it out here", token)
	}
	return n.errorf("there is no %s", token)
}

// place is the index of an entry, or their number where there is none of that name.
func (n *Node) place(token string) (int, error) {
	switch n.kind {
	case yaml.AliasNode:
		return 0, n.errorf("*%s is an alias of text elsewhere: write it out here", n.text)
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
			return 0, n.errorf("there is no item %s", token)
		}
		return i, nil
	}
	return 0, n.errorf("there is no %s in a plain value", token)
}

// editable refuses what an edit would change in a second place too.
func (n *Node) editable() error {
	for ; n != nil; n = n.parent {
		if n.aliased {
			return n.errorf("&%s has aliases elsewhere, which an edit would change too: write them out", n.anchor)
		}
	}
	return nil
}

func (n *Node) change(op Operation, token string) error {
	i, err := n.place(token)
	if err != nil {
		// A null where a list or mapping is meant.
		if n.kind != yaml.ScalarNode || n.tag != "!!null" || op.Op != "add" {
			return err
		}
		if n, err = n.become(token); err != nil {
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
		return n.missing(token) // which would come to light
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

// mergesHave tells whether a merge brings this key too.
func (n *Node) mergesHave(token string) bool {
	return slices.ContainsFunc(n.entries, func(e entry) bool {
		return slices.ContainsFunc(e.merged(), func(source *Node) bool { return source.Get(token) != nil })
	})
}

// put sets or inserts at i.
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

// become puts an empty collection in the place of a null.
func (n *Node) become(token string) (*Node, error) {
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

// unreferenced refuses to remove what aliases elsewhere stand for.
func (n *Node) unreferenced() error {
	if n.aliased {
		return n.errorf("&%s has aliases elsewhere: write them out", n.anchor)
	}
	for _, e := range n.entries {
		if err := e.value.unreferenced(); err != nil {
			return err
		}
	}
	return nil
}

// newNode makes a tree of any value, keys in the order that encoding/json gives.
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
