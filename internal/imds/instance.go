package imds

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

const (
	instanceRoot = "/metadata/instance"

	// MaxInstance is the maximum size of a document of instance metadata in bytes: that of a
	// forwarded answer.
	MaxInstance = forwardMaxBytes

	// maxInstanceDepth bounds the nesting of a document. That of IMDS has 8 levels.
	maxInstanceDepth = 32

	// maxInstanceValues bounds the memory of a document: a value takes some 300 bytes. A
	// document of IMDS has a few hundred.
	maxInstanceValues = 10_000
)

// Instance is a document of instance metadata, in the form of IMDS's answer to
// /metadata/instance. It does not change. All answers share its memory.
type Instance struct{ root *value }

// value is a value in a document.
type value struct {
	leaf bool

	json []byte // compact; part of the JSON of the whole document
	text []byte // for format=text: the string, or the names of the children

	names    []string // of the children: the members of an object, or the indexes of a list
	children map[string]*value
	list     bool
}

// ParseInstance parses a document. As in IMDS's documents, its numbers, booleans and nulls
// become strings. fields has further values, by their path below /metadata/instance, such as
// compute/name. A value that the document has, and that is not empty, takes precedence. Empty
// fields are ignored.
func ParseInstance(document []byte, fields map[string]string) (*Instance, error) {
	if len(document) > MaxInstance {
		return nil, fmt.Errorf("must have at most %d bytes", MaxInstance)
	}
	p := instanceParser{decoder: json.NewDecoder(bytes.NewReader(document))}
	p.decoder.UseNumber()
	root, err := p.value(0)
	switch {
	case err != nil:
		return nil, err
	case root.leaf || root.list:
		return nil, errors.New(`must be a JSON object, such as {"compute": {"location": "westeurope"}}`)
	}
	if _, err := p.decoder.Token(); err != io.EOF {
		return nil, errors.New("must be one JSON object, without text after it")
	}
	for _, path := range slices.Sorted(maps.Keys(fields)) {
		if fields[path] == "" {
			continue // a field of the downward API that this cluster does not have
		}
		if err := root.set(path, fields[path]); err != nil {
			return nil, err
		}
	}
	root.append(make([]byte, 0, len(root.append(nil)))) // the second time without growing
	return &Instance{root}, nil
}

// instanceParser parses a document, and counts its values.
type instanceParser struct {
	decoder *json.Decoder
	values  int
}

func (p *instanceParser) value(depth int) (*value, error) {
	token, err := p.decoder.Token()
	if err != nil {
		return nil, fmt.Errorf("must be JSON: %w", err)
	}
	if p.values++; p.values > maxInstanceValues {
		return nil, fmt.Errorf("must have at most %d values", maxInstanceValues)
	}
	if depth > maxInstanceDepth {
		return nil, fmt.Errorf("must be nested at most %d levels deep", maxInstanceDepth)
	}
	open, isContainer := token.(json.Delim)
	if !isContainer {
		return &value{leaf: true, text: []byte(leafText(token))}, nil
	}
	v := &value{list: open == '[', children: map[string]*value{}}
	for p.decoder.More() {
		name := strconv.Itoa(len(v.names))
		if !v.list {
			key, err := p.decoder.Token()
			if err != nil {
				return nil, fmt.Errorf("must be JSON: %w", err)
			}
			name = key.(string) // the decoder has checked it
		}
		if v.children[name] != nil {
			return nil, fmt.Errorf("must not have the name %.100q twice in one object", name)
		}
		child, err := p.value(depth + 1)
		if err != nil {
			return nil, err
		}
		v.add(name, child)
	}
	if _, err := p.decoder.Token(); err != nil {
		return nil, fmt.Errorf("must be JSON: %w", err)
	}
	return v, nil
}

// leafText returns the string for a value that is no object and no list.
func leafText(token json.Token) string {
	if token == nil {
		return ""
	}
	return fmt.Sprint(token)
}

func (v *value) add(name string, child *value) {
	v.names = append(v.names, name)
	v.children[name] = child
}

// set sets a value, unless the document has one that is not empty.
func (v *value) set(path, text string) error {
	segments := strings.Split(path, "/")
	for i, name := range segments {
		last := i == len(segments)-1
		child := v.children[name]
		switch {
		case !canonicalSegment(name):
			return fmt.Errorf("field %.100q: must be a path such as compute/name", path)
		case child == nil && v.list:
			return fmt.Errorf("field %.100q: the list has no item %s", path, name)
		case child == nil:
			child = &value{leaf: last, children: map[string]*value{}}
			v.add(name, child)
		}
		if child.leaf != last {
			return fmt.Errorf("field %.100q: must be the path of a string", path)
		}
		v = child
	}
	if len(v.text) == 0 {
		v.text = []byte(text)
	}
	return nil
}

// append appends the JSON of the value, and sets the answers of this value and of those in it.
func (v *value) append(b []byte) []byte {
	begin := len(b)
	switch {
	case v.leaf:
		b = appendJSONString(b, string(v.text))
	case v.list:
		b = append(v.appendChildren(append(b, '[')), ']')
	default:
		b = append(v.appendChildren(append(b, '{')), '}')
	}
	v.json = b[begin:len(b):len(b)]
	return b
}

func (v *value) appendChildren(b []byte) []byte {
	v.text = nil
	for i, name := range v.names {
		child := v.children[name]
		if i > 0 {
			b = append(b, ',')
			v.text = append(v.text, '\n')
		}
		v.text = append(v.text, name...)
		if !child.leaf {
			v.text = append(v.text, '/')
		}
		if !v.list {
			b = append(appendJSONString(b, name), ':')
		}
		b = child.append(b)
	}
	return b
}

// at returns the value at a canonical path, or nil if there is none. It walks through the
// document only: a path never names anything else.
func (i *Instance) at(path string) *value {
	v := i.root
	below := strings.TrimPrefix(path, instanceRoot)
	if below == "" {
		return v
	}
	for name := range strings.SplitSeq(below[1:], "/") {
		if v = v.children[name]; v == nil {
			return nil
		}
	}
	return v
}

// instanceMetadata answers a request for instance metadata from the document.
func (h *Handler) instanceMetadata(w http.ResponseWriter, r *http.Request, o *outcome) error {
	if err := requireGet(r); err != nil {
		return err
	}
	if err := checkHeaders(r); err != nil {
		return err
	}
	asText, err := parseInstanceRequest(r.URL.RawQuery)
	if errors.Is(err, errUnknownAPIVersion) || errors.Is(err, errNoAPIVersion) {
		o.status, o.written = http.StatusBadRequest, true
		_ = writeBody(w, o.status, jsonType, h.newestBody) // an error means that the client is gone
		return err
	}
	if err != nil {
		return err
	}
	v := h.instance.at(o.path)
	switch {
	case v == nil:
		return errInstanceMissing
	case asText:
		return writeBody(w, http.StatusOK, textType, v.text)
	case v.leaf:
		return errInstanceLeaf
	}
	return writeBody(w, http.StatusOK, jsonType, v.json)
}

// parseInstanceRequest parses the query of a request for instance metadata. Unlike a token
// request, it must have an API version: no client omits it.
func parseInstanceRequest(rawQuery string) (asText bool, err error) {
	var stack [maxParams]param
	params, err := appendParams(stack[:0], rawQuery)
	if err != nil {
		return false, err
	}
	version, format := error(errNoAPIVersion), error(nil)
	for _, p := range params {
		switch {
		case p.name == "api-version" && slices.Contains(apiVersions(), p.value):
			version = nil
		case p.name == "api-version":
			version = errUnknownAPIVersion
		case p.name == "format" && p.value == "text":
			asText = true
		case p.name == "format" && p.value != "json":
			format = errUnknownFormat
		}
	}
	if version != nil {
		return false, version
	}
	return asText, format
}

// newestVersions is how many API versions the error for an unknown one has, as in IMDS.
const newestVersions = 3

// appendNewest appends the body of the error for an unknown or missing API version. Programs
// send such a request to find out which version to use.
func appendNewest(b []byte, versions []string) []byte {
	newest := slices.Clone(versions[len(versions)-newestVersions:])
	slices.Reverse(newest)
	b = append(b, `{"error":"Bad request. api-version is invalid or was not specified in the request. For more information refer to aka.ms/azureimds","newest-versions":["`...)
	b = append(b, strings.Join(newest, `","`)...)
	return append(b, `"]}`...)
}
