package plan

import "strconv"

// at returns the value at a path of a decoded object, or nil.
func at(value any, path ...string) any {
	for _, key := range path {
		switch v := value.(type) {
		case map[string]any:
			value = v[key]
		case []any:
			i, err := strconv.Atoi(key)
			if err != nil || i >= len(v) {
				return nil
			}
			value = v[i]
		default:
			return nil
		}
	}
	return value
}

// text returns the string at a path. Numbers and booleans are written as YAML's authors mean them.
func text(value any, path ...string) string {
	switch v := at(value, path...).(type) {
	case string:
		return v
	case bool:
		return strconv.FormatBool(v)
	case int64:
		return strconv.FormatInt(v, 10)
	}
	return ""
}

// stringMap returns the mapping of strings at a path.
func stringMap(value any, path ...string) map[string]string {
	mapping, _ := at(value, path...).(map[string]any)
	result := map[string]string{}
	for key := range mapping {
		result[key] = text(mapping, key)
	}
	return result
}

// place is a mapping in an object, with its path.
type place struct {
	path  []string
	value map[string]any
}

// places returns the mappings at a path in which * stands for all items of a list.
func places(value any, path ...string) []place {
	return collect(value, nil, path)
}

func collect(value any, done, path []string) []place {
	if len(path) == 0 {
		if mapping, ok := value.(map[string]any); ok {
			return []place{{append([]string{}, done...), mapping}}
		}
		return nil
	}
	if path[0] != "*" {
		mapping, ok := value.(map[string]any)
		if !ok || mapping[path[0]] == nil {
			return nil
		}
		return collect(mapping[path[0]], append(done[:len(done):len(done)], path[0]), path[1:])
	}
	var found []place
	list, _ := value.([]any)
	for i, item := range list {
		found = append(found, collect(item, append(done[:len(done):len(done)], strconv.Itoa(i)), path[1:])...)
	}
	return found
}
