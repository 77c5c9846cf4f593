package manifest

import "go.yaml.in/yaml/v3"

func (s *scanner) column(pos int) int { return pos - lineStart(s.text, pos) }

func (s *scanner) blockSequence(tree *yaml.Node, n *Node) error {
	n.column = s.column(s.pos)
	for _, item := range tree.Content {
		s.skip()
		e := entry{start: s.pos, from: len(n.original)}
		if err := s.take('-'); err != nil {
			return err
		}
		e.colon = s.pos
		if err := s.value(&e, n, item, n.column); err != nil {
			return err
		}
		n.original = append(n.original, e)
	}
	n.finish()
	return nil
}

func (s *scanner) blockMapping(tree *yaml.Node, n *Node) error {
	n.column = s.column(s.pos)
	for i := 0; i+1 < len(tree.Content); i += 2 {
		s.skip()
		e := entry{start: s.pos, from: len(n.original)}
		if err := s.key(&e, n, tree.Content[i]); err != nil {
			return err
		}
		if e.colon == 0 && !isEmpty(tree.Content[i+1]) {
			return s.unsupported()
		}
		if err := s.value(&e, n, tree.Content[i+1], n.column); err != nil {
			return err
		}
		s.layout.learn(n, e.value)
		n.original = append(n.original, e)
	}
	n.finish()
	return nil
}

// key scans a key and its colon. A key without a value may have no colon.
func (s *scanner) key(e *entry, n *Node, tree *yaml.Node) (err error) {
	if s.at('?') && s.pos+1 < len(s.text) && isSpace(s.text[s.pos+1]) {
		s.pos++
	}
	if e.key, err = s.node(tree, n.column); err != nil {
		return err
	}
	if s.takeOptional(':') {
		e.colon = s.pos
	}
	return nil
}

func (s *scanner) value(e *entry, n *Node, tree *yaml.Node, indent int) (err error) {
	if e.value, err = s.node(tree, indent); err != nil {
		return err
	}
	e.value.parent = n
	return nil
}

func (s *scanner) flowSequence(tree *yaml.Node, n *Node) error {
	if err := s.take('['); err != nil {
		return err
	}
	for _, item := range tree.Content {
		s.skip()
		e := entry{start: s.pos, from: len(n.original), colon: s.pos}
		if err := s.value(&e, n, item, -1); err != nil {
			return err
		}
		n.original = append(n.original, e)
		s.takeOptional(',')
	}
	return s.closing(n, ']')
}

func (s *scanner) flowMapping(tree *yaml.Node, n *Node) error {
	if s.skip(); !s.at('{') {
		n.bare = true // a pair in a flow sequence: [key: value]
	} else {
		s.pos++
	}
	for i := 0; i+1 < len(tree.Content); i += 2 {
		s.skip()
		e := entry{start: s.pos, from: len(n.original)}
		if err := s.key(&e, n, tree.Content[i]); err != nil {
			return err
		}
		if err := s.value(&e, n, tree.Content[i+1], -1); err != nil {
			return err
		}
		n.original = append(n.original, e)
		if !n.bare {
			s.takeOptional(',')
		}
	}
	if n.bare {
		n.finish()
		return nil
	}
	return s.closing(n, '}')
}

// takeOptional skips an indicator and the blanks before it, if the indicator is next.
func (s *scanner) takeOptional(indicator byte) bool {
	end := s.pos
	if s.skip(); s.at(indicator) {
		s.pos++
		return true
	}
	s.pos = end
	return false
}

func (s *scanner) closing(n *Node, bracket byte) error {
	s.skip()
	n.finish()
	return s.take(bracket)
}

func isSpace(b byte) bool { return b == ' ' || b == '\t' || b == '\r' || b == '\n' }
