package main

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/rogpeppe/go-internal/diff"
)

// stdinName is the file name that means standard input.
const stdinName = "-"

// file is a file of manifests, or standard input.
type file struct {
	name  string // for messages
	path  string // empty: standard input
	text  []byte
	after []byte // the text with all changes
}

func (f *file) changed() bool { return !bytes.Equal(f.text, f.after) }

// read reads the named files, and those in named directories.
func read(names []string, stdin io.Reader) ([]*file, error) {
	if len(names) == 0 {
		names = []string{stdinName}
	}
	var files []*file
	seen := map[string]bool{}
	for _, name := range names {
		paths, err := expand(name)
		if err != nil {
			return nil, err
		}
		for _, path := range paths {
			if seen[filepath.Clean(path)] {
				continue // named twice, for example as dir and dir/a.yaml
			}
			seen[filepath.Clean(path)] = true
			f, err := readFile(path, stdin)
			if err != nil {
				return nil, err
			}
			files = append(files, f)
		}
	}
	return files, nil
}

func readFile(name string, stdin io.Reader) (*file, error) {
	if name == stdinName {
		text, err := io.ReadAll(stdin)
		return &file{name: "stdin", text: text}, err
	}
	text, err := os.ReadFile(name)
	return &file{name: name, path: name, text: text}, err
}

// expand returns the paths of the manifests in a directory, sorted by name. For a file it returns
// the name.
func expand(name string) ([]string, error) {
	if name == stdinName {
		return []string{name}, nil
	}
	info, err := os.Stat(name)
	if err != nil || !info.IsDir() {
		return []string{name}, err
	}
	var found []string
	err = filepath.WalkDir(name, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && path != name && strings.HasPrefix(entry.Name(), "."):
			return filepath.SkipDir
		case !entry.IsDir() && slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(path)):
			found = append(found, path)
		}
		return nil
	})
	if err == nil && len(found) == 0 {
		err = fmt.Errorf("%s: contains no .yaml, .yml or .json file", name)
	}
	return found, err
}

// write writes the result in place, as differences, or to stdout.
func (o *options) write(files []*file, stdout io.Writer) error {
	switch {
	case o.inPlace:
		return writeInPlace(files)
	case o.diff:
		for _, f := range files {
			name := diffName(f.name)
			if _, err := stdout.Write(diff.Diff("a/"+name, f.text, "b/"+name, f.after)); err != nil {
				return err
			}
		}
		return nil
	}
	_, err := stdout.Write(joined(files))
	return err
}

// diffName returns a file's name after a/ and b/. A file outside of the working directory has its
// absolute path, for patch -p1 -d /, because patch does not accept paths with "..".
func diffName(name string) string {
	if !filepath.IsAbs(name) && !filepath.IsLocal(name) {
		if absolute, err := filepath.Abs(name); err == nil {
			name = absolute
		}
	}
	name = strings.TrimPrefix(filepath.ToSlash(filepath.Clean(name)), "/")
	if strings.Contains(name, " ") {
		name += "\t" // as git does: otherwise the name ends at the space
	}
	return name
}

// joined returns all files as one stream of documents. A single file is not changed. If the first
// file begins with a brace, the stream begins with a marker: until 1.33, kubectl reads a stream
// that begins with a brace as JSON without markers, and fails at the second file.
func joined(files []*file) []byte {
	var out bytes.Buffer
	for i, f := range files {
		text := f.after
		if i > 0 {
			text = bytes.TrimPrefix(text, []byte("\xef\xbb\xbf")) // a byte order mark is valid only at the start of a stream
			out.WriteString(between(out.Bytes(), text))
		}
		out.Write(text)
	}
	if len(files) > 1 && bytes.HasPrefix(bytes.TrimSpace(out.Bytes()), []byte("{")) {
		return append([]byte("---\n"), out.Bytes()...)
	}
	return out.Bytes()
}

// between returns the text between two files: a marker, unless the next file begins with one. If
// the next file begins with directives, it is the end of a document.
func between(before, next []byte) string {
	var text string
	if len(before) > 0 && !bytes.HasSuffix(before, []byte("\n")) {
		text = "\n"
	}
	switch {
	case bytes.HasPrefix(next, []byte("---")):
		return text
	case bytes.HasPrefix(next, []byte("%")):
		return text + "...\n"
	}
	return text + "---\n"
}
