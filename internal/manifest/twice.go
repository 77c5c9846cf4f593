package manifest

import (
	"maps"
	"slices"

	"go.yaml.in/yaml/v3"
)

// Once is an error where one of these keys of a mapping is given twice. YAML forbids it,
// and of those who read it all the same some take the first and some the last.
func (n *Node) Once(keys ...string) error {
	if !n.IsMapping() {
		return nil
	}
	_, err := n.resolve().pairs(func(name string) bool { return slices.Contains(keys, name) })
	return err
}

// pairs are the wanted keys of a mapping and their values, or all, those that << brings
// among them.
//
// By YAML's definition << never overrides a key of the mapping itself. The library that
// kubectl reads with has it override those that stand above it, another << too: no
// reading is safe there. Those below it hold for everyone.
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
			return nil, e.errorf("the key %s is given twice", name)
		}
		pairs[name], own[name] = e.value, true
	}
	return pairs, nil
}

func (e entry) mergeInto(pairs map[string]*Node, wanted func(name string) bool) error {
	brought := map[string]*Node{}
	for _, source := range e.merged() {
		if source = source.resolve(); source.kind != yaml.MappingNode {
			return e.errorf("<< takes mappings")
		}
		more, err := source.pairs(wanted)
		if err != nil {
			return err
		}
		for name, value := range more {
			if brought[name] == nil {
				brought[name] = value
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(brought)) {
		if pairs[name] != nil {
			return e.errorf("the key %s is given twice, above << and by it: write << once, and above all keys", name)
		}
		pairs[name] = brought[name]
	}
	return nil
}

// errorf is an error about a key.
func (e entry) errorf(format string, args ...any) error {
	if e.key == nil {
		return e.value.errorf(format, args...)
	}
	return e.key.errorf(format, args...)
}
