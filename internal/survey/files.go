package survey

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"sigs.k8s.io/yaml"
)

// ReadFile reads the objects of a file of YAML documents or JSON objects, also of lists as kubectl
// prints them. It holds one object at a time. The error is one line that names the file; an object
// that cannot be decoded is no error but an entry of [Survey.Unread].
func (s *Survey) ReadFile(name string, in io.Reader) error {
	buffered := bufio.NewReaderSize(in, 1<<16)
	start, err := firstBytes(buffered)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	f := &reader{survey: s, in: buffered}
	if isJSON(start) {
		err = f.json(header{})
	} else {
		err = f.yaml()
	}
	if err == nil {
		err = f.complete()
	}
	if err != nil {
		return fmt.Errorf("%s: %w", f.at(name), err)
	}
	return nil
}

// isJSON reports whether a text begins as JSON. A mapping of YAML in brackets has no quote after its first
// bracket.
func isJSON(start string) bool {
	return strings.HasPrefix(start, "[") || start == "{" || start == `{"` || start == "{}"
}

// firstBytes returns the first two bytes that are no white space, and skips a byte order mark.
func firstBytes(in *bufio.Reader) (start string, err error) {
	mark, _ := in.Peek(3)
	switch {
	case bytes.HasPrefix(mark, []byte("\xff\xfe")) || bytes.HasPrefix(mark, []byte("\xfe\xff")):
		return "", errors.New("the file is UTF-16: save it as UTF-8")
	case bytes.HasPrefix(mark, []byte("\xef\xbb\xbf")):
		in.Discard(3)
	}
	for n := 1; ; n++ {
		text, err := in.Peek(n)
		if len(text) < n {
			return start, errIf(err)
		}
		if c := text[n-1]; strings.IndexByte(" \t\r\n", c) < 0 {
			start += string(c)
		}
		if len(start) == 2 {
			return start, nil
		}
	}
}

// errIf returns an error of reading, except for the end of the file and of the buffer.
func errIf(err error) error {
	if err == io.EOF || errors.Is(err, bufio.ErrBufferFull) {
		return nil
	}
	return err
}

// reader reads one file.
type reader struct {
	survey *Survey
	in     *bufio.Reader
	line   int // of the object that is read; 0 in JSON
	// last is the last object, and hadStatus reports whether one before it has a status.
	last      []byte
	hadStatus bool
	// deliver gets the items of lists in place of the survey, if it is set.
	deliver func(item []byte, kind header)
}

func (f *reader) at(name string) string {
	if f.line > 0 {
		return fmt.Sprintf("%s:%d", name, f.line)
	}
	return name
}

// errCut is the error for a file whose end is missing.
var errCut = errors.New("the file is cut off: export it again")

// statusKinds have a status in every export, since the API server always writes one.
var statusKinds = []string{"Pod", "Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job", "CronJob", "Namespace"}

// complete returns an error if the end of the file is missing although what is there is valid: the
// last object was exported and has no status, which follows all else.
func (f *reader) complete() error {
	var last header
	if f.last == nil || decode(f.last, &last) != nil {
		return nil // the survey lists it
	}
	if last.Metadata.UID != "" && contains(statusKinds, last.Kind) && last.Status == nil && f.hadStatus {
		return errCut
	}
	return nil
}

// object adds one object, or the items of a list.
func (f *reader) object(text []byte, kind header) error {
	if !bytes.Contains(text, []byte(`"items"`)) {
		return f.add(text, kind)
	}
	var list struct {
		header
		Items []json.RawMessage `json:"items"`
	}
	if err := decode(text, &list); err != nil || list.Items == nil {
		return f.add(text, kind)
	}
	return f.list(list.header, list.Items)
}

func (f *reader) list(of header, items []json.RawMessage) error {
	for _, item := range items {
		if err := f.object(item, itemKind(of)); err != nil {
			return err
		}
	}
	return nil
}

// itemKind returns the kind of the items of a list that have none themselves, as the API server sends
// them.
func itemKind(list header) header {
	return header{APIVersion: list.APIVersion, Kind: strings.TrimSuffix(list.Kind, "List")}
}

func (f *reader) add(text []byte, kind header) error {
	f.hadStatus = f.hadStatus || bytes.Contains(f.last, []byte(`"status":`))
	f.last = text
	f.survey.add(text, kind)
	return nil
}

// json reads a stream of JSON values. The items of a list are read one by one.
func (f *reader) json(kind header) error {
	decoder := json.NewDecoder(f.in)
	for {
		err := f.value(decoder, kind)
		switch {
		case err == io.EOF:
			return nil
		case errors.Is(err, io.ErrUnexpectedEOF):
			return errCut
		case err != nil:
			return fmt.Errorf("byte %d: invalid JSON: %s", decoder.InputOffset(), reason(err))
		}
	}
}

// value reads one value of a stream.
func (f *reader) value(decoder *json.Decoder, kind header) error {
	fields, isList, err := f.fields(decoder, kind)
	if err != nil || isList {
		return err
	}
	text, err := json.Marshal(fields)
	if err != nil {
		return err
	}
	return f.add(text, kind)
}

// fields reads an object. If it is a list, it adds the items and returns the other fields. The error is
// io.EOF if there is no further object.
func (f *reader) fields(decoder *json.Decoder, kind header) (fields map[string]json.RawMessage, isList bool, err error) {
	token, err := decoder.Token()
	if err != nil {
		return nil, false, err
	}
	if token != json.Delim('{') {
		return nil, false, errors.New("must be an object")
	}
	fields = map[string]json.RawMessage{}
	for decoder.More() {
		key, err := decoder.Token()
		if err != nil {
			return nil, false, unexpected(err)
		}
		if key == "items" {
			isList = true
			err = f.items(decoder, listHeader(fields, kind))
		} else {
			var value json.RawMessage
			err = decoder.Decode(&value)
			fields[fmt.Sprint(key)] = value
		}
		if err != nil {
			return nil, false, unexpected(err)
		}
	}
	_, err = decoder.Token()
	return fields, isList, unexpected(err)
}

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// listHeader returns the kind of a list's items from what comes before them.
func listHeader(before map[string]json.RawMessage, kind header) header {
	var list header
	json.Unmarshal(before["apiVersion"], &list.APIVersion)
	json.Unmarshal(before["kind"], &list.Kind)
	if strings.TrimSuffix(list.Kind, "List") == "" {
		return kind
	}
	return itemKind(list)
}

func (f *reader) items(decoder *json.Decoder, kind header) error {
	token, err := decoder.Token()
	if err != nil || token == nil {
		return err // null: an empty list
	}
	if token != json.Delim('[') {
		return errors.New("items must be a list")
	}
	for decoder.More() {
		var item json.RawMessage
		if err := decoder.Decode(&item); err != nil {
			return err
		}
		if f.deliver != nil {
			f.deliver(item, kind)
		} else if err := f.object(item, kind); err != nil {
			return err
		}
	}
	_, err = decoder.Token()
	return err
}

// parse adds the object of a YAML text that begins on a line.
func (f *reader) parse(text []byte, line int) error {
	f.line = line
	if bytes.Contains(text, []byte("{{")) && !bytes.Contains(text, []byte(`"{{`)) && !bytes.Contains(text, []byte(`'{{`)) {
		if _, err := yaml.YAMLToJSON(text); err != nil {
			return errors.New("a template, not a manifest: render it first (helm template … | imds-migrate plan -f -)")
		}
	}
	converted, err := yaml.YAMLToJSON(text)
	if err != nil {
		return fmt.Errorf("invalid YAML: %s", strings.TrimPrefix(reason(err), "yaml: "))
	}
	if bytes.Equal(bytes.TrimSpace(converted), []byte("null")) {
		return nil
	}
	return f.object(converted, header{})
}
