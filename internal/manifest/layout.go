package manifest

import (
	"cmp"

	"go.yaml.in/yaml/v3"
)

// layout is the indentation of a document, which added values should have too.
type layout struct {
	step      int // the indentation of a mapping in a mapping; 0: not known
	dash      int // the indentation of a list's dashes, relative to the key of the list
	knowsDash bool
}

// learn sets step or dash from child, if they are not known yet.
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

// near returns the layout for entries of a mapping: that of its other entries, or else that of the
// document.
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
