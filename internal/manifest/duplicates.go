package manifest

import (
	"maps"
	"slices"

	"go.yaml.in/yaml/v3"
)

// Once returns an error if one of these keys occurs twice in a mapping. YAML forbids this. Parsers
// that accept it nevertheless use either the first value or the last.
func (n *Node) Once(keys ...string) error {
	if !n.IsMapping() {
		return nil
	}
	_, err := n.resolve().pairs(func(name string) bool { return slices.Contains(keys, name) })
	return err
}

// pairs returns the wanted keys of a mapping and their values, including those of merge keys (<<).
// If wanted is nil, it returns all.
//
// In the YAML specification << never overrides a key of the mapping itself. In kubectl's YAML
// library it overrides keys before it, and also the pairs of another << before it, so that
// parsers disagree and pairs returns an error. All parsers agree about keys after it.
func (n *Node) pairs(wanted func(name string) bool) (map[string]*Node, error) {
	pairs := make(map[string]*Node, len(n.entries))
	own := make(map[string]bool, len(n.entries))
	for _, e := range n.entries {
		if e.isMerge() {
			if err := e.mergeInto(pairs, wanted); err != nil {
				return nil, err
			}
			continue
		}
		name := e.keyName()
		if wanted != nil && !wanted(name) {
			continue
		}
		if own[name] {
			return nil, e.errorf("duplicate key %s", name)
		}
		pairs[name], own[name] = e.value, true
	}
	return pairs, nil
}

func (e entry) mergeInto(pairs map[string]*Node, wanted func(name string) bool) error {
	merged := map[string]*Node{}
	for _, source := range e.merged() {
		if source = source.resolve(); source.kind != yaml.MappingNode {
			return e.errorf("the value of << must be a mapping or a list of mappings")
		}
		more, err := source.pairs(wanted)
		if err != nil {
			return err
		}
		for name, value := range more {
			if merged[name] == nil {
				merged[name] = value
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(merged)) {
		if pairs[name] != nil {
			return e.errorf("duplicate key %s, before << and in its mapping: write << once, before all other keys", name)
		}
		pairs[name] = merged[name]
	}
	return nil
}

// errorf returns an error at the line of the key.
func (e entry) errorf(format string, args ...any) error {
	if e.key == nil {
		return e.value.errorf(format, args...)
	}
	return e.key.errorf(format, args...)
}
