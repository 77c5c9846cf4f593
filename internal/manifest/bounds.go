package manifest

import "go.yaml.in/yaml/v3"

// maxValues bounds what aliases may make of a document beyond what it holds itself. The
// library that kubectl reads with stops at less.
const maxValues = 1_000_000

// bounded refuses aliases that stand within what they are an alias of, and those that
// take a few lines to a value that no machine holds: what reads the tree follows aliases
// and need not count.
func bounded(root *Node) error {
	s := sizes{of: map[*Node]int{}}
	whole, err := s.size(root)
	if err == nil && whole-s.own > maxValues {
		err = root.errorf(tooMuch)
	}
	return err
}

const tooMuch = "the aliases of this document make too much of it: write out what is needed"

// sizes counts values: those of the text, and those that each anchor stands for.
type sizes struct {
	own int
	of  map[*Node]int
}

// unfinished is the size of what is being counted.
const unfinished = -1

func (s *sizes) size(n *Node) (int, error) {
	s.own++
	if n.kind == yaml.AliasNode {
		return s.alias(n)
	}
	if n.anchor != "" {
		s.of[n] = unfinished
	}
	sum := 1
	for _, e := range n.entries {
		for _, part := range []*Node{e.key, e.value} {
			if part == nil {
				continue
			}
			size, err := s.size(part)
			if err != nil {
				return 0, err
			}
			sum += size
		}
	}
	if n.anchor != "" {
		s.of[n] = sum
	}
	return sum, nil
}

func (s *sizes) alias(n *Node) (int, error) {
	switch size := s.of[n.target]; {
	case size == unfinished:
		return 0, n.errorf("*%s stands within what it is an alias of", n.text)
	case size > maxValues:
		return 0, n.errorf(tooMuch)
	default:
		return size, nil
	}
}
