package manifest

import "go.yaml.in/yaml/v3"

// maxValues is how many values aliases may add to those of the text. The limit of kubectl's YAML
// library is lower.
const maxValues = 1_000_000

// checkAliases refuses recursive aliases, and aliases that expand a short text to more values than
// fit into memory, so that code that follows aliases needs no limit.
func checkAliases(root *Node) error {
	s := sizes{of: map[*Node]int{}}
	whole, err := s.size(root)
	if err == nil && whole-s.own > maxValues {
		err = root.errorf(tooManyValues)
	}
	return err
}

const tooManyValues = "the aliases of this document expand to too many values: write the values out"

// sizes counts the values of the text, and the values of each anchor with its aliases expanded.
type sizes struct {
	own int
	of  map[*Node]int
}

// unfinished is the size of an anchor's value while its values are being counted.
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
		return 0, n.errorf("*%s is an alias of a value that contains it", n.text)
	case size > maxValues:
		return 0, n.errorf(tooManyValues)
	default:
		return size, nil
	}
}
