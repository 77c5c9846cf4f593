package manifest

import "go.yaml.in/yaml/v3"

// layout is how a document indents, so that what is added looks like its neighbours.
type layout struct {
	step      int // of a mapping in a mapping
	dash      int // of a list's dashes, from the key that the list belongs to
	knowsStep bool
	knowsDash bool
}

// learn takes the first example of each.
func (l *layout) learn(parent, child *Node) {
	if child.flow || len(child.original) == 0 || child.column < parent.column {
		return
	}
	switch {
	case child.kind == yaml.MappingNode && !l.knowsStep && child.column > parent.column:
		l.step, l.knowsStep = child.column-parent.column, true
	case child.kind == yaml.SequenceNode && !l.knowsDash:
		l.dash, l.knowsDash = child.column-parent.column, true
	}
}

// complete fills in what kubectl does.
func (l layout) complete() layout {
	if !l.knowsStep {
		l.step = 2
	}
	return l
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
	if local.knowsStep {
		l.step = local.step
	}
	return l
}
