package survey

import (
	"bytes"
	"io"
	"regexp"
	"strings"

	"sigs.k8s.io/yaml"
)

var itemsKey = regexp.MustCompile(`^items:\s*(#.*)?$`)

// document is a YAML document that is read line by line. The items of a list in block style, as kubectl
// prints it, are added one by one, so that a dump of a whole cluster is never in memory.
type document struct {
	*reader
	rest  []byte // all but the items
	first int    // the line of rest

	listed bool // the document has items in block style
	indent int  // the column of their dashes, or -1 before the first one
	item   []byte
	began  int // the line of item
}

// yaml reads a stream of YAML documents.
func (f *reader) yaml() error {
	d := &document{reader: f, indent: -1}
	for number := 1; ; number++ {
		line, err := f.in.ReadBytes('\n')
		if len(line) > 0 {
			if err := d.next(line, number); err != nil {
				return err
			}
		}
		switch {
		case err == io.EOF:
			return d.end()
		case err != nil:
			return err
		}
	}
}

// next reads one line.
func (d *document) next(line []byte, number int) error {
	text := strings.TrimRight(string(line), "\r\n")
	if text == "---" || text == "..." || strings.HasPrefix(text, "--- ") {
		if err := d.end(); err != nil {
			return err
		}
		*d = document{reader: d.reader, indent: -1}
		if content, found := strings.CutPrefix(text, "--- "); found && !strings.HasPrefix(strings.TrimSpace(content), "#") {
			d.rest, d.first = append(d.rest, content+"\n"...), number
		}
		return nil
	}
	if !d.listed {
		if itemsKey.MatchString(text) {
			d.listed = true
			return nil
		}
		d.other(line, number)
		return nil
	}
	return d.inList(line, text, number)
}

func (d *document) other(line []byte, number int) {
	if d.first == 0 {
		d.first = number
	}
	d.rest = append(d.rest, line...)
}

// inList reads a line after the key items.
func (d *document) inList(line []byte, text string, number int) error {
	column := len(text) - len(strings.TrimLeft(text, " "))
	trimmed := text[column:]
	dash := trimmed == "-" || strings.HasPrefix(trimmed, "- ")
	switch {
	case dash && (d.indent < 0 || column == d.indent):
		d.indent = column
		if err := d.endItem(); err != nil {
			return err
		}
		d.began = number
		d.item = append(d.item, line...)
		d.item[column] = ' ' // what is left is the mapping
		return nil
	case d.began > 0 && (trimmed == "" || strings.HasPrefix(trimmed, "#") || column > d.indent):
		d.item = append(d.item, line...)
		return nil
	case trimmed == "" || strings.HasPrefix(trimmed, "#"):
		return nil
	case d.began == 0 && column > 0: // no list
		d.listed = false
		d.rest = append(d.rest, "items:\n"...)
		d.other(line, number)
		return nil
	}
	if err := d.endItem(); err != nil { // the next key of the list itself
		return err
	}
	d.listed = false
	d.other(line, number)
	d.indent = -2 // a second key items would be a duplicate, which the parser refuses
	return nil
}

func (d *document) endItem() error {
	if d.began == 0 {
		return nil
	}
	err := d.parse(d.item, d.began)
	d.item, d.began = d.item[:0], 0
	return err
}

// end ends a document.
func (d *document) end() error {
	streamed := d.listed || d.indent == -2
	if err := d.endItem(); err != nil {
		return err
	}
	if !streamed {
		if len(bytes.TrimSpace(d.rest)) == 0 {
			return nil
		}
		return d.parse(d.rest, d.first)
	}
	d.line = 0
	var list header
	if yaml.Unmarshal(d.rest, &list) != nil || list.Kind == "" {
		return errCut // kubectl prints the kind of a list after its items
	}
	return nil
}
