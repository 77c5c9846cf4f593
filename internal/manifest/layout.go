package manifest

import (
	"cmp"

	"go.yaml.in/yaml/v3"
)

// layout is how a document indents, so that what is added looks like its neighbours.
type layout struct {
	step      int // of a mapping in a mapping; 0: not known
	dash      int // of a list's dashes, from the key that the list belongs to
	knowsDash bool
}

// learn takes the first example of each.
func (l *layout) learn(parent, child *Node) {
	if child.flow || len(child.original) == 0 || child.column < parent.column {
		return
	}
	switch {
	case child.kind == yaml.MappingNode && l.step == 0:
		l.step = child.column - parent.column
	case child.kind == yaml.SequenceNode && !l.knowsDash:
		l.dash, l.knowsDash = child.column-parent.column, true
	}
}

// near prefers what the entries of one mapping do to what the document does.
func (l layout) near(n *Node) layout {
	if n == nil || n.kind != yaml.MappingNode || n.flow {
		return l
	}
	local := layout{}
	for _, e := range n.original {
		local.learn(n, e.value)
	}
	if local.knowsDash {
		l.dash = local.dash
	}
	l.step = cmp.Or(local.step, l.step)
	return l
}
