package cniinstall

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"

	"github.com/containernetworking/cni/pkg/version"
)

// list is the text of a network configuration list of the CNI specification, with the positions
// of its plugins. Edits change only what they must, since the text belongs to another program,
// which may compare it with what it has written.
type list struct {
	text    []byte
	plugins []element
}

// element is the text of one plugin in the list: text[start:end].
type element struct {
	kind       string
	start, end int
}

// parseList parses a list. The error says why no runtime could use it, or why this program does
// not change it.
func parseList(text []byte) (*list, error) {
	l := &list{text: text}
	switch err := l.parse(); {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return nil, errors.New("its JSON ends too early")
	case err != nil:
		return nil, err
	}
	return l, nil
}

func (l *list) parse() error {
	d := json.NewDecoder(bytes.NewReader(l.text))
	if err := expect(d, json.Delim('{')); err != nil {
		return err
	}
	seen := map[string]bool{}
	for d.More() {
		key, err := readKey(d)
		if err != nil {
			return err
		}
		if seen[key] {
			return fmt.Errorf("it has the key %q twice", key)
		}
		seen[key] = true
		if err := l.readValue(d, key); err != nil {
			return err
		}
	}
	if err := expect(d, json.Delim('}')); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("there is text after its end")
	}
	switch {
	case !seen["name"]:
		return errors.New("it has no name")
	case len(l.plugins) == 0:
		return errors.New("it has no plugins")
	}
	return nil
}

func expect(d *json.Decoder, want json.Delim) error {
	token, err := d.Token()
	if err != nil {
		return err
	}
	if token != want {
		return fmt.Errorf("it must be a JSON object, and has %v instead of %v", token, want)
	}
	return nil
}

func readKey(d *json.Decoder) (string, error) {
	token, err := d.Token()
	if err != nil {
		return "", err
	}
	key, _ := token.(string) // in an object, the decoder accepts only strings here
	return key, nil
}

// readValue reads the value of a key of the list.
func (l *list) readValue(d *json.Decoder, key string) error {
	switch key {
	case "name":
		var name string
		if err := d.Decode(&name); err != nil || name == "" {
			return errors.New("its name must be a text")
		}
	case "cniVersion":
		var given string
		if err := d.Decode(&given); err != nil {
			return errors.New("its cniVersion must be a text")
		}
		return checkVersions(given)
	case "cniVersions":
		var given []string
		if err := d.Decode(&given); err != nil {
			return errors.New("its cniVersions must be a list of texts")
		}
		return checkVersions(given...)
	case "plugins":
		return l.readPlugins(d)
	default:
		var ignored json.RawMessage
		return d.Decode(&ignored)
	}
	return nil
}

// checkVersions refuses versions that the plugin does not support: the runtime would use them,
// and then no pod of the node could start.
func checkVersions(given ...string) error {
	for _, v := range given {
		if !slices.Contains(version.All.SupportedVersions(), v) {
			return fmt.Errorf("its cniVersion %q is not supported: install a newer imds-cni", v)
		}
	}
	return nil
}

func (l *list) readPlugins(d *json.Decoder) error {
	if err := expect(d, json.Delim('[')); err != nil {
		return err
	}
	for d.More() {
		var raw json.RawMessage
		if err := d.Decode(&raw); err != nil {
			return err
		}
		var plugin struct{ Type string }
		if err := json.Unmarshal(raw, &plugin); err != nil || plugin.Type == "" {
			return errors.New("it has a plugin without a type")
		}
		end := int(d.InputOffset())
		l.plugins = append(l.plugins, element{plugin.Type, end - len(raw), end})
	}
	return expect(d, json.Delim(']'))
}

// has reports whether the list has the entry exactly once, and not as the first plugin, whose
// place is that of the plugin that makes the pod's network.
func (l *list) has(kind string, entry []byte) bool {
	found := 0
	for i, p := range l.plugins {
		if p.kind != kind {
			continue
		}
		found++
		if i == 0 || !sameJSON(l.text[p.start:p.end], entry) {
			return false
		}
	}
	return found == 1
}

// mentions reports whether the list has any plugin of the kind.
func (l *list) mentions(kind string) bool {
	return slices.ContainsFunc(l.plugins, func(p element) bool { return p.kind == kind })
}

func sameJSON(a, b []byte) bool {
	var x, y any
	return json.Unmarshal(a, &x) == nil && json.Unmarshal(b, &y) == nil && reflect.DeepEqual(x, y)
}

// with returns the text of the list with the entry as its last plugin, and no other plugin of
// the kind.
func (l *list) with(kind string, entry []byte) ([]byte, error) {
	rest, err := l.without(kind)
	if err != nil {
		return nil, err
	}
	last := rest.plugins[len(rest.plugins)-1]
	// The white space before the last plugin, so that the entry gets the same indentation.
	space := rest.text[len(bytes.TrimRight(rest.text[:last.start], " \t\r\n")):last.start]
	return slices.Concat(rest.text[:last.end], []byte{','}, space, entry, rest.text[last.end:]), nil
}

// without returns the list without plugins of the kind. For a text from with, it is the list
// before it.
func (l *list) without(kind string) (*list, error) {
	isKept := func(p element) bool { return p.kind != kind }
	first := slices.IndexFunc(l.plugins, isKept)
	if first < 0 {
		return nil, errors.New("it has no other plugin")
	}
	// Before the first plugin that is kept, the commas after the others are removed with them,
	// and behind it the commas before them.
	var text []byte
	from := 0
	if first > 0 {
		text, from = append(text, l.text[:l.plugins[0].start]...), l.plugins[first].start
	}
	for i, p := range l.plugins[first:] {
		if !isKept(p) {
			text, from = append(text, l.text[from:max(from, l.plugins[first+i-1].end)]...), p.end
		}
	}
	return parseList(append(text, l.text[from:]...))
}
